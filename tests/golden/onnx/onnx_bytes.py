"""ONNX files put together by hand: protobuf's wire format, and tensors in every way of storing them."""
import struct

import torch


def varint(v):
    v &= (1 << 64) - 1
    out = b""
    while v > 127:
        out, v = out + bytes([v & 127 | 128]), v >> 7
    return out + bytes([v])


def field(k, v):
    if isinstance(v, float):
        return varint(k << 3 | 5) + struct.pack("<f", v)
    if isinstance(v, int):
        return varint(k << 3) + varint(v)
    v = v.encode() if isinstance(v, str) else v
    return varint(k << 3 | 2) + varint(len(v)) + v


def tensor(name, t, how="raw"):
    types = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16, torch.float64: 11, torch.int64: 7, torch.int32: 6, torch.int8: 3,
             torch.uint8: 2, torch.bool: 9}
    b = b"".join(field(1, d) for d in t.shape) + field(2, types[t.dtype]) + field(8, name)
    flat = t.contiguous().flatten()
    raw = flat.view(torch.uint8 if t.dtype != torch.bool else t.dtype).numpy().tobytes() if t.dtype != torch.bfloat16 else \
        flat.view(torch.int16).numpy().tobytes()
    if how == "raw":
        return b + field(9, raw)
    if t.dtype == torch.float32:
        return b + field(4, raw)
    if t.dtype == torch.float64:
        return b + field(10, raw)
    if t.dtype == torch.int64:
        return b + field(7, b"".join(varint(v) for v in flat.tolist()))
    codes = flat.view(torch.int16).tolist() if t.dtype in (torch.float16, torch.bfloat16) else [int(v) for v in flat.tolist()]
    return b + field(5, b"".join(varint(v & 0xffff if t.dtype in (torch.float16, torch.bfloat16) else v) for v in codes))


def attribute(name, v):
    b = field(1, name)
    if isinstance(v, float):
        return b + field(2, v) + field(20, 1)
    if isinstance(v, int):
        return b + field(3, v) + field(20, 2)
    if isinstance(v, str):
        return b + field(4, v) + field(20, 3)
    if isinstance(v, torch.Tensor):
        return b + field(5, tensor("", v)) + field(20, 4)
    return b + b"".join(field(8, k) for k in v) + field(20, 7)


def node(op, ins, outs, **attrs):
    return b"".join(field(1, i) for i in ins) + b"".join(field(2, o) for o in outs) + field(3, outs[0] + "_node") + field(4, op) + \
        b"".join(field(5, attribute(k, v)) for k, v in attrs.items())


def value(name, kind, *dims):
    shape = b"".join(field(1, field(2, d) if isinstance(d, str) else field(1, d)) for d in dims)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, shape)))


def model(name, opset, nodes, inits, inputs, outputs):
    g = b"".join(field(1, n) for n in nodes) + field(2, "g") + b"".join(field(5, t) for t in inits) + \
        b"".join(field(11, v) for v in inputs) + b"".join(field(12, v) for v in outputs)
    with open(name + ".onnx", "wb") as f:
        f.write(field(1, 8) + field(7, g) + field(8, field(2, opset)))
