#!/usr/bin/env python3
"""make_torch.py - checkpoints written by PyTorch itself, and what is in them as safetensors.

Made with PyTorch 1.13.0, numpy 1.24.2, seed 5. Every file of one family holds the same tensors; `plain.safetensors` says which, under
the names a reader should give them. Run in this folder.
"""
import argparse
import json
import pathlib
import struct
import zipfile
from collections import OrderedDict, defaultdict

import numpy as np
import torch

torch.manual_seed(5)
KINDS = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
         torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}


def raw(t):
    t = t.detach().contiguous()
    return (t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy().tobytes()


def safetensors(path, tensors):
    """The format of model.h, tensors by element size so that each lies on its own alignment."""
    header, data = {}, b""
    for name, t in sorted(tensors.items(), key=lambda i: -i[1].element_size()):
        header[name] = {"dtype": KINDS[t.dtype], "shape": list(t.shape), "data_offsets": [len(data), len(data) + len(raw(t))]}
        data += raw(t)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + 56)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


base = torch.randn(6, 8)
plain = OrderedDict()
plain["f32"] = torch.randn(3, 5)
plain["f64"] = torch.randn(2, 2, dtype=torch.float64)
plain["f16"] = torch.randn(7).half()
plain["bf16"] = torch.randn(3, 3).bfloat16()
plain["i64"] = torch.tensor(-(2**40) + 3)
plain["i32"] = torch.arange(-3, 3, dtype=torch.int32).reshape(2, 3)
plain["i16"] = torch.arange(5, dtype=torch.int16)
plain["i8"] = torch.arange(-4, 4, dtype=torch.int8)
plain["u8"] = torch.arange(3, dtype=torch.uint8)
plain["bool"] = torch.tensor([True, False, True])
plain["parameter"] = torch.nn.Parameter(torch.randn(4, 1, 3, 3))
plain["whole"] = base
plain["rows"] = base[2:4]                          # a part of the storage of `whole`
plain["turned"] = base.t()                         # strides the other way round
plain["steps"] = base[1::2, 1::3]
plain["repeated"] = base[0, :4].expand(3, 4)       # stride 0
plain["channels_last"] = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
plain["empty"] = torch.empty(0, 4)
plain["scalar"] = torch.tensor(2.5)
plain["array"] = torch.randn(2, 3)
safetensors("plain.safetensors", plain)

# As a state_dict comes: with metadata as an attribute, an array of numpy's and things that are no tensors among them.
mixed = OrderedDict(plain)
mixed["array"] = np.asfortranarray(plain["array"].numpy())
mixed["counter"] = 7
mixed._metadata = OrderedDict({"": {"version": 2}})
for protocol in (2, 3, 4, 5):
    torch.save(mixed, f"zip_p{protocol}.pth", pickle_protocol=protocol)
for protocol in (2, 4):
    torch.save(mixed, f"stream_p{protocol}.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=False)


# A small network and what training programs put around it.
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3)
        self.bn = torch.nn.BatchNorm2d(2)
        self.register_buffer("table", torch.arange(3.0))


net, ema = Net(), Net()
optimizer = torch.optim.Adam(net.parameters())
net.bn(net.conv(torch.randn(1, 1, 5, 5))).sum().backward()
optimizer.step()
safetensors("net.safetensors", net.state_dict())
safetensors("ema.safetensors", ema.state_dict())
wrapped = torch.nn.DataParallel(net)
training = {"epoch": np.float64(3), "optimizer": optimizer.state_dict(), "state_dict": wrapped.state_dict(),
            "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs")), "best": np.arange(2.0), "seen": {1, 2},
            "groups": defaultdict(list, {"a": [1]}), "shape": torch.Size([2, 3]), "device": torch.device("cpu"), "type": torch.float32,
            "big": 2**100, "text": "\u00fc"}
torch.save(training, "training.pth")
torch.save(training, "training_stream.pth", pickle_protocol=4, _use_new_zipfile_serialization=False)
# Beside an average that has everything, and beside one that lacks what is no parameter.
torch.save({"model": net.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}, "with_ema.pth")
torch.save({"model": net.state_dict(), "ema": OrderedDict(ema.named_parameters())}, "with_part_of_ema.pth")
# As ermongroup/ddim writes: a list whose last entry is the average.
torch.save([wrapped.state_dict(), optimizer.state_dict(), 3, 100, ema.state_dict()], "list.ckpt")
torch.save({"callbacks": {}, "pytorch-lightning_version": "1.4.2", "state_dict": {"model.diffusion_model." + k: v for k, v in net.state_dict().items()}},
           "lightning.ckpt")
# A state_dict that is the whole file keeps what all its names begin with, unless PyTorch put it there.
torch.save(OrderedDict(("net." + k, v) for k, v in net.state_dict().items()), "own_prefix.pth")
torch.save({"net": OrderedDict(("net." + k, v) for k, v in net.state_dict().items())}, "nested_prefix.pth")
torch.save(net, "whole_module.pth")
torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), "script.pt")
