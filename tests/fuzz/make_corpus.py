#!/usr/bin/env python3
"""make_corpus.py - write the seed inputs of the fuzz targets: small, valid or hostile, the same bytes every time.

Files named seed-* are made here and replaced; everything else in corpus/ (found by fuzzing) is left alone. Only Python's own
library is used; zstd frames are written by hand from raw blocks.
"""
import gzip
import io
import json
import lzma
import os
import struct
import tarfile
import zipfile
import zlib

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


if __name__ == "__main__":
    clean()
    safetensors()
    bundles()
    configs()
    pngs()
    archives()
