#!/usr/bin/env python3
"""make_corpus.py - write the seed inputs of the fuzz targets: small, valid or hostile, the same bytes every time.

Files named seed-* are made here and replaced; everything else in corpus/ (found by fuzzing) is left alone. Only Python's own
library is used; zstd frames are written by hand from raw blocks.
"""
import gzip
import io
import json
import lzma
import math
import os
import pickle
import struct
import sys
import tarfile
import types
import zipfile
import zlib
from collections import OrderedDict

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")


def put(target, name, data):
    folder = os.path.join(HERE, target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "seed-" + name), "wb") as f:
        f.write(data.encode() if isinstance(data, str) else data)


def clean():
    for folder, _, names in os.walk(HERE):
        for name in names:
            if name.startswith("seed-"):
                os.remove(os.path.join(folder, name))


# --- safetensors -------------------------------------------------------------------------------------------------------


def st(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors():
    f32 = struct.pack("<4f", 0.0, 1.0, -2.5, float("nan"))
    every, data = {}, b""
    for dtype, size in [("F64", 8), ("I64", 8), ("F32", 4), ("I32", 4), ("F16", 2), ("BF16", 2), ("I16", 2), ("I8", 1),
                        ("U8", 1), ("BOOL", 1)]:
        every[dtype.lower()] = entry(dtype, [2], len(data), len(data) + 2 * size)
        data += bytes(2 * size)
    ok = {"__metadata__": {"format": "pt", "k\u00e9y": "line\nbreak"}, "w": entry("F32", [2, 2], 0, 16)}
    seeds = {
        "ok": st(ok, f32),
        "ok-padded": st(json.dumps(ok) + "   ", f32),
        "ok-misaligned": st(json.dumps(ok) + " " * ((1 - len(json.dumps(ok))) % 4), f32),
        "ok-empty": st("{}"),
        "ok-dtypes": st(every, data),
        "ok-scalar-and-none": st({"s": entry("F32", [], 0, 4), "n": entry("F32", [0, 7], 4, 4)}, f32[:4]),
        "ok-reordered": st({"b": entry("U8", [3], 4, 7), "a": entry("F32", [1], 0, 4)}, f32[:4] + b"abc"),
        "short": b"\x01\x02\x03",
        "length-past-end": st(ok, f32, length=4096),
        "length-huge": st(ok, f32, length=2**64 - 1),
        "length-over-limit": st(ok, f32, length=100000001),
        "length-zero": st(b"", b"{}", length=0),
        "not-json": st("{\"w\":"),
        "not-object": st("[1,2]"),
        "leading-space": st(" {}"),
        "not-utf8": st(b"{\"\xff\xfe\":1}"),
        "duplicate": st('{"w":' + json.dumps(entry("F32", [1], 0, 4)) + ',"w":' + json.dumps(entry("F32", [1], 0, 4)) + "}",
                        f32[:4]),
        "deep": st("{\"a\":" + "[" * 100 + "]" * 100 + "}"),
        "dtype-unknown": st({"w": entry("F8_E5M2", [16], 0, 16)}, f32),
        "shape-negative": st({"w": entry("F32", [-4], 0, 16)}, f32),
        "shape-float": st({"w": entry("F32", [4.0], 0, 16)}, f32),
        "shape-overflow": st({"w": entry("F32", [2**62], 0, 0)}),
        "shape-product": st({"w": entry("F32", [2**32, 2**32], 0, 16)}, f32),
        "shape-rank": st({"w": entry("F32", [1] * 9, 0, 4)}, f32[:4]),
        "offsets-outside": st({"w": entry("F32", [4], 16, 32)}, f32),
        "offsets-reversed": st({"w": entry("F32", [4], 16, 0)}, f32),
        "offsets-mismatch": st({"w": entry("F32", [3], 0, 16)}, f32),
        "offsets-overlap": st({"a": entry("U8", [10], 0, 10), "b": entry("U8", [10], 6, 16)}, f32),
        "offsets-hole": st({"a": entry("U8", [4], 0, 4), "b": entry("U8", [8], 8, 16)}, f32),
        "trailing": st({"w": entry("F32", [4], 0, 16)}, f32 + b"x"),
        "bool-two": st({"w": entry("BOOL", [2], 0, 2)}, b"\x01\x02"),
        "metadata-number": st({"__metadata__": {"epoch": 3}}),
        "metadata-list": st({"__metadata__": []}),
        "entry-extra-key": st({"w": dict(entry("F32", [4], 0, 16), stride=[1])}, f32),
    }
    for name, seed in seeds.items():
        put("safetensors", name, seed)


# --- bundles: graph text, NUL, tensor entries, NUL, data (see fuzz_bundle.c), or a whole file ---------------------------


def node(op, name, inputs=None, **attrs):
    n = {"op": op, "name": name}
    if inputs is not None:
        n["inputs"] = inputs
    if attrs:
        n["attrs"] = attrs
    return n


def image(name="x", shape=(-1, 3, 8, 8), dtype="f32"):
    return {"op": "input", "name": name, "dtype": dtype, "shape": list(shape)}


def graph(nodes, output=None):
    return json.dumps({"nodes": nodes, "outputs": [{"name": "y", "node": len(nodes) - 1 if output is None else output}]})


def bundle_text(text, tensors=()):
    """tensors: (name, dtype, shape, element bytes)."""
    entries, at = {}, 0
    for name, dtype, shape, size in tensors:
        n = size
        for d in shape:
            n *= d
        entries[name] = entry(dtype, list(shape), at, at + n)
        at += n
    data = b"".join(struct.pack("<f", 1.0 + k / 8) for k in range((at + 3) // 4))[:at]
    return text.encode() + b"\0" + json.dumps(entries)[1:-1].encode() + b"\0" + data


def bundles():
    pad = {"pads": [1, 1, 1, 1]}
    w = ("w", "F32", (4, 3, 3, 3), 4)
    conv = [image(), node("const", "w"), node("conv2d", "c", [0, 1], stride=[1, 1], **pad)]
    quant = [image(), node("const", "wq"), node("const", "ws"), node("quantize", "q", [0], scale=0.1, zero=128),
             node("qconv2d", "c", [3, 1, 2, -1], x_scale=0.1, x_zero=128, **pad), node("silu", "s", [4])]
    tq = [("wq", "I8", (4, 3, 3, 3), 1), ("ws", "F32", (4,), 4)]
    tq.sort(key=lambda t: -t[3])
    attention = [image("q", (-1, 4, 8)), node("attention", "a", [0, 0, 0], heads=2, scale=0.5),
                 node("softmax", "s", [1], axis=-1), node("reshape", "r", [2], shape=[0, -1]),
                 node("reshape", "b", [3], shape=[0, 4, 8]), node("permute", "p", [4], perm=[0, 2, 1]),
                 node("slice", "l", [5], axis=1, start=0, length=4, step=2), node("concat", "k", [6, 6], axis=1)]
    spatial = [image(), node("upsample", "u", [0], factor=[2, 2]), node("pad", "p", [1], pads=[0, 0, 0, 0, 0, 0, 1, 1]),
               node("avg_pool", "a", [2], kernel=[2, 2], stride=[2, 2], pads=[0, 0, 0, 0]),
               node("max_pool", "m", [3], kernel=[2, 2], stride=[2, 2], pads=[0, 0, 0, 0]),
               node("global_avg_pool", "g", [4]), node("affine", "f", [5], mul=2.0, add=-1.5)]
    time = [image("t", (-1,)), node("timestep", "e", [0], dim=16, flip_sin_to_cos=1, freq_shift=0.0, max_period=10000.0),
            node("layer_norm", "n", [1], axes=1, eps=1e-5), node("clip", "c", [2], lo="-inf", hi=1.0)]
    seeds = {
        "ok-conv": bundle_text(graph(conv), [w]),
        "ok-quantized": bundle_text(graph(quant), tq),
        "ok-attention": bundle_text(graph(attention)),
        "ok-spatial": bundle_text(graph(spatial)),
        "ok-time": bundle_text(graph(time)),
        "ok-file": st({"__metadata__": {"format": "quantd-bundle-1", "graph": graph([image(), node("relu", "r", [0])]),
                                        "config": "{}"}}),
        "format-missing": st({"__metadata__": {"graph": graph([image()])}}),
        "format-other": st({"__metadata__": {"format": "quantd-bundle-9", "graph": graph([image()])}}),
        "graph-missing": st({"__metadata__": {"format": "quantd-bundle-1"}}),
        "op-unknown": bundle_text(graph([image(), node("conv9d", "c", [0])])),
        "attr-unknown": bundle_text(graph([image(), node("relu", "c", [0], slope=1)])),
        "attr-kind": bundle_text(graph([image(), node("softmax", "c", [0], axis=[1])])),
        "attr-huge": bundle_text(graph(conv[:2] + [node("conv2d", "c", [0, 1], stride=[2**62, 1], **pad)]), [w]),
        "attr-negative": bundle_text(graph(conv[:2] + [node("conv2d", "c", [0, 1], groups=-1)]), [w]),
        "dtype-unknown": bundle_text(graph([image(dtype="f8")])),
        "shape-zero": bundle_text(graph([image(shape=(0, 3))])),
        "shape-huge": bundle_text(graph([image(shape=(-1, 2**31 - 1, 2**31 - 1, 2**31 - 1))])),
        "upsample-huge": bundle_text(graph([image(), node("upsample", "u", [0], factor=[2**31, 2**31])])),
        "input-forward": bundle_text(graph([image(), node("relu", "r", [1])])),
        "input-negative": bundle_text(graph([image(), node("relu", "r", [-9])])),
        "inputs-many": bundle_text(graph([image(), node("concat", "r", [0] * 40, axis=0)])),
        "name-twice": bundle_text(graph([image(), node("relu", "x", [0])])),
        "tensor-missing": bundle_text(graph(conv)),
        "tensor-left-over": bundle_text(graph([image()]), [w]),
        "output-outside": bundle_text(graph([image()], output=7)),
        "outputs-none": bundle_text('{"nodes":[],"outputs":[]}'),
        "nodes-not-list": bundle_text('{"nodes":{},"outputs":[]}'),
        "deep": bundle_text('{"nodes":' + "[" * 50 + "]" * 50 + "}"),
        "not-json": bundle_text('{"nodes":['),
    }
    for name, seed in seeds.items():
        put("bundle", name, seed)


# --- configurations ----------------------------------------------------------------------------------------------------


def configs():
    unet = {"_class_name": "UNet2DModel", "sample_size": 28, "in_channels": 1, "block_out_channels": [16, 32, 64],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "attention_head_dim": None, "norm_eps": 1e-06,
            "flip_sin_to_cos": False, "layers_per_block": 1}
    seeds = {
        "unet": json.dumps(unet, indent=2),
        "numbers": '{"a":-0.0,"b":1e5,"c":1E-320,"d":9223372036854775807,"e":-9223372036854775808,"f":1e22,"g":7.0}',
        "strings": '{"a":"\\u00e9\\ud83d\\ude00\\n\\t\\"\\\\","\\u0001":"\u20ac","":""}',
        "nested": '{"a":{"b":[{"c":[[]]}]},"d":[1,"x",null,true]}',
        "empty": "{}",
        "space": " \n{ }\t",
        "array": "[]",
        "nothing": "",
        "nan": '{"a":NaN}',
        "overflow": '{"a":1e999}',
        "big-integer": '{"a":99999999999999999999}',
        "duplicate": '{"a":1,"a":2}',
        "trailing": "{}{}",
        "nul": '{"a":"\\u0000"}',
        "lone-surrogate": '{"a":"\\ud800"}',
        "deep": '{"a":' + "[" * 30 + "]" * 30 + "}",
        "brackets-in-string": '{"[[[[[[[[[[[[[[[[[[[[[[[[[[":"}}}}}}\\\\"}',
        "open-string": '{"a":"\\',
        "not-utf8": b'{"a":"\xc3\x28"}',
    }
    for name, seed in seeds.items():
        put("config", name, seed)


# --- pictures ----------------------------------------------------------------------------------------------------------


def chunk(kind, body, crc=None):
    value = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", value)


def png(width, height, depth, colour, rows, extra=b"", interlace=0, tail=True):
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)) +
            extra + chunk(b"IDAT", zlib.compress(rows, 9)) + (chunk(b"IEND", b"") if tail else b""))


def pngs():
    grey = b"".join(bytes([0]) + bytes(range(y, y + 8)) for y in range(8))
    filters = b"".join(bytes([y % 5]) + bytes(range(24)) for y in range(8))
    palette = chunk(b"PLTE", bytes(range(12)))
    seeds = {
        "grey": png(8, 8, 8, 0, grey),
        "rgb-filters": png(8, 8, 8, 2, filters),
        "rgba": png(4, 2, 8, 6, (b"\0" + bytes(16)) * 2),
        "grey-alpha": png(4, 2, 8, 4, (b"\0" + bytes(8)) * 2),
        "sixteen": png(2, 2, 16, 2, (b"\0" + bytes(range(12))) * 2),
        "bits": png(9, 2, 1, 0, b"\0\xaa\x80\0\x55\0"),
        "palette": png(4, 2, 2, 3, b"\0\x1b\0\xe4", palette),
        "palette-trns": png(4, 2, 2, 3, b"\0\x1b\0\xe4", palette + chunk(b"tRNS", b"\xff\0")),
        "palette-outside": png(4, 2, 4, 3, b"\0\xff\xff\0\xff\xff", palette),
        "palette-missing": png(4, 2, 2, 3, b"\0\x1b\0\xe4"),
        "interlaced": png(8, 8, 8, 0, b"".join(bytes(1 + w) for w, h in
                                               [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)] for _ in range(h)),
                          interlace=1),
        "text": png(8, 8, 8, 0, grey, chunk(b"tEXt", b"a\0b") + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(5000)))),
        "huge": png(60000, 60000, 8, 2, b""),
        "wide": png(2**31 - 1, 1, 8, 0, b""),
        "zero": png(0, 8, 8, 0, b""),
        "short-data": png(8, 8, 8, 0, grey[:20]),
        "long-data": png(8, 8, 8, 0, grey + bytes(500)),
        "no-end": png(8, 8, 8, 0, grey, tail=False),
        "bad-crc": png(8, 8, 8, 0, grey, chunk(b"gAMA", b"\0\0\0\1", crc=1)),
        "bad-depth": png(8, 8, 3, 0, grey),
        "signature": b"\x89PNG\r\n\x1a\n",
        "nothing": b"",
    }
    for name, seed in seeds.items():
        put("png", name, seed)


# --- ONNX --------------------------------------------------------------------------------------------------------------

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "onnx")


def varint(v):
    out = b""
    while v > 127:
        out, v = out + bytes([v & 127 | 128]), v >> 7
    return out + bytes([v])


def pb(k, v):
    """A protobuf field: numbers as varints, everything else as bytes."""
    if isinstance(v, int):
        return varint(k << 3) + varint(v & (1 << 64) - 1)
    v = v.encode() if isinstance(v, str) else v
    return varint(k << 3 | 2) + varint(len(v)) + v


def onnx_node(op, ins, outs, *attrs):
    return pb(1, b"".join(pb(1, i) for i in ins) + b"".join(pb(2, o) for o in outs) + pb(3, op + "_0") + pb(4, op) +
              b"".join(pb(5, a) for a in attrs))


def onnx_value(name, *dims):
    shape = b"".join(pb(1, pb(2, d) if isinstance(d, str) else pb(1, d)) for d in dims)
    return pb(1, name) + pb(2, pb(1, pb(1, 1) + pb(2, shape)))


def onnx_tensor(name, dims, data, kind=1):
    return pb(5, b"".join(pb(1, d) for d in dims) + pb(2, kind) + pb(8, name) + pb(9, data))


def onnx_ints(name, *values):
    return pb(1, name) + b"".join(pb(8, v) for v in values) + pb(20, 7)


def onnx_model(body, opset=13, out=("y", "N", 4), into=("x", "N", 4)):
    return pb(1, 8) + pb(7, body + pb(11, onnx_value(*into)) + pb(12, onnx_value(*out))) + pb(8, pb(2, opset))


def onnx():
    for name in sorted(os.listdir(GOLDEN)):
        path = os.path.join(GOLDEN, name)
        if name.endswith(".onnx") and os.path.getsize(path) < 9000:
            with open(path, "rb") as f:
                put("onnx", name[:-5], f.read())
    relu = onnx_node("Relu", ["x"], ["y"])
    deep = b""
    for _ in range(400):
        deep = onnx_node("If", ["x"], ["y"], pb(1, "then_branch") + pb(6, deep))
    i64 = lambda *v: struct.pack("<%dq" % len(v), *v)
    f32 = lambda *v: struct.pack("<%df" % len(v), *v)
    text = lambda name, s: pb(1, name) + pb(4, s) + pb(20, 3)
    external = pb(5, pb(1, 4) + pb(2, 1) + pb(8, "w") + pb(13, pb(1, "location") + pb(2, "../w.bin")) + pb(14, 1))
    seeds = {
        "relu": onnx_model(relu),
        "unknown-op": onnx_model(onnx_node("Mystery", ["x"], ["y"])),
        "if": onnx_model(onnx_node("If", ["x"], ["y"], pb(1, "then_branch") + pb(6, relu))),
        "deep": onnx_model(deep),
        "many-empty-nodes": onnx_model(pb(1, b"") * 4000),
        "opset-99": onnx_model(relu, 99),
        "huge-dims": onnx_model(relu + onnx_tensor("w", [1 << 62, 4, 1 << 62], b"")),
        "zero-dims": onnx_model(onnx_node("Concat", ["w", "w"], ["y"], pb(1, "axis") + pb(3, 1) + pb(20, 2)) +
                                onnx_tensor("w", [1 << 39, 0, 1], b"")),
        "huge-constant": onnx_model(onnx_node("ConstantOfShape", ["s"], ["c"]) + onnx_node("Add", ["x", "c"], ["y"]) +
                                    onnx_tensor("s", [2], i64(1 << 30, 1 << 30), 7)),
        "external": onnx_model(onnx_node("Add", ["x", "w"], ["y"]) + external),
        "twice": onnx_model(relu + relu),
        "loop": onnx_model(onnx_node("Add", ["y", "x"], ["y"])),
        "slice-extremes": onnx_model(onnx_node("Slice", ["x", "a", "b", "c", "d"], ["y"]) +
                                     onnx_tensor("a", [1], i64(-(1 << 63)), 7) + onnx_tensor("b", [1], i64((1 << 63) - 1), 7) +
                                     onnx_tensor("c", [1], i64(-1), 7) + onnx_tensor("d", [1], i64((1 << 63) - 1), 7)),
        "pads-extremes": onnx_model(onnx_node("Pad", ["x"], ["y"], onnx_ints("pads", 0, -(1 << 63), 0, (1 << 63) - 1)), 9),
        "range-zero": onnx_model(onnx_node("Range", ["a", "a", "a"], ["r"]) + onnx_node("Reshape", ["x", "r"], ["y"]) +
                                 onnx_tensor("a", [], i64(0), 7)),
        "divide-by-zero": onnx_model(onnx_node("Shape", ["x"], ["s"]) + onnx_node("Div", ["s", "a"], ["t"]) +
                                     onnx_node("Mod", ["s", "a"], ["u"]) + onnx_node("Reshape", ["x", "t"], ["y"]) +
                                     onnx_tensor("a", [], i64(0), 7)),
        "truncated": onnx_model(relu)[:-9],
        "nan-weight": onnx_model(onnx_node("Gemm", ["x", "w"], ["y"]) + onnx_tensor("w", [4, 4], f32(0, math.nan, *[1] * 14))),
        "infinite-weight": onnx_model(onnx_node("Gemm", ["x", "w"], ["y"]) + onnx_tensor("w", [4, 4], f32(*[1] * 15, math.inf))),
        "infinite-mask": onnx_model(onnx_node("Add", ["x", "w"], ["y"]) + onnx_tensor("w", [4], f32(0, 0, -math.inf, 0))),
        "scale-zero": onnx_model(onnx_node("QuantizeLinear", ["x", "s"], ["q"]) + onnx_node("DequantizeLinear", ["q", "s"], ["y"]) +
                                 onnx_tensor("s", [], f32(0))),
        "scales-of-x": onnx_model(onnx_node("QuantizeLinear", ["x", "s"], ["q"]) + onnx_node("DequantizeLinear", ["q", "s"], ["y"]) +
                                  onnx_tensor("s", [4], f32(1, 2, 3, 4))),
        "codes-of-16-bits": onnx_model(onnx_node("QuantizeLinear", ["x", "s"], ["q"], pb(1, "output_dtype") + pb(3, 4) + pb(20, 2)) +
                                       onnx_node("DequantizeLinear", ["q", "s"], ["y"]) + onnx_tensor("s", [], f32(1)), 21),
        "dynamic-codes": onnx_model(onnx_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]) +
                                    onnx_node("DequantizeLinear", ["q", "s", "z"], ["y"])),
        "block-extremes": onnx_model(onnx_node("DequantizeLinear", ["w", "s"], ["wf"], pb(1, "block_size") + pb(3, (1 << 63) - 1) + pb(20, 2),
                                               pb(1, "axis") + pb(3, -(1 << 63)) + pb(20, 2)) + onnx_node("MatMul", ["x", "wf"], ["y"]) +
                                     onnx_tensor("w", [4, 4], bytes(16), 3) + onnx_tensor("s", [1, 4], f32(1, 1, 1, 1)), 21),
        "nibbles-odd": onnx_model(onnx_node("DequantizeLinear", ["w", "s"], ["wf"]) + onnx_node("Add", ["x", "wf"], ["y"]) +
                                  onnx_tensor("w", [1, 3], b"\x21\x03", 22) + onnx_tensor("s", [], f32(0.5)), 21, ("y", "N", 3), ("x", "N", 3)),
        "nibbles-short": onnx_model(onnx_node("DequantizeLinear", ["w", "s"], ["wf"]) + onnx_node("Add", ["x", "wf"], ["y"]) +
                                    onnx_tensor("w", [4, 4], bytes(7), 21) + onnx_tensor("s", [], f32(0.5)), 21),
        "einsum-odd": onnx_model(onnx_node("Einsum", ["x", "x"], ["y"], text("equation", "ii,...i->...k"))),
        "einsum-long": onnx_model(onnx_node("Einsum", ["x", "x"], ["y"], text("equation", "ab,cd->abcdefghijklmnop"))),
        "tile-extremes": onnx_model(onnx_node("Tile", ["x", "r"], ["y"]) + onnx_tensor("r", [2], i64(1, (1 << 62) + 1), 7)),
        "scatter-outside": onnx_model(onnx_node("ScatterND", ["w", "i", "u"], ["c"]) + onnx_node("Add", ["x", "c"], ["y"]) +
                                      onnx_tensor("w", [4], f32(0, 0, 0, 0)) + onnx_tensor("i", [1, 1], i64(1 << 40), 7) + onnx_tensor("u", [1], f32(1))),
    }
    for name, data in seeds.items():
        put("onnx", name, data)


# --- archives ----------------------------------------------------------------------------------------------------------


def tar(members, form=tarfile.PAX_FORMAT):
    """members: (name, kind, data or link)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as t:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(data)
                t.addfile(info, io.BytesIO(data))
            else:
                info.linkname = data or ""
                t.addfile(info)
        end = t.offset
    return out.getvalue()[:end] + bytes(1024)  # without the padding to a whole record


def zips(members, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        for name, mode, data in members:
            info = zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0))
            info.external_attr = mode << 16
            info.compress_type = method
            z.writestr(info, data)
    return out.getvalue()


def zstd(data):
    """One frame of raw blocks; size field of two bytes, so 256..65791 bytes."""
    return (b"\x28\xb5\x2f\xfd\x60" + struct.pack("<H", len(data) - 256) +
            struct.pack("<I", 1 | len(data) << 3)[:3] + data)


def archives():
    reg, folder = tarfile.REGTYPE, tarfile.DIRTYPE
    good = tar([("m/", folder, None), ("m/config.json", reg, b"{}"), ("m/unet/w.safetensors", reg, st("{}"))])
    bomb = tar([("bomb", reg, bytes(3 << 20))])
    seeds = {
        "ok.tar": good,
        "ok.tar.gz": gzip.compress(good, mtime=0),
        "ok.tar.xz": lzma.compress(good),
        "ok.tar.zst": zstd(good),
        "ok.zip": zips([("m/", 0o40755, b""), ("m/config.json", 0o100644, b"{}" * 50)]),
        "ok-stored.zip": zips([("a", 0o100644, b"text")], zipfile.ZIP_STORED),
        "gnu-long.tar": tar([("d/" * 10 + "n" * 150, reg, b"x")], tarfile.GNU_FORMAT),
        "pax-long.tar": tar([("d/" * 10 + "\u00e9" * 100, reg, b"x")]),
        "slip.tar": tar([("../evil", reg, b"x")]),
        "absolute.tar": tar([("/etc/evil", reg, b"x")]),
        "symlink.tar": tar([("l", tarfile.SYMTYPE, "/tmp"), ("l/evil", reg, b"x")]),
        "hardlink.tar": tar([("h", tarfile.LNKTYPE, "/etc/passwd")]),
        "device.tar": tar([("d", tarfile.BLKTYPE, None)]),
        "fifo.tar": tar([("f", tarfile.FIFOTYPE, None)]),
        "sparse.tar": tar([("s", tarfile.GNUTYPE_SPARSE, None)], tarfile.GNU_FORMAT),
        "twice.tar": tar([("a/b", reg, b"x"), ("a/./b", reg, b"y")]),
        "under-file.tar": tar([("a", reg, b"x"), ("a/b", reg, b"y")]),
        "many.tar.xz": lzma.compress(tar([("%d" % k, reg, b"") for k in range(80)])),
        "bomb.tar.gz": gzip.compress(bomb, mtime=0),
        "bomb.tar.xz": lzma.compress(bomb),
        "cut.tar": good[:700],
        "cut.tar.gz": gzip.compress(good, mtime=0)[:100],
        "zeros.tar": bytes(1024),
        "slip.zip": zips([("../../evil", 0o100644, b"x")]),
        "backslash.zip": zips([("..\\evil", 0o100644, b"x")]),
        "symlink.zip": zips([("l", 0o120777, b"/etc/passwd")]),
        "bomb.zip": zips([("bomb", 0o100644, bytes(3 << 20))]),
        "cut.zip": zips([("a", 0o100644, b"text" * 100)])[:60],
        "nested.gz": gzip.compress(gzip.compress(gzip.compress(good, mtime=0), mtime=0), mtime=0),
        "not-tar.gz": gzip.compress(b"hello", mtime=0),
        "nothing": b"",
        "text": b"hello",
    }
    for name, seed in seeds.items():
        put("archive", name, seed)


# --- data sets -----------------------------------------------------------------------------------------------------


def idx(count, rows, columns, body=None):
    return struct.pack(">IIII", 0x803, count, rows, columns) + (bytes(range(count * rows * columns)) if body is None else body)


def idx_labels(labels, count=None):
    return struct.pack(">II", 0x801, len(labels) if count is None else count) + bytes(labels)


# One grey pixel block of 8 x 8, baseline: tables of the standard cut to what one block needs.
JPEG = bytes.fromhex(
    "ffd8ffdb0043000101010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101010101"
    "0101010101010101010101ffc0000b080008000801011100ffc40014000100000000000000000000000000000000ffc40014100100000000000000000000"
    "000000000000ffda0008010100003f003fffd9")


def datasets():
    def pair(images, labels):
        return b"\2" + struct.pack(">H", len(images)) + images + labels

    record = bytes([7]) + bytes(k & 255 for k in range(3072))
    seeds = {
        "cifar": b"\0\0\0" + record * 2,
        "cifar-cut": b"\0\0\0" + record[:-1],
        "cifar-nothing": b"\0\0\0",
        "idx": b"\1\0\0" + idx(2, 3, 4),
        "idx-pair": pair(idx(2, 3, 4), idx_labels([9, 0])),
        "idx-labels-short": pair(idx(2, 3, 4), idx_labels([9], 2)),
        "idx-labels-other": pair(idx(2, 3, 4), idx_labels([1, 2, 3])),
        "idx-huge": b"\1\0\0" + idx(2**32 - 1, 2**32 - 1, 2**32 - 1, b""),
        "idx-wraps": b"\1\0\0" + idx(2**31, 2**31, 4, b""),
        "idx-zero": b"\1\0\0" + idx(0, 28, 28),
        "idx-flat": b"\1\0\0" + idx(5, 0, 28),
        "idx-magic": b"\1\0\0" + idx_labels([1, 2]),
        "jpeg": b"\3\0\0" + JPEG,
        "jpeg-cut": b"\3\0\0" + JPEG[:-6],
        "jpeg-huge": b"\3\0\0" + JPEG.replace(bytes.fromhex("080008000801"), bytes.fromhex("08ffffffff01")),
        "jpeg-start": b"\3\0\0\xff\xd8\xff",
    }
    golden = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "data")
    for name in ("images.npy", "labels.npy", "fortran.npy", "objects.npy"):
        with open(os.path.join(golden, name), "rb") as f:
            seeds["npy-" + name[:-4]] = b"\4\0\0" + f.read()
    for name in ("gnu.tar", "pax.tar", "web.tar"):
        with open(os.path.join(golden, name), "rb") as f:
            seeds["tar-" + name[:-4]] = b"\5\0\0" + f.read().rstrip(b"\0")
    lists = [b'{"path": "a\\u0020b.png", "label": 3}\n{"image":"c","class":"9"}\n', b'label,path\n"x,""y",a b.png\nz,c\n', b"a b.png 3\nc.png 4\n",
             b"\1\0\2\0"]
    for kind, text in enumerate(lists):
        seeds["list-%d" % kind] = bytes([6, kind, 0]) + text
    for name, seed in seeds.items():
        put("dataset", name, seed)


# --- checkpoints of PyTorch ----------------------------------------------------------------------------------------
# Pickles come from Python's own pickler, over stand-ins that bear the names PyTorch's have.


def stand_in(module, name, what):
    if module not in sys.modules:
        sys.modules[module] = types.ModuleType(module)
    what.__module__, what.__qualname__, what.__name__ = module, name, name
    setattr(sys.modules[module], name, what)
    return what


def rebuild_tensor(*args):
    pass


def rebuild_parameter(*args):
    pass


class Storage:
    def __init__(self, kind, data, key=None):
        self.kind, self.data, self.key = kind, data, key


class Tensor:
    """storage, offset, size, stride; wrapped in a Parameter or not"""
    def __init__(self, storage, offset, size, stride, parameter=False):
        self.args, self.parameter = (storage, offset, size, stride, False, OrderedDict()), parameter

    def __reduce__(self):
        if self.parameter:
            inner = Tensor.__new__(Tensor)
            inner.args, inner.parameter = self.args, False
            return rebuild_parameter, (inner, True, OrderedDict())
        return rebuild_tensor, self.args


stand_in("torch._utils", "_rebuild_tensor_v2", rebuild_tensor)
stand_in("torch._utils", "_rebuild_parameter", rebuild_parameter)
FLOAT, HALF, LONG = (stand_in("torch", n, type(n, (), {})) for n in ("FloatStorage", "HalfStorage", "LongStorage"))
SIZES = {FLOAT: 4, HALF: 2, LONG: 8}


def torch_pickle(obj, protocol=2):
    """The pickle, and the storages in it by key."""
    out, storages = io.BytesIO(), {}

    class Pickler(pickle._Pickler):
        def persistent_id(self, x):
            if not isinstance(x, Storage):
                return None
            if x.key is None:
                x.key = str(len(storages))
            storages[x.key] = x
            return ("storage", x.kind, x.key, "cpu", len(x.data) // SIZES[x.kind])

    Pickler(out, protocol).dump(obj)
    return out.getvalue(), storages


def zip_stored(entries, crc=True, central=None, local=None, overlap=False, zip64=False):
    """Entries by our own hand: (name, data). central, local: changes (flags, method, name, size) to one header of entry 1."""
    out, directory, at = b"", b"", []
    for k, (name, data) in enumerate(entries):
        c, name = zlib.crc32(data) if crc else 0, name.encode()
        here = len(out)
        if overlap and k == 1:
            here = at[0]
        at.append(here)
        l = dict(flags=0, method=0, name=name, size=len(data))
        d = dict(l)
        if k == 1:
            l.update(local or {})
            d.update(central or {})
        head = struct.pack("<IHHHIIIIHH", 0x04034b50, 20, l["flags"], l["method"], 0, c, l["size"], l["size"], len(l["name"]), 0)
        head = head + l["name"]
        if here == len(out):
            pad = -(len(out) + len(head) + 4) % 64 + 4
            head = head[:28] + struct.pack("<H", pad) + head[30:] + struct.pack("<HH", 0x4246, pad - 4) + b"Z" * (pad - 4)
            out += head + data
        extra, size, offset = b"", d["size"], here
        if zip64:
            extra, size, offset = struct.pack("<HHQQQ", 1, 24, size, size, here), 0xffffffff, 0xffffffff
        directory += struct.pack("<IHHHHIIIIHHHHHII", 0x02014b50, 20, 20, d["flags"], d["method"], 0, c, size, size, len(d["name"]),
                                 len(extra), 0, 0, 0, 0, offset) + d["name"] + extra
    end, n = len(out), len(entries)
    tail = b""
    if zip64:
        tail = struct.pack("<IQHHIIQQQQ", 0x06064b50, 44, 45, 45, 0, 0, n, n, len(directory), end)
        tail += struct.pack("<IIQI", 0x07064b50, 0, end + len(directory), 1)
        n, end = 0xffff, 0xffffffff
    return out + directory + tail + struct.pack("<IHHHHIIH", 0x06054b50, 0, 0, n, n, len(directory), end, 0)


def torch_zip(obj, protocol=2, more=(), **options):
    body, storages = torch_pickle(obj, protocol)
    entries = [("m/data.pkl", body), *(("m/data/" + k, s.data) for k, s in storages.items()), ("m/version", b"3\n"), *more]
    return zip_stored(entries, **options)


def torch_stream(obj, protocol=2):
    magic, version, machine = 0x1950a86a20f9469cfc6c, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    body, storages = torch_pickle(obj, protocol)
    out = b"".join(pickle.dumps(x, protocol) for x in (magic, version, machine)) + body
    out += pickle.dumps(sorted(storages), protocol)
    for key in sorted(storages):
        s = storages[key]
        out += struct.pack("<Q", len(s.data) // SIZES[s.kind]) + s.data
    return out


def torches():
    floats = Storage(FLOAT, struct.pack("<6f", *range(6)))
    state = OrderedDict(w=Tensor(floats, 0, (2, 3), (3, 1)), turned=Tensor(floats, 0, (3, 2), (1, 3)),
                        h=Tensor(Storage(HALF, bytes(4)), 0, (2,), (1,), True), n=Tensor(Storage(LONG, bytes(8)), 0, (), ()))
    training = {"epoch": 3, "state_dict": OrderedDict(("module." + k, v) for k, v in state.items()), "ema": state, "lr": 0.1,
                "best": None, "big": 2**70, "names": ["a", ("b", 1)]}

    class Evil:
        def __init__(self, *call):
            self.call = call

        def __reduce__(self):
            return self.call

    def fresh(x):  # keys are given once to each storage; the same file every time
        for v in x.values():
            v.args[0].key = None
        return x

    for protocol in (2, 4):
        put("torch", f"ok-zip-p{protocol}", torch_zip(fresh(state), protocol))
        put("torch", f"ok-zip-unsummed-p{protocol}", torch_zip(fresh(state), protocol, crc=False))
        put("torch", f"ok-stream-p{protocol}", torch_stream(fresh(state), protocol))
        fresh(state)
        put("torch", f"ok-training-p{protocol}", torch_zip(training, protocol, crc=False))
        fresh(state)
        put("torch", f"ok-training-stream-p{protocol}", torch_stream(training, protocol))
    put("torch", "ok-zip64", torch_zip(fresh(state), zip64=True))
    put("torch", "ok-byteorder", torch_zip(fresh(state), more=[("m/byteorder", b"little")]))
    one = lambda: {"w": Tensor(Storage(FLOAT, bytes(16)), 0, (4,), (1,))}
    put("torch", "system", torch_zip({"w": Evil(os.system, ("true",))}))
    put("torch", "eval", torch_stream({"w": Evil(eval, ("1",))}))
    put("torch", "outside", torch_zip({"w": Tensor(Storage(FLOAT, bytes(16)), 2, (3,), (1,))}))
    put("torch", "repeated", torch_zip({"w": Tensor(Storage(FLOAT, bytes(16)), 0, (1 << 40,), (0,))}))
    put("torch", "big-endian", torch_zip(one(), more=[("m/byteorder", b"big")]))
    put("torch", "script", torch_zip(one(), more=[("m/constants.pkl", b"")]))
    put("torch", "twice", torch_zip(one(), more=[("m/data/0", bytes(16))]))
    put("torch", "dotdot", torch_zip(one(), more=[("m/../x", b"")]))
    put("torch", "absolute", torch_zip(one(), more=[("/m/x", b"")]))
    put("torch", "backslash", torch_zip(one(), more=[("m/..\\x", b"")]))
    put("torch", "two-folders", torch_zip(one(), more=[("n/x", b"")]))
    put("torch", "no-folder", torch_zip(one(), more=[("x", b"")]))
    put("torch", "compressed", torch_zip(one(), central={"method": 8}, local={"method": 8}))
    put("torch", "encrypted", torch_zip(one(), central={"flags": 1}, local={"flags": 1}))
    put("torch", "method-differs", torch_zip(one(), local={"method": 8}))
    put("torch", "name-differs", torch_zip(one(), local={"name": b"m/data/9"}))
    put("torch", "size-differs", torch_zip(one(), local={"size": 15}))
    put("torch", "past-end", torch_zip(one(), central={"size": 1 << 20}, local={"size": 1 << 20}))
    put("torch", "overlap", torch_zip(one(), overlap=True, central={"name": b"m/data.pkl"}))
    body, _ = torch_pickle(one())
    put("torch", "overlap-inside", zip_stored([("m/data.pkl", body + zip_stored([("m/data/0", bytes(16))])[:62] + bytes(16))]))
    put("torch", "storage-missing", zip_stored([("m/data.pkl", body), ("m/version", b"3")]))
    put("torch", "storage-short", zip_stored([("m/data.pkl", body), ("m/data/0", bytes(15))]))
    put("torch", "pickle-goes-on", zip_stored([("m/data.pkl", body + b"."), ("m/data/0", bytes(16))]))
    bad = bytearray(zip_stored([("m/data.pkl", body), ("m/data/0", bytes(16))]))
    bad[bad.index(bytes(16), bad.index(b"m/data/0"))] = 1
    put("torch", "checksum", bytes(bad))
    put("torch", "cut", torch_zip(one())[:-30])
    put("torch", "nothing-in-it", zip_stored([("m/data.pkl", pickle.dumps([1, 2], 2))]))
    put("torch", "self", zip_stored([("m/data.pkl", b"\x80\x02]q\0h\0ah\0a.")]))


# --- GGUF ----------------------------------------------------------------------------------------------------------


def gguf_text(s):
    s = s.encode()
    return struct.pack("<Q", len(s)) + s


def gguf(pairs, tensors, data=b"", version=3, n_tensors=None, n_pairs=None):
    """pairs: (key, type, bytes); tensors: (name, dims innermost first, type, offset)."""
    out = struct.pack("<IIQQ", 0x46554747, version, len(tensors) if n_tensors is None else n_tensors,
                      len(pairs) if n_pairs is None else n_pairs)
    for key, kind, value in pairs:
        out += gguf_text(key) + struct.pack("<I", kind) + value
    for name, dims, kind, offset in tensors:
        out += gguf_text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims)
        out += struct.pack("<IQ", kind, offset)
    return out + bytes(-len(out) % 32) + data


def ggufs():
    base = [("general.architecture", 8, gguf_text("quantd")), ("general.alignment", 4, struct.pack("<I", 32))]
    shape = [("quantd.shape.w", 9, struct.pack("<IQ4Q", 10, 4, 2, 16, 1, 2))]
    seeds = {
        "ok-empty": gguf(base, []),
        "ok-f32": gguf(base, [("a", [3], 0, 0)], struct.pack("<3f", 1, 2, 3) + bytes(20)),
        "ok-f16": gguf(base, [("a", [2, 2], 1, 0)], bytes(32)),
        "ok-q8": gguf(base + shape, [("w", [32, 2], 8, 0)], bytes(68 + 28)),
        "ok-q4": gguf(base, [("w", [32, 1], 2, 0)], b"\0\x3c" + bytes(range(16)) + bytes(14)),
        "ok-array": gguf(base + [("list", 9, struct.pack("<IQ", 8, 2) + gguf_text("a") + gguf_text("b"))], []),
        "version": gguf(base, [], version=2),
        "huge-counts": gguf(base, [], n_tensors=2**63, n_pairs=2**63),
        "huge-dims": gguf(base, [("a", [2**32, 2**32], 0, 0)]),
        "huge-text": gguf([("k", 8, struct.pack("<Q", 2**64 - 1))], []),
        "huge-array": gguf([("k", 9, struct.pack("<IQ", 4, 2**62))], []),
        "deep-array": gguf([("k", 9, struct.pack("<IQ", 9, 1) * 40)], []),
        "type": gguf(base, [("a", [32], 30, 0)], bytes(64)),
        "half-block": gguf(base, [("a", [31, 2], 8, 0)], bytes(96)),
        "outside": gguf(base, [("a", [8], 0, 32)], bytes(32)),
        "crooked": gguf(base, [("a", [8], 0, 4)], bytes(64)),
        "overlap": gguf(base, [("a", [8], 0, 0), ("b", [8], 0, 0)], bytes(32)),
        "twice": gguf(base, [("a", [8], 0, 0), ("a", [8], 0, 32)], bytes(64)),
        "five-dims": gguf(base, [("a", [1, 1, 1, 1, 1], 0, 0)], bytes(32)),
        "shape-other": gguf(base + [("quantd.shape.w", 9, struct.pack("<IQ4Q", 10, 4, 2**32, 2**32, 1, 2))], [("w", [32, 2], 8, 0)], bytes(96)),
        "shape-zero": gguf(base + [("quantd.shape.w", 9, struct.pack("<IQ3Q", 10, 3, 2**40, 2**40, 0))], [("w", [0], 0, 0)]),
        "cut": gguf(base, [("a", [8], 0, 0)])[:-9],
        "nothing": b"GGUF",
    }
    for name, seed in seeds.items():
        put("gguf", name, seed)


if __name__ == "__main__":
    clean()
    safetensors()
    bundles()
    configs()
    pngs()
    archives()
    onnx()
    datasets()
    torches()
    ggufs()
