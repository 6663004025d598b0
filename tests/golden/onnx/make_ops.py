"""Writes ops_*.onnx and qdq_*.onnx, put together by hand, and what PyTorch makes of them (ops.safetensors).

    /usr/bin/python3 make_ops.py

Made with torch 1.13.0a0, seed 20241005. In ops.safetensors "<file>/in/<input>" and "<file>/out/<output>". Codes are worked out in double
precision as the operators' definitions have it.
"""
import json
import math
import struct

import torch
import torch.nn.functional as F

from onnx_bytes import field, model, node, tensor, value

torch.manual_seed(20241005)
golden = {}
FLOAT, UINT8, INT8, INT64 = 1, 2, 3, 7


def case(name, opset, nodes, inits, ins, outs):
    """ins, outs: {name: tensor}; the first dim of every input is open."""
    model(name, opset, nodes, [tensor(k, v) if isinstance(v, torch.Tensor) else v for k, v in inits.items()],
          [value(k, UINT8 if v.dtype == torch.uint8 else FLOAT, "N", *v.shape[1:]) for k, v in ins.items()],
          [value(k, FLOAT, *["N"] * v.dim()) for k, v in outs.items()])
    for k, v in ins.items():
        golden["%s/in/%s" % (name, k)] = v.contiguous()
    for k, v in outs.items():
        golden["%s/out/%s" % (name, k)] = v.float().contiguous()


def i64(*v):
    return torch.tensor(v, dtype=torch.int64)


# --- functions of one value ---

x = torch.randn(3, 4, 5) * 2
x[0, 0, 0], x[1, 1, 1] = 200.0, -200.0
slope = torch.rand(4, 1)
functions = {
    "elu": ("Elu", dict(alpha=1.5), F.elu(x, 1.5)), "selu": ("Selu", {}, F.selu(x)), "celu": ("Celu", dict(alpha=0.7), F.celu(x, 0.7)),
    "softplus": ("Softplus", {}, F.softplus(x)), "mish": ("Mish", {}, F.mish(x)), "softsign": ("Softsign", {}, F.softsign(x)),
    "threshold": ("ThresholdedRelu", dict(alpha=0.6), torch.where(x > 0.6, x, torch.zeros(()))), "sign": ("Sign", {}, x.sign()),
    "hardswish": ("HardSwish", {}, F.hardswish(x)), "hardsigmoid": ("HardSigmoid", dict(alpha=1 / 6), F.hardsigmoid(x)),
    "leaky": ("LeakyRelu", dict(alpha=0.3), F.leaky_relu(x, 0.3)), "gelu": ("Gelu", {}, F.gelu(x)),
    "length": ("LpNormalization", dict(axis=1), x / x.norm(dim=1, keepdim=True)), "neg": ("Neg", {}, -x),
    "size": ("LpNormalization", dict(axis=-1, p=1), x / x.abs().sum(-1, keepdim=True)),
}
case("ops_functions", 20, [node(op, ["x"], [k], **a) for k, (op, a, _) in functions.items()] +
     [node("PRelu", ["x", "slope"], ["prelu"]), node("Clip", ["x", "", "top"], ["held"])],
     {"slope": slope, "top": torch.tensor(0.5)}, {"x": x},
     {**{k: v for k, (_, _, v) in functions.items()}, "prelu": torch.where(x < 0, x * slope, x), "held": x.clamp(max=0.5)})

# --- truth ---

x, y = torch.randn(3, 4, 4), torch.randn(3, 4, 4)
y[:, 1] = x[:, 1]
mask = torch.tril(torch.ones(4, 4, dtype=torch.bool))
inf = torch.tensor(-math.inf)
masked = torch.where(mask, x, inf)
case("ops_truth", 16, [
    node("Greater", ["x", "y"], ["gt"]), node("Less", ["x", "y"], ["lt"]), node("Equal", ["x", "y"], ["eq"]),
    node("LessOrEqual", ["x", "y"], ["le"]), node("GreaterOrEqual", ["x", "zero"], ["ge"]), node("And", ["gt", "ge"], ["and"]),
    node("Or", ["lt", "mask"], ["or"]), node("Xor", ["le", "ge"], ["xor"]), node("Not", ["eq"], ["not"]), node("Relu", ["x"], ["r"]),
    node("Cast", ["r"], ["truth"], to=9), node("Where", ["and", "x", "y"], ["a"]), node("Where", ["or", "y", "zero"], ["b"]),
    node("Cast", ["xor"], ["c"], to=1), node("Cast", ["not"], ["d"], to=1), node("Cast", ["truth"], ["e"], to=1),
    node("Where", ["mask", "x", "inf"], ["m"]), node("Softmax", ["m"], ["f"], axis=-1), node("Trilu", ["x", "one"], ["g"]),
    node("Trilu", ["x"], ["h"], upper=0)],
     {"zero": torch.tensor(0.0), "mask": mask, "inf": inf, "one": i64(1).squeeze()}, {"x": x, "y": y},
     {"a": torch.where((x > y) & (x >= 0), x, y), "b": torch.where((x < y) | mask, y, torch.zeros(())), "c": ((x <= y) ^ (x >= 0)).float(),
      "d": (x != y).float(), "e": (x > 0).float(), "f": masked.softmax(-1), "g": torch.triu(x, 1), "h": torch.tril(x)})

# --- many to one ---

x = torch.randn(3, 5, 4, 6)
reductions = {
    "max": ("ReduceMax", (1, 3), 1, x.amax((1, 3), True)), "max_flat": ("ReduceMax", (2,), 0, x.amax(2)), "min": ("ReduceMin", (-1, -2), 0, x.amin((2, 3))),
    "sum": ("ReduceSum", (1,), 0, x.sum(1)), "l1": ("ReduceL1", (3,), 1, x.abs().sum(3, True)), "l2": ("ReduceL2", (1, 2), 0, x.norm(dim=(1, 2))),
    "squares": ("ReduceSumSquare", (2, 3), 1, (x * x).sum((2, 3), True)), "lse": ("ReduceLogSumExp", (1,), 1, x.logsumexp(1, True)),
    "lse_flat": ("ReduceLogSumExp", (1, 2), 0, x.logsumexp((1, 2))), "mean": ("ReduceMean", (2, 3), 0, x.mean((2, 3))),
}
case("ops_reduce", 18, [node(op, ["x", k + "_axes"], [k], keepdims=keep) for k, (op, _, keep, _) in reductions.items()] +
     [node("Exp", ["x"], ["e"]), node("ReduceLogSum", ["e", "max_axes"], ["log"], keepdims=0), node("Mean", ["x", "e", "x"], ["three"]),
      node("GlobalMaxPool", ["x"], ["pool"]), node("LRN", ["x"], ["lrn"], size=3, alpha=0.2, beta=0.6, bias=1.5),
      node("LRN", ["x"], ["lrn_even"], size=4)],
     {k + "_axes": i64(*v[1]) for k, v in reductions.items()}, {"x": x},
     {**{k: v[3] for k, v in reductions.items()}, "log": x.logsumexp((1, 3)), "three": (2 * x + x.exp()) / 3, "pool": x.amax((2, 3), True),
      "lrn": F.local_response_norm(x, 3, 0.2, 0.6, 1.5), "lrn_even": x / (1 + 1e-4 * F.avg_pool3d(F.pad((x * x).unsqueeze(1), (0, 0, 0, 0, 1, 2)), (4, 1, 1), 1).squeeze(1)) ** 0.75})

# --- sizes ---

x, line = torch.randn(3, 2, 5, 6), torch.randn(3, 2, 7)
half, scales = dict(coordinate_transformation_mode="pytorch_half_pixel"), torch.tensor([1.0, 1.0, 2.0, 1.5])
case("ops_resize", 18, [
    node("Resize", ["x", "", "", "s79"], ["cubic"], mode="cubic", **half),
    node("Resize", ["x", "", "", "s79"], ["cubic_corners"], mode="cubic", coordinate_transformation_mode="align_corners"),
    node("Resize", ["x", "", "scales"], ["linear"], mode="linear"),
    node("Resize", ["x", "", "", "last"], ["corners"], mode="linear", coordinate_transformation_mode="align_corners", axes=[2, -1]),
    node("Resize", ["x", "", "two"], ["nearest"], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor", axes=[3]),
    node("Resize", ["line", "", "", "s11"], ["longer"], mode="linear"),
    node("Resize", ["line", "", "times3"], ["repeated"], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
     {"s79": i64(3, 2, 7, 9), "scales": scales, "last": i64(8, 4), "two": torch.tensor([2.0]), "s11": i64(3, 2, 11), "times3": torch.tensor([1.0, 1.0, 3.0])},
     {"x": x, "line": line},
     {"cubic": F.interpolate(x, (7, 9), mode="bicubic", align_corners=False), "cubic_corners": F.interpolate(x, (7, 9), mode="bicubic", align_corners=True),
      "linear": F.interpolate(x, scale_factor=(2.0, 1.5), mode="bilinear", align_corners=False),
      "corners": F.interpolate(x, (8, 4), mode="bilinear", align_corners=True), "nearest": F.interpolate(x, scale_factor=(1.0, 2.0), mode="nearest"),
      "longer": F.interpolate(line, 11, mode="linear", align_corners=False), "repeated": F.interpolate(line, scale_factor=3.0, mode="nearest")})

# --- sums of products ---

a, b, w = torch.randn(3, 4, 5), torch.randn(3, 6, 5), torch.randn(5, 2, 3)
equations = {"scores": ("bid,bjd->bij", "a b"), "implied": ("bid, bjd", "a b"), "heads": ("bid,dhk->bhik", "a w"), "outer": ("bi...,bj...->bji...", "a b"),
             "summed": ("bid,bjd->bd", "a b"), "turned": ("bid->dbi", "a"), "alone": ("b i d -> b", "a"), "dots": ("...d,dhk->...k", "a w")}
case("ops_einsum", 13, [node("Einsum", ins.split(), [k], equation=e) for k, (e, ins) in equations.items()], {"w": w}, {"a": a, "b": b},
     {k: torch.einsum(e, *[{"a": a, "b": b, "w": w}[i] for i in ins.split()]) for k, (e, ins) in equations.items()})

# --- borders, copies, corners of constants ---

x = torch.randn(3, 4, 4, 6)
pads = i64(0, 0, 1, 2, 0, 0, 2, 1)
index = torch.tensor([[0, 1], [2, 3]])
scattered = torch.zeros(4, 6)
scattered[0, 1], scattered[2, 3] = 5.0, 7.0
triangle = torch.triu(torch.ones(4, 6)).cumsum(1)
w, b = torch.randn(4), torch.randn(4)
case("ops_places", 19, [
    node("Pad", ["x", "pads", "value"], ["constant"]), node("Pad", ["x", "pads"], ["reflect"], mode="reflect"),
    node("Pad", ["x", "pads"], ["edge"], mode="edge"), node("Pad", ["x", "pads"], ["wrap"], mode="wrap"),
    node("Tile", ["x", "repeats"], ["tile"]), node("DepthToSpace", ["x"], ["dcr"], blocksize=2),
    node("DepthToSpace", ["x"], ["crd"], blocksize=2, mode="CRD"), node("SpaceToDepth", ["x"], ["depth"], blocksize=2),
    node("InstanceNormalization", ["x", "w", "b"], ["norm"], epsilon=1e-3),
    node("ConstantOfShape", ["shape46"], ["zeros"]), node("ScatterND", ["zeros", "index", "updates"], ["scattered"]),
    node("Add", ["x", "scattered"], ["added"]), node("GatherND", ["scattered", "index"], ["found"]), node("ReduceMax", ["found"], ["most"], keepdims=0),
    node("ConstantOfShape", ["shape46"], ["ones"], value=torch.ones(1)), node("Trilu", ["ones"], ["upper"]), node("CumSum", ["upper", "one"], ["sums"]),
    node("Mul", ["x", "sums"], ["rows"]), node("Mul", ["rows", "most"], ["weighed"]), node("OneHot", ["hot", "four", "onoff"], ["hots"]),
    node("MatMul", ["hots", "x"], ["picked"]), node("NonZero", ["scattered"], ["where"]), node("Gather", ["where", "zero"], ["row_numbers"]),
    node("Gather", ["x", "row_numbers"], ["chosen"], axis=2)],
     {"pads": pads, "value": torch.tensor(0.7), "repeats": i64(1, 2, 1, 3), "w": w, "b": b, "shape46": i64(4, 6), "index": index,
      "updates": torch.tensor([5.0, 7.0]), "one": i64(1).squeeze(), "hot": i64(2, 0), "four": i64(4).squeeze(), "onoff": torch.tensor([0.5, 2.0]),
      "zero": i64(0).squeeze()}, {"x": x},
     {"constant": F.pad(x, (2, 1, 1, 2), value=0.7), "reflect": F.pad(x, (2, 1, 1, 2), mode="reflect"), "edge": F.pad(x, (2, 1, 1, 2), mode="replicate"),
      "wrap": F.pad(x, (2, 1, 1, 2), mode="circular"), "tile": x.repeat(1, 2, 1, 3), "dcr": x.reshape(3, 2, 2, 1, 4, 6).permute(0, 3, 4, 1, 5, 2).reshape(3, 1, 8, 12),
      "crd": F.pixel_shuffle(x, 2), "depth": x.reshape(3, 4, 2, 2, 3, 2).permute(0, 3, 5, 1, 2, 4).reshape(3, 16, 2, 3), "norm": F.instance_norm(x, None, None, w, b, eps=1e-3),
      "added": x + scattered, "weighed": x * triangle * 7.0, "picked": (F.one_hot(i64(2, 0), 4) * 1.5 + 0.5).float() @ x, "chosen": x[:, :, [0, 2]]})


# --- codes: QuantizeLinear and DequantizeLinear around layers, as onnxruntime, TensorRT and others write them ---

RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127)}


def quant(v, scale, zero):
    """Codes of v in double precision; scale, zero broadcast."""
    lo, hi = RANGES[zero.dtype]
    return (torch.round(v.double() / scale.double()) + zero.double()).clamp(lo, hi)


def real(codes, scale, zero):
    return (codes.double() - zero.double()) * scale.double()


def across(t, rank, axis):
    return t.reshape([-1 if k == axis else 1 for k in range(rank)])


def coded(shape, axis, dtype=torch.int8):
    """A weight as codes with a scale for each index of axis, None = one for all."""
    lo, hi = RANGES[dtype]
    n = 1 if axis is None else shape[axis]
    zero = torch.zeros(n, dtype=dtype) if dtype == torch.int8 else torch.full((n,), 128, dtype=dtype)
    scale = 0.004 + torch.rand(n) * 0.01
    codes = torch.randint(lo, hi + 1, shape).to(dtype)
    if axis is None:
        return codes, scale[0], zero[0], real(codes, scale, zero)
    return codes, scale, zero, real(codes, across(scale, len(shape), axis), across(zero, len(shape), axis))


def pair(name, scale, zero, out):
    return [node("QuantizeLinear", [name, scale, zero], [out + "_q"]), node("DequantizeLinear", [out + "_q", scale, zero], [out])]


# onnxruntime's static quantization of conv, relu, residual add, pool, gemm: uint8 activations, int8 weights by channel, int32 bias.
# No sum of codes lies half way between two: single and double precision round alike.
x = torch.randn(3, 4, 6, 6)
sx, zx, s1, z1, s2, z2 = torch.tensor(0.03), torch.tensor(120, dtype=torch.uint8), torch.tensor(0.0511), torch.tensor(3, dtype=torch.uint8), torch.tensor(0.0637), torch.tensor(40, dtype=torch.uint8)
w1, w1s, w1z, w1r = coded((8, 4, 3, 3), 0)
w2, w2s, w2z, w2r = coded((8, 2, 3, 3), None)  # of 4 groups
w3, w3s, w3z, w3r = coded((5, 8), 0)
b1 = torch.randint(-2000, 2000, (8,), dtype=torch.int32)
b1s = sx * w1s
q = real(quant(x, sx, zx), sx, zx)
c = F.relu(F.conv2d(q, w1r, b1.double() * b1s.double(), padding=1))
c = real(quant(c, s1, z1), s1, z1)
d = F.conv2d(c, w2r, None, padding=1, groups=4)
d = real(quant(d, s2, z2), s2, z2)
e = real(quant(c + d, s2, z2), s2, z2)
g = real(quant(e.mean((2, 3)), s2, z2), s2, z2)
case("qdq_static", 13, pair("x", "sx", "zx", "xq") + [
    node("DequantizeLinear", ["w1", "w1s", "w1z"], ["w1f"], axis=0), node("DequantizeLinear", ["b1", "b1s", "b1z"], ["b1f"], axis=0),
    node("Conv", ["xq", "w1f", "b1f"], ["c"], pads=[1, 1, 1, 1]), node("Relu", ["c"], ["cr"])] + pair("cr", "s1", "z1", "cq") + [
    node("DequantizeLinear", ["w2", "w2s", "w2z"], ["w2f"]), node("Conv", ["cq", "w2f"], ["d"], pads=[1, 1, 1, 1], group=4)] + pair("d", "s2", "z2", "dq") +
     [node("Add", ["cq", "dq"], ["e"])] + pair("e", "s2", "z2", "eq") + [node("GlobalAveragePool", ["eq"], ["p"]), node("Flatten", ["p"], ["pf"])] +
     pair("pf", "s2", "z2", "pq") + [node("DequantizeLinear", ["w3", "w3s", "w3z"], ["w3f"], axis=0), node("Gemm", ["pq", "w3f", "b3"], ["y"], transB=1)],
     {"sx": sx, "zx": zx, "s1": s1, "z1": z1, "s2": s2, "z2": z2, "w1": w1, "w1s": w1s, "w1z": w1z, "w2": w2, "w2s": w2s, "w2z": w2z, "w3": w3, "w3s": w3s,
      "w3z": w3z, "b1": b1, "b1s": b1s, "b1z": torch.zeros(8, dtype=torch.int32), "b3": torch.ones(5) * 0.25}, {"x": x},
     {"y": F.linear(g, w3r, torch.ones(5).double() * 0.25)})

# MatMul by [K, N] with a scale for each column, uint8 weights with zeros in the middle, signed activations; a weight nobody multiplies codes
# with; codes that a Transpose and a Reshape move.
x = torch.randn(3, 5, 6)
s, z = torch.tensor(0.02), torch.tensor(0, dtype=torch.int8)
wa, was, waz, war = coded((6, 4), 1)
wb, wbs, wbz, wbr = coded((6, 4), None, torch.uint8)
wc, wcs, wcz, wcr = coded((4, 6), 0)
wd, wds, wdz, wdr = coded((6, 4), 1, torch.uint8)
wd[0, 0], wdz[:] = 255, 3  # less its zero it does not fit 8 bits
wdr = real(wd, across(wds, 2, 1), across(wdz, 2, 1))
bias = torch.randn(4)
q = real(quant(x, s, z), s, z)
case("qdq_matmul", 13, pair("x", "s", "z", "xq") + [
    node("DequantizeLinear", ["wa", "was", "waz"], ["waf"], axis=1), node("MatMul", ["xq", "waf"], ["a"]),
    node("DequantizeLinear", ["wb", "wbs", "wbz"], ["wbf"]), node("MatMul", ["xq", "wbf"], ["b0"]), node("Add", ["b0", "bias"], ["b"]),
    node("DequantizeLinear", ["wc", "wcs", "wcz"], ["wcf"], axis=0), node("Transpose", ["wcf"], ["wct"], perm=[1, 0]), node("MatMul", ["xq", "wct"], ["c"]),
    node("MatMul", ["x", "waf"], ["plain"]), node("DequantizeLinear", ["wd", "wds", "wdz"], ["wdf"], axis=1), node("MatMul", ["xq", "wdf"], ["d"])],
     {"s": s, "z": z, "wa": wa, "was": was, "waz": waz, "wb": wb, "wbs": wbs, "wbz": wbz, "wc": wc, "wcs": wcs, "wcz": wcz, "wd": wd, "wds": wds, "wdz": wdz,
      "bias": bias}, {"x": x},
     {"a": q @ war, "b": q @ wbr + bias.double(), "c": q @ wcr.T, "plain": x.double() @ war, "d": q @ wdr})

# Quantization aware training: float weights go through a pair too. A line of samples; an axis with a scale for each index; nobody but the
# way back reads the first pair's codes, and a layer and an addition share the second's.
x = torch.randn(3, 4, 9)
s, z, ws, wz = torch.tensor(0.02), torch.tensor(0, dtype=torch.int8), torch.rand(6) * 0.01 + 0.005, torch.zeros(6, dtype=torch.int8)
w = torch.randn(6, 4, 3) * 0.5
wr = real(quant(w, across(ws, 3, 0), across(wz, 3, 0)), across(ws, 3, 0), across(wz, 3, 0))
q = real(quant(x, s, z), s, z)
r = real(quant(q.relu(), s, z), s, z)
case("qdq_aware", 13, pair("x", "s", "z", "xq") + [node("Relu", ["xq"], ["r"])] + pair("r", "s", "z", "rq") + [
    node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=0), node("DequantizeLinear", ["wq", "ws", "wz"], ["wf"], axis=0),
    node("Conv", ["rq", "wf", "b"], ["c"], pads=[1, 1], strides=[2]), node("Add", ["rq", "x"], ["sum"])],
     {"s": s, "z": z, "ws": ws, "wz": wz, "w": w, "b": torch.ones(6) * 0.5}, {"x": x},
     {"c": F.conv1d(r, wr, torch.ones(6).double() * 0.5, 2, 1), "sum": r + x})


def nibbles(name, kind, codes):
    """A tensor of 4-bit codes, two to a byte, low half first."""
    flat = [int(v) & 15 for v in codes.flatten()]
    flat += [0] * (len(flat) % 2)
    return b"".join(field(1, d) for d in codes.shape) + field(2, kind) + field(8, name) + \
        field(9, bytes(flat[k] | flat[k + 1] << 4 for k in range(0, len(flat), 2)))


# Opset 21: weights of 4 bits in blocks along the rows of MatMul, signed and not; a bare pair of 4 bits.
UINT4, INT4 = 21, 22
x = torch.randn(3, 5, 32)
s, z = torch.tensor(0.02), torch.tensor(128, dtype=torch.uint8)
wa, wb = torch.randint(-8, 8, (32, 7)), torch.randint(0, 16, (32, 7))
sa, sb, zb = torch.rand(2, 7) * 0.05 + 0.02, torch.rand(4, 7) * 0.05 + 0.02, torch.randint(7, 9, (4, 7))
war, wbr = wa.double() * sa.double().repeat_interleave(16, 0), (wb - zb.repeat_interleave(8, 0)).double() * sb.double().repeat_interleave(8, 0)
q = real(quant(x, s, z), s, z)
four = (torch.round(x.double() / 0.25).clamp(-8, 7)) * 0.25
case("qdq_blocks", 21, pair("x", "s", "z", "xq") + [
    node("DequantizeLinear", ["wa", "sa"], ["waf"], axis=0, block_size=16), node("MatMul", ["xq", "waf"], ["a"]),
    node("DequantizeLinear", ["wb", "sb", "zb"], ["wbf"], axis=0, block_size=8), node("MatMul", ["xq", "wbf"], ["b"]),
    node("QuantizeLinear", ["x", "quarter"], ["x4"], output_dtype=INT4), node("DequantizeLinear", ["x4", "quarter"], ["c"])],
     {"s": s, "z": z, "wa": nibbles("wa", INT4, wa), "wb": nibbles("wb", UINT4, wb), "sa": sa, "sb": sb, "zb": nibbles("zb", UINT4, zb),
      "quarter": torch.tensor(0.25)}, {"x": x}, {"a": q @ war, "b": q @ wbr, "c": four})

# Operators on codes themselves.
x = torch.randn(3, 3, 6, 5)
sx, zx, sy, zy = torch.tensor(0.03), torch.tensor(110, dtype=torch.uint8), torch.tensor(0.04), torch.tensor(100, dtype=torch.uint8)
w, ws, wz, wr = coded((4, 3, 3, 3), 0)
b = torch.randint(-3000, 3000, (4,), dtype=torch.int32)
m, ms, mz, mr = coded((5, 6), None, torch.uint8)
codes = quant(x, sx, zx)
y = F.conv2d(real(codes, sx, zx), wr, b.double() * (sx * ws).double(), padding=1)
y = real(quant(y, sy, zy), sy, zy)
p = real(quant(y @ mr, sx, zx), sx, zx)
sums = F.conv2d(codes - zx.double(), w.double() - wz[0].double(), stride=2)
products = (codes - zx.double()) @ (m.double() - mz.double())
case("qdq_operators", 13, [
    node("QuantizeLinear", ["x", "sx", "zx"], ["q"]), node("QLinearConv", ["q", "sx", "zx", "w", "ws", "wz", "sy", "zy", "b"], ["c"], pads=[1, 1, 1, 1]),
    node("QLinearMatMul", ["c", "sy", "zy", "m", "ms", "mz", "sx", "zx"], ["p"]), node("DequantizeLinear", ["p", "sx", "zx"], ["out"]),
    node("ConvInteger", ["q", "w", "zx", "w0"], ["i"], strides=[2, 2]), node("Cast", ["i"], ["sums"], to=1),
    node("MatMulInteger", ["q", "m", "zx", "mz"], ["j"]), node("Cast", ["j"], ["jf"], to=1), node("Mul", ["jf", "sx"], ["products"])],
     {"sx": sx, "zx": zx, "sy": sy, "zy": zy, "w": w, "ws": ws, "wz": wz, "w0": wz[0], "b": b, "m": m, "ms": ms, "mz": mz}, {"x": x},
     {"out": p, "sums": sums, "products": products * sx.double()})

# --- all answers in one file ---

header, data = {}, b""
for k in sorted(golden):
    t = golden[k]
    raw = t.numpy().tobytes()
    header[k] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [len(data), len(data) + len(raw)]}
    data += raw
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open("ops.safetensors", "wb") as f:
    f.write(struct.pack("<Q", len(text)) + text + data)
print("%d files" % len({k.split("/")[0] for k in golden}))
