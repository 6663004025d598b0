#!/usr/bin/env python3
"""quantd against onnxruntime, taking turns, one JSON line for each setting: the ddpm-cifar10 U-Net in float and W8A8 here, in FP32 and as our
own QDQ export there; ResNet-20 and ResNet-18 for 32 x 32 pictures in float. Above 1 we are faster.

usage: compare_ort.py BENCH_FOLDER [ROUNDS] [NETWORK..]     BENCH_FOLDER = build/.../tests/bench
Needs PyTorch for the exports, node, and onnxruntime-node where NODE_PATH finds it
(npm install onnxruntime-node --ignore-scripts)."""
import json
import os
import statistics
import subprocess
import sys
import tempfile

bench, rounds = os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3
only = sys.argv[3:] or ["resnet20", "resnet18", "cifar10"]
here = os.path.dirname(os.path.abspath(__file__))


def export(*words):
    subprocess.run(["/usr/bin/python3", *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ours(program, *words):
    out = subprocess.run([os.path.join(bench, program), *map(str, words)], check=True, capture_output=True, text=True).stdout
    return json.loads(out.split("\n")[0])


def theirs(model, batch, threads, calls):
    out = subprocess.run(["node", os.path.join(here, "ort.js"), model, str(batch), str(threads), str(calls)], check=True,
                         capture_output=True, text=True).stdout
    return [float(v) * 1e3 for v in out.split()]


def line(network, batch, threads, turns):
    """turns: of each runtime pairs of median and least time; the least of all is what a machine without other loads would show."""
    row = {"bench": "compare_ort", "model": network, "batch": batch, "threads": threads, "rounds": rounds}
    for best in (False, True):
        ms = {k: (min(t[1] for t in v) if best else statistics.median(t[0] for t in v)) / batch for k, v in turns.items()}
        prefix = "best_" if best else ""
        row.update({f"{prefix}{k}_ms": round(v, 3) for k, v in ms.items()})
        row[prefix + "float_over_ort"] = round(ms["ort_fp32"] / ms["float"], 2)
        if "int8" in ms:
            row[prefix + "int8_over_ort_fp32"] = round(ms["ort_fp32"] / ms["int8"], 2)
            row[prefix + "int8_over_ort_int8"] = round(ms["ort_int8"] / ms["int8"], 2)
    print(json.dumps(row), flush=True)


def classifier(network, model, batches):
    for batch in batches:
        for threads in (1, 2):
            turns = {"float": [], "ort_fp32": []}
            for _ in range(rounds):
                row = ours("bench_infer", "model", model, "--batch", batch, "--threads", threads, "--rounds", 7)
                turns["float"].append((row["ms"], row["best_ms"]))
                turns["ort_fp32"].append(theirs(model, batch, threads, 7))
            line(network, batch, threads, turns)


def unet(model, coded):
    for batch in (1, 8):
        for threads in (1, 2):
            turns = {"float": [], "int8": [], "ort_fp32": [], "ort_int8": []}
            for _ in range(rounds):
                row = ours("bench_unet", "--model", "cifar10", "--batch", batch, "--threads", threads, "--rounds", 3)
                turns["float"].append((row["float_ms"], row["best_float_ms"]))
                turns["int8"].append((row["int8_ms"], row["best_int8_ms"]))
                turns["ort_fp32"].append(theirs(model, batch, threads, 3))
                turns["ort_int8"].append(theirs(coded, batch, threads, 3))
            line("cifar10", batch, threads, turns)


with tempfile.TemporaryDirectory() as folder:
    for name, batches in (("resnet20", (200,)), ("resnet18", (1, 32))):
        if name in only:
            path = os.path.join(folder, name + ".onnx")
            export(os.path.join(here, "export_nets.py"), name, path)
            classifier(name, path, batches)
    if "cifar10" in only:
        path, coded = os.path.join(folder, "cifar.onnx"), os.path.join(folder, "cifar_qdq.onnx")
        export(os.path.join(here, "export_cifar.py"), path)
        subprocess.run([os.path.join(bench, "bench_unet"), "--write-qdq", coded], check=True)
        unet(path, coded)
