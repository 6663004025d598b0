#!/usr/bin/env python3
"""quantd against onnxruntime on the ddpm-cifar10 U-Net: float and W8A8 here, FP32 there, taking turns, one JSON line for each setting.

usage: compare_ort.py BENCH_UNET [ROUNDS]     BENCH_UNET = build/.../tests/bench/bench_unet
Needs PyTorch for the export, node, and onnxruntime-node where NODE_PATH finds it
(npm install onnxruntime-node --ignore-scripts)."""
import json
import os
import statistics
import subprocess
import sys
import tempfile

bench, rounds = os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3
here = os.path.dirname(os.path.abspath(__file__))
with tempfile.TemporaryDirectory() as folder:
    model = os.path.join(folder, "cifar.onnx")
    subprocess.run(["/usr/bin/python3", os.path.join(here, "export_cifar.py"), model], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    for batch in (1, 8):
        for threads in (1, 2):
            turns = {"float": [], "int8": [], "ort": []}
            for _ in range(rounds):
                ours = json.loads(subprocess.run([bench, "--model", "cifar10", "--batch", str(batch), "--threads", str(threads), "--rounds", "3"],
                                                 check=True, capture_output=True, text=True).stdout.split("\n")[0])
                turns["float"].append(ours["float_ms"] / 1e3)
                turns["int8"].append(ours["int8_ms"] / 1e3)
                turns["ort"].append(float(subprocess.run(["node", os.path.join(here, "ort.js"), model, str(batch), str(threads), "3"],
                                                         check=True, capture_output=True, text=True).stdout))
            s = {k: statistics.median(v) / batch for k, v in turns.items()}
            print(json.dumps({"bench": "compare_ort", "model": "cifar10", "batch": batch, "threads": threads, "rounds": rounds,
                              "float_ms": round(s["float"] * 1e3, 2), "int8_ms": round(s["int8"] * 1e3, 2), "ort_fp32_ms": round(s["ort"] * 1e3, 2),
                              "float_over_ort": round(s["ort"] / s["float"], 2), "int8_over_ort": round(s["ort"] / s["int8"], 2)}), flush=True)
