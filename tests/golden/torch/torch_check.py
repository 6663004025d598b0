#!/usr/bin/python3
"""torch_check.py - PyTorch saves the weights we have as safetensors; read back they must be the same, bit for bit.

usage: torch_check.py TEST_TORCH      skipped (77) where there is no PyTorch
"""
import glob
import json
import os
import struct
import subprocess
import sys
import tempfile

try:
    import torch
except ImportError:
    print("skipped: there is no PyTorch")
    sys.exit(77)

SOURCE = os.environ.get("QUANTD_SOURCE", os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../.."))
DATA = os.environ.get("QUANTD_TEST_DATA", os.path.join(SOURCE, "../shared/data"))
KINDS = {"F32": torch.float32, "I64": torch.int64, "U8": torch.uint8, "I32": torch.int32}


def read(path):
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        header, data = json.loads(f.read(n)), bytearray(f.read())
    tensors = {}
    for name, e in header.items():
        if name == "__metadata__":
            continue
        begin, end = e["data_offsets"]
        if end == begin:
            tensors[name] = torch.empty(e["shape"], dtype=KINDS[e["dtype"]])
        else:
            tensors[name] = torch.frombuffer(data[begin:end], dtype=KINDS[e["dtype"]]).reshape(e["shape"])
    return tensors


files = sorted(glob.glob(os.path.join(SOURCE, "deploy/models/*/*.safetensors")) + glob.glob(os.path.join(DATA, "weights/*/*.safetensors")))
if not files:
    print("no weights found")
    sys.exit(1)
failed = 0
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "checkpoint.pth")
    for name in files:
        tensors = read(name)
        for zipped in (True, False):
            torch.save({"epoch": 1, "state_dict": tensors}, path, _use_new_zipfile_serialization=zipped)
            bad = subprocess.run([sys.argv[1], path, name]).returncode
            failed += bad != 0
            print(f"{'differs' if bad else 'same   '} {'archive' if zipped else 'stream '} {os.path.relpath(name, SOURCE)}: {len(tensors)} tensors")
sys.exit(1 if failed else 0)
