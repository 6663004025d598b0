"""Writes ops_golden.h: one small case for each way an operator is used, answered by PyTorch.

    /usr/bin/python3 make_ops.py > ops_golden.h

Made with torch 1.13.0a0 and numpy 1.24.2, seed 20240607. Inputs are float32; answers of sums are computed in float64 and
rounded once, so that they judge our loops and not torch's. Codes and scales follow qncd.md 3.1 in float32.
"""
import math
import sys

import numpy as np
import torch
import torch.nn.functional as F

torch.manual_seed(20240607)
rng = np.random.default_rng(20240607)
cases = []


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float32)


def codes(lo, hi, *shape):
    return torch.tensor(rng.integers(lo, hi + 1, size=shape), dtype=torch.float32)


def d(t):
    return None if t is None else t.double()


def case(what, op, inputs, out, tol=2e-6, out_dtype="f32", **attrs):
    """inputs: tensors (f32) or (dtype, tensor); None = left out. tol: of the largest value; 0 = exact."""
    ins = [("none", None) if i is None else i if isinstance(i, tuple) else ("f32", i) for i in inputs]
    cases.append((what, op, ins, attrs, out_dtype, out.float(), tol))


def conv(x, w, b, stride=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1), groups=1):
    t, l, bo, r = pads
    return F.conv2d(F.pad(d(x), (l, r, t, bo)), d(w), d(b), stride, 0, dilation, groups)


def conv_case(what, x, w, b, **a):
    case("conv2d " + what, "conv2d", [x, w] + ([b] if b is not None else []), conv(x, w, b, **a), **a)


conv_case("plain", normal(2, 3, 5, 6), normal(4, 3, 3, 3), normal(4))
conv_case("1x1 without bias", normal(2, 5, 3, 4), normal(3, 5, 1, 1), None)
conv_case("stride 2, pad 1", normal(1, 2, 7, 8), normal(3, 2, 3, 3), normal(3), stride=(2, 2), pads=(1, 1, 1, 1))
conv_case("asymmetric pads", normal(1, 2, 5, 4), normal(2, 2, 3, 2), normal(2), pads=(0, 1, 2, 3))
conv_case("downsample pads", normal(1, 2, 6, 6), normal(2, 2, 3, 3), normal(2), stride=(2, 2), pads=(0, 0, 1, 1))
conv_case("groups", normal(2, 4, 5, 5), normal(6, 2, 3, 3), normal(6), groups=2, pads=(1, 1, 1, 1))
conv_case("depthwise", normal(1, 4, 5, 5), normal(4, 1, 3, 3), normal(4), groups=4, stride=(1, 2))
conv_case("dilation", normal(1, 2, 9, 8), normal(2, 2, 3, 2), normal(2), dilation=(2, 3), pads=(1, 2, 2, 1), stride=(2, 1))
conv_case("wider than one tile", normal(1, 1, 2, 140), normal(1, 1, 1, 5), normal(1), pads=(0, 2, 0, 2))
conv_case("pads larger than the window", normal(1, 1, 2, 2), normal(1, 1, 2, 2), normal(1), pads=(3, 0, 0, 3))

x = normal(1, 2, 6, 7)
u = normal(1, 2, 2, 3)
case("upsample 2", "upsample", [u], F.interpolate(u, scale_factor=2, mode="nearest"), tol=0, factor=(2, 2))
case("upsample 3 x 1", "upsample", [u], F.interpolate(u, scale_factor=(3, 1), mode="nearest"), tol=0, factor=(3, 1))
case("avg_pool 2", "avg_pool", [x], F.avg_pool2d(d(x), 2), kernel=(2, 2), stride=(2, 2))
case("avg_pool padded", "avg_pool", [x], F.avg_pool2d(d(x), 3, 2, 1), kernel=(3, 3), stride=(2, 2), pads=(1, 1, 1, 1))
case("avg_pool padded, pad not counted", "avg_pool", [x], F.avg_pool2d(d(x), 3, 2, 1, count_include_pad=False), kernel=(3, 3),
     stride=(2, 2), pads=(1, 1, 1, 1), count_pad=0)
case("max_pool padded", "max_pool", [x - 5], F.max_pool2d(x - 5, 3, 2, 1), tol=0, kernel=(3, 3), stride=(2, 2), pads=(1, 1, 1, 1))
case("max_pool asymmetric", "max_pool", [x], F.max_pool2d(F.pad(x, (1, 0, 0, 1), value=-math.inf), (2, 3), (1, 2)), tol=0, kernel=(2, 3),
     stride=(1, 2), pads=(0, 1, 1, 0))
case("global_avg_pool", "global_avg_pool", [x], d(x).mean((2, 3), keepdim=True))

w, b = normal(6), normal(6)
x = normal(2, 6, 3, 2) * 3 + 1
case("group_norm", "group_norm", [x, w, b], F.group_norm(d(x), 3, d(w), d(b), 1e-6), groups=3, eps=1e-6)
case("group_norm bare", "group_norm", [x], F.group_norm(d(x), 2, eps=1e-5), groups=2)
case("group_norm bias only", "group_norm", [x, None, b], F.group_norm(d(x), 1, torch.ones(6).double(), d(b), 1e-5), groups=1)
x2 = normal(3, 6)
case("group_norm rank 2", "group_norm", [x2, w, b], F.group_norm(d(x2), 2, d(w), d(b), 1e-5), groups=2)
x3 = normal(2, 6, 5) + 1000
case("group_norm far from zero", "group_norm", [x3, w, b], F.group_norm(d(x3), 2, d(w), d(b), 1e-5), groups=2)
case("layer_norm", "layer_norm", [x2, w, b], F.layer_norm(d(x2), (6,), d(w), d(b), 1e-5))
w2, b2 = normal(3, 2), normal(3, 2)
case("layer_norm two axes", "layer_norm", [x, w2, b2], F.layer_norm(d(x), (3, 2), d(w2), d(b2), 1e-3), axes=2, eps=1e-3)
mean, var = normal(6), torch.rand(6) + 0.1
case("batch_norm", "batch_norm", [x, w, b, mean, var], F.batch_norm(d(x), d(mean), d(var), d(w), d(b), False, 0, 1e-5))

line = torch.tensor([0.0, -0.0, 1e-8, -1e-8, 0.5, -0.5, 1, -1, 2.7, -2.7, 5.9, -5.9, 20, -20, 90, -90, 1e30, -1e30])
case("silu", "silu", [line], F.silu(d(line)), tol=1e-37)
case("relu", "relu", [line], F.relu(line), tol=0)
case("sigmoid", "sigmoid", [line], torch.sigmoid(d(line)), tol=1e-7)
case("tanh", "tanh", [line], torch.tanh(d(line)), tol=1e-7)
line = line[:-2]
case("silu again", "silu", [line], F.silu(d(line)), tol=1e-9)
case("gelu", "gelu", [line], F.gelu(d(line)), tol=1e-9)
case("clip", "clip", [line], torch.clamp(line, -1, 2.5), tol=0, lo=-1.0, hi=2.5)
case("affine", "affine", [line[:-2]], d(line[:-2]) * 0.75 - 3, mul=0.75, add=-3.0)

a, b = normal(2, 3, 4), normal(3, 1)
case("add broadcast", "add", [a, b], a + b, tol=0)
r = normal(1, 4)
case("sub broadcast both ways", "sub", [b, r], b - r, tol=0)
case("mul by a scalar", "mul", [a, torch.tensor(0.3)], a * torch.tensor(0.3), tol=0)
e = normal(2, 3, 1)
case("mul over space", "mul", [a, e], a * e, tol=0)
case("div", "div", [a, a * 2 + 7], a / (a * 2 + 7), tol=0)

x = normal(2, 3, 4) * 4
case("softmax", "softmax", [x], torch.softmax(d(x), -1))
case("softmax axis 1", "softmax", [x], torch.softmax(d(x), 1), axis=1)
case("softmax of large values", "softmax", [x * 100 + 1000], torch.softmax(d(x * 100 + 1000), 0), axis=0)
x, w, b = normal(2, 3, 5), normal(20, 5), normal(20)
case("linear", "linear", [x, w, b], F.linear(d(x), d(w), d(b)))
case("linear without bias, one row", "linear", [x[0, 0].clone(), w], F.linear(d(x[0, 0]), d(w)))
a, b = normal(2, 1, 3, 4), normal(3, 4, 5)
case("matmul broadcast", "matmul", [a, b], d(a) @ d(b))
at, bt = a.transpose(-1, -2).contiguous(), b.transpose(-1, -2).contiguous()
case("matmul trans_a", "matmul", [at, b], d(a) @ d(b) * 0.5, trans_a=1, alpha=0.5)
case("matmul trans_b", "matmul", [a, bt], d(a) @ d(b), trans_b=1)
case("matmul both", "matmul", [at[0, 0].clone(), bt], d(a)[0, 0] @ d(b), trans_a=1, trans_b=1)
m, k = normal(2, 6), normal(6, 35)
case("matmul wider than one tile", "matmul", [m, k], d(m) @ d(k))


def attention(q, k, v, heads, scale=None):
    n, t, c = q.shape
    split = lambda y: d(y).reshape(n, y.shape[1], heads, c // heads).transpose(1, 2)
    p = torch.softmax(split(q) @ split(k).transpose(-1, -2) * (scale or (c // heads) ** -0.5), -1)
    return (p @ split(v)).transpose(1, 2).reshape(n, t, c)


q, k, v = normal(2, 3, 6), normal(2, 4, 6), normal(2, 4, 6)
case("attention", "attention", [q, k, v], attention(q, k, v, 1))
case("attention of 3 heads", "attention", [q, k, v], attention(q, k, v, 3), heads=3)
case("attention scaled", "attention", [q, k, v], attention(q, k, v, 2, 1.7), heads=2, scale=1.7)
case("attention of large scores", "attention", [q * 30, k * 30, v], attention(q * 30, k * 30, v, 2), heads=2)
q, k, v = normal(1, 1, 260), normal(1, 2, 260), normal(1, 2, 260)
case("attention wider than one chunk", "attention", [q, k, v], attention(q, k, v, 1, 0.25), scale=0.25)

table = normal(5, 3)
case("embedding, held in range", "embedding", [("i64", torch.tensor([4.0, 0, 2, -1, 7])), table], table[[4, 0, 2, 0, 4]], tol=0)
case("embedding by floats, held in range", "embedding", [torch.tensor([1.0, -3, 9, 3, math.nan, 1e30]), table], table[[1, 0, 4, 3, 0, 4]], tol=0)


def timestep(t, dim, flip, shift, period=10000.0):  # diffusers get_timestep_embedding, float32 throughout
    half = dim // 2
    e = -math.log(period) * torch.arange(half, dtype=torch.float32) / (half - shift)
    a = t[:, None].float() * torch.exp(e)[None]
    r = torch.cat([torch.cos(a), torch.sin(a)] if flip else [torch.sin(a), torch.cos(a)], -1)
    return F.pad(r, (0, 1)) if dim % 2 else r


t = torch.tensor([0.0, 1, 37.5, 500, 999])
# angles reach 999, and the last bit of a frequency is 6e-8: 6e-5 of the angle is rounding
case("timestep DDPM", "timestep", [t], timestep(t, 32, False, 1), tol=7e-5, dim=32, flip_sin_to_cos=0, freq_shift=1.0)
case("timestep LDM, i64", "timestep", [("i64", torch.tensor([0.0, 7, 999]))], timestep(torch.tensor([0.0, 7, 999]), 16, True, 0), tol=7e-5,
     dim=16, flip_sin_to_cos=1)
case("timestep odd", "timestep", [t[:2]], timestep(t[:2], 5, True, 0.0, 100.0), tol=1e-6, dim=5, flip_sin_to_cos=1, max_period=100.0)
one = torch.tensor([1.0])
case("timestep of the specification, DDPM", "timestep", [one], torch.tensor([[0.841471, 0.000100, 0.540302, 1.000000]]), tol=1e-6, dim=4,
     flip_sin_to_cos=0, freq_shift=1.0)
case("timestep of the specification, LDM", "timestep", [one], torch.tensor([[0.540302, 0.999950, 0.841471, 0.010000]]), tol=1e-6, dim=4,
     flip_sin_to_cos=1, freq_shift=0.0)

x = normal(2, 3, 4)
case("reshape", "reshape", [x], x.reshape(2, 2, 6), tol=0, shape=(0, 2, -1))
case("permute", "permute", [x], x.permute(2, 0, 1).contiguous(), tol=0, perm=(2, 0, 1))
x4 = normal(2, 3, 2, 2)
case("permute to channels last", "permute", [x4], x4.permute(0, 2, 3, 1).contiguous(), tol=0, perm=(0, 2, 3, 1))
c8 = codes(0, 255, 2, 3, 4)
case("permute codes", "permute", [("u8", c8)], c8.permute(0, 2, 1).contiguous(), tol=0, out_dtype="u8", perm=(0, 2, 1))
y, z = normal(2, 1, 4), normal(2, 2, 4)
case("concat", "concat", [x, y, z], torch.cat([x, y, z], 1), tol=0)
case("concat last axis", "concat", [y, y * 2], torch.cat([y, y * 2], -1), tol=0, axis=-1)
case("concat first axis", "concat", [y, y[:1]], torch.cat([y, y[:1]], 0), tol=0, axis=0)
case("slice", "slice", [x], x[:, 1:3], tol=0, axis=1, start=1, length=2)
case("slice from the end, by 2", "slice", [x], x[..., -3::2], tol=0, axis=-1, start=-3, step=2)
case("slice batch", "slice", [x], x[1:2], tol=0, axis=0, start=1, length=1)
case("pad", "pad", [x], F.pad(x, (3, 0, 1, 2, 0, 1), value=-0.5), tol=0, pads=(0, 1, 3, 1, 2, 0), value=-0.5)
c8 = codes(-128, 127, 2, 3)
case("pad codes", "pad", [("i8", c8)], F.pad(c8, (1, 1, 1, 0), value=-7), tol=0, out_dtype="i8", pads=(1, 1, 0, 1), value=-7.0)


def quantize(x, scale, zero, bits, symmetric, divisor=None):
    f = np.float32
    x = x.numpy().astype(f)
    if divisor is not None:
        x = x * (f(1) / divisor.numpy()).reshape((1, -1) + (1,) * (x.ndim - 2))
    qmin, qmax = (-(1 << bits - 1), (1 << bits - 1) - 1) if symmetric else (0, (1 << bits) - 1)
    with np.errstate(over="ignore", invalid="ignore"):
        r = np.rint(x * (f(1) / f(scale))).astype(np.float64) + zero
    r = np.where(np.isnan(r), zero, np.clip(r, qmin, qmax))
    return torch.tensor(r, dtype=torch.float64)


def fake(x, scale, zero, *rest):
    q = quantize(x, scale, zero, *rest)
    return torch.tensor((q.numpy() - zero).astype(np.float32) * np.float32(scale))


ties = torch.tensor([k / 2 for k in range(-9, 12)] + [math.nan, math.inf, -math.inf, 1e38, -1e38, 300.5, -300.5]) * 0.25
case("quantize ties to even, asymmetric", "quantize", [ties], quantize(ties, 0.25, 3, 4, 0), tol=0, out_dtype="u8", scale=0.25, zero=3, bits=4)
case("quantize ties to even, symmetric", "quantize", [ties], quantize(ties, 0.25, 0, 8, 1), tol=0, out_dtype="i8", scale=0.25, bits=8, symmetric=1)
spec = torch.tensor([-1, -0.5, 0, 0.2, 1.5])
case("quantize of the specification", "quantize", [spec], torch.tensor([0.0, 3, 6, 7, 15]), tol=0, out_dtype="u8", scale=1 / 6, zero=6, bits=4)
case("fake_quant of the specification", "fake_quant", [spec], torch.tensor([-1, -0.5, 0, 0.166667, 1.5]), tol=1e-6, scale=1 / 6, zero=6, bits=4)
x, div = normal(2, 3, 4, 2), torch.rand(3) * 3 + 0.2
case("quantize divided", "quantize", [x, div], quantize(x, 0.013, 117, 8, 0, div), tol=0, out_dtype="u8", scale=0.013, zero=117)
case("fake_quant divided", "fake_quant", [x, div], fake(x, 0.013, 117, 8, 0, div), tol=0, scale=0.013, zero=117)
case("fake_quant of 16 bits", "fake_quant", [x], fake(x, 1e-4, -5, 16, 1), tol=0, scale=1e-4, zero=-5, bits=16, symmetric=1)
case("fake_quant ties", "fake_quant", [ties], fake(ties, 0.25, 3, 4, 0), tol=0, scale=0.25, zero=3, bits=4)
c8 = codes(0, 255, 3, 5)
case("dequantize", "dequantize", [("u8", c8)], torch.tensor((c8.numpy() - 91).astype(np.float32) * np.float32(0.037)), tol=0, scale=0.037, zero=91)


def rescale(acc, x_scale, ws, b, channel_axis):
    f = np.float32
    shape = [1] * acc.dim()
    shape[channel_axis] = -1
    s = (f(x_scale) * ws.numpy()).reshape(shape)
    y = acc.numpy().astype(f) * s
    return torch.tensor(y + b.numpy().reshape(shape) if b is not None else y)


def qconv_case(what, q, dtype, w, b, x_scale, x_zero, **a):
    ws = torch.rand(w.shape[0]) * 0.01 + 0.001
    acc = conv(q - x_zero, w, None, **a)
    case("qconv2d " + what, "qconv2d", [(dtype, q), ("i8", w), ws] + ([b] if b is not None else []), rescale(acc, x_scale, ws, b, 1), tol=0,
         x_scale=x_scale, x_zero=x_zero, **a)


qconv_case("padded, zero 133", codes(0, 255, 2, 3, 5, 5), "u8", codes(-128, 127, 4, 3, 3, 3), normal(4), 0.021, 133, pads=(1, 1, 1, 1))
qconv_case("signed, stride, asymmetric pads", codes(-128, 127, 1, 2, 6, 5), "i8", codes(-8, 7, 3, 2, 3, 3), None, 0.5, 0, stride=(2, 2),
           pads=(0, 0, 1, 1))
qconv_case("signed with a zero, groups, dilation", codes(-128, 127, 1, 4, 7, 6), "i8", codes(-128, 127, 4, 2, 2, 3), normal(4), 0.011, -17,
           groups=2, dilation=(2, 1), pads=(2, 1, 0, 3))
qconv_case("extremes", torch.full((1, 64, 2, 2), 255.0), "u8", torch.full((1, 64, 2, 2), -128.0), normal(1), 1.0, 0)
x, w, ws, b = codes(0, 255, 2, 3, 7), codes(-128, 127, 5, 7), torch.rand(5), normal(5)
case("qlinear", "qlinear", [("u8", x), ("i8", w), ws, b], rescale(d(x - 12) @ d(w).T, 0.03, ws, b, 2), tol=0, x_scale=0.03, x_zero=12)
x = codes(-8, 7, 4, 7)
case("qlinear signed without bias", "qlinear", [("i8", x), ("i8", w), ws], rescale(d(x) @ d(w).T, 0.25, ws, None, 1), tol=0, x_scale=0.25)

# --- rows that networks from ONNX files are made of ---
a, b = normal(2, 3, 4), normal(3, 1)
case("pow", "pow", [a.abs() + 0.1, b], (d(a.abs() + 0.1)) ** d(b), tol=2e-7)
case("min", "min", [a, b], torch.minimum(a, b), tol=0)
case("max", "max", [a, b], torch.maximum(a, b), tol=0)
line = torch.tensor([0.0, 1e-8, 0.5, 1, 2.7, 20, 1000, 3e38])
case("sqrt", "sqrt", [line], torch.sqrt(d(line)), tol=1e-7)
case("log", "log", [line[1:]], torch.log(d(line[1:])), tol=1e-7)
line = torch.tensor([0.0, -0.0, 1e-8, -1e-8, 0.5, -0.5, 1, -1, 2.7, -2.7, 9.5, -9.5, 20, -20])
for op, f in (("exp", torch.exp), ("abs", torch.abs), ("erf", torch.erf), ("sin", torch.sin), ("cos", torch.cos)):
    case(op, op, [line], f(d(line)), tol=1e-7)
case("leaky_relu", "leaky_relu", [line], F.leaky_relu(line, 0.2), tol=0, slope=0.2)
case("cast of i64", "cast", [("i64", torch.tensor([0.0, -3, 999, 16777216]))], torch.tensor([0.0, -3, 999, 16777216]), tol=0)
c8 = codes(0, 255, 2, 3)
case("cast of u8", "cast", [("u8", c8)], c8, tol=0)
c8 = codes(-128, 127, 2, 3)
case("cast of i8", "cast", [("i8", c8)], c8, tol=0)
x = normal(2, 3, 4, 5)
case("mean of space", "mean", [x], d(x).mean((2, 3)), axes=(2, 3), keep=0)
case("mean kept, apart", "mean", [x], d(x).mean((1, 3), keepdim=True), axes=(-3, 3))
case("sum of the batch", "sum", [x], d(x).sum((0,)), axes=(0,), keep=0)
case("sum of all", "sum", [x], d(x).sum(), tol=1e-5, axes=(0, 1, 2, 3), keep=0)
x = normal(2, 3, 4) * 4
case("log_softmax", "log_softmax", [x], torch.log_softmax(d(x), -1))
case("log_softmax of large values", "log_softmax", [x * 100 + 1000], torch.log_softmax(d(x * 100 + 1000), 1), axis=1)


def transposed_case(what, x, w, b, stride=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1), groups=1):
    t, l, bo, r = pads
    y = F.conv_transpose2d(d(x), d(w), d(b), stride, 0, 0, groups, dilation)
    y = y[:, :, t:y.shape[2] - bo, l:y.shape[3] - r].contiguous()
    case("conv_transpose2d " + what, "conv_transpose2d", [x, w] + ([b] if b is not None else []), y, stride=stride, pads=pads, dilation=dilation,
         groups=groups)


transposed_case("plain", normal(2, 3, 3, 4), normal(3, 2, 3, 3), normal(2))
transposed_case("stride 2, pad 1", normal(1, 2, 3, 3), normal(2, 3, 4, 4), normal(3), stride=(2, 2), pads=(1, 1, 1, 1))
transposed_case("without bias, asymmetric", normal(1, 2, 3, 2), normal(2, 2, 3, 2), None, stride=(1, 3), pads=(0, 1, 2, 0))
transposed_case("groups, dilation", normal(1, 4, 3, 3), normal(4, 3, 2, 3), normal(6), groups=2, dilation=(2, 1), stride=(2, 1))
x, w, b = normal(1, 2, 3, 3), normal(2, 2, 3, 3), normal(2)
case("conv_transpose2d output padding", "conv_transpose2d", [x, w, b], F.conv_transpose2d(d(x), d(w), d(b), 2, 1, (1, 1)), stride=(2, 2),
     pads=(1, 1, 1, 1), output_pad=(1, 1))

x = normal(2, 3, 4)
case("gather", "gather", [x, ("i64", torch.tensor([2.0, 0, 0, 1]))], x[:, [2, 0, 0, 1]], tol=0, axis=1)
case("gather last axis, held in range", "gather", [x, ("i64", torch.tensor([9.0, -9]))], x[:, :, [3, 0]], tol=0, axis=-1)
y = normal(1, 4)
case("expand", "expand", [y], y.expand(2, 3, 4).contiguous(), tol=0, shape=(2, 3, 4))
case("expand like", "expand", [y, x], y.expand(2, 3, 4).contiguous(), tol=0, shape=(0, 3, 4))
case("expand a scalar", "expand", [torch.tensor(0.5)], torch.full((2, 2), 0.5), tol=0, shape=(2, 2))


x, t = normal(2, 3, 2, 2), normal(5, 3)
nearest = torch.cdist(d(x).permute(0, 2, 3, 1).reshape(-1, 3), d(t)).argmin(1)
case("codebook", "codebook", [x, t], t[nearest].reshape(2, 2, 2, 3).permute(0, 3, 1, 2).contiguous(), tol=0)

# --- derivatives: torch's own, in double ---


def grads(f, *xs):
    """f's result for xs, a random dy, and the derivatives of sum(dy f) by each x."""
    leaves = [x.double().requires_grad_() for x in xs]
    y = f(*leaves)
    dy = torch.randn(y.shape, dtype=torch.float32)
    return (dy, y.detach()) + torch.autograd.grad(y, leaves, dy.double())


def lsq(x, s, lo, hi):
    """Esser et al. 2020: straight through by x, eq. 3 by s."""
    r = x / s
    held = torch.clamp(r, lo, hi)
    return s * (held + (torch.round(held) - held).detach())


UNARY = ["silu", "relu", "gelu", "sigmoid", "tanh", "sqrt", "exp", "log", "abs", "erf", "sin", "cos"]
for i, name in enumerate(UNARY):
    x = normal(7) * 2
    if name in ("sqrt", "log"):
        x = x.abs() + 0.1
    dy, y, dx = grads(getattr(F if name in ("silu", "gelu") else torch, name), x)
    case("unary_grad " + name, "unary_grad", [dy, x], dx, of=i)
x = normal(3, 4)
dy, y, dx = grads(lambda x: torch.clamp(x, -0.5, 0.75), x)
case("clip_grad", "clip_grad", [dy, x], dx, tol=0, lo=-0.5, hi=0.75)
dy, y, dx = grads(lambda x: F.leaky_relu(x, 0.2), x)
case("leaky_relu_grad", "leaky_relu_grad", [dy, x], dx, slope=0.2)
x = normal(2, 3, 4)
dy, y, dx = grads(lambda x: torch.softmax(x, 1), x)
case("softmax_grad axis 1", "softmax_grad", [dy, y.float()], dx, axis=1)
dy, y, dx = grads(lambda x: torch.log_softmax(x, -1), x)
case("log_softmax_grad", "log_softmax_grad", [dy, y.float()], dx)
x, w = normal(2, 3, 5), normal(4, 5)
dy, y, dx, dw = grads(F.linear, x, w)
case("linear_grad_input", "linear_grad_input", [dy, w], dx)
case("linear_grad_weight", "linear_grad_weight", [dy, x], dw)
a, b = normal(2, 3, 4), normal(3, 1)
dy, y, da, db = grads(lambda a, b: a + b, a, b)
case("sum_like", "sum_like", [dy, b], db)
case("sum_like a scalar", "sum_like", [dy, torch.tensor(1.0)], d(dy).sum())
case("reshape_like", "reshape_like", [a, normal(4, 6)], a.reshape(4, 6), tol=0)
dy, y, da = grads(lambda a: a.mean((0, 2)), a)
case("reduce_grad of a mean", "reduce_grad", [dy, a], da, axes=(0, 2), mean=1)
dy, y, da = grads(lambda a: a.sum(1, keepdim=True), a)
case("reduce_grad of a sum", "reduce_grad", [dy, a], da, tol=0, axes=(-2,))
dy, y, da = grads(lambda a: a[:, :, 1::2], a)
case("slice_grad", "slice_grad", [dy, a], da, tol=0, axis=2, start=-3, step=2)
dy, y, da = grads(lambda a: a[:, [2, 0, 2]], a)
case("gather_grad", "gather_grad", [dy, ("i64", torch.tensor([2.0, 0, 2])), a], da, axis=1)
dy, y, da, db = grads(lambda a, b: torch.cat([a, b], 1), a, normal(2, 2, 4))
case("concat_grad of the first", "concat_grad", [dy, a], da, tol=0, axis=1)
case("concat_grad of the second", "concat_grad", [dy, a, normal(2, 2, 4)], db, tol=0, axis=-2)
dy, y, da = grads(lambda a: F.pad(a, (1, 2, 0, 1)), a)
case("pad_grad", "pad_grad", [dy], da, tol=0, pads=(0, 0, 1, 0, 1, 2))


def conv_grad_case(what, x, w, stride=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1), groups=1):
    t, l, bo, r = pads
    a = dict(stride=stride, pads=pads, dilation=dilation, groups=groups)
    dy, y, dx, dw = grads(lambda x, w: F.conv2d(F.pad(x, (l, r, t, bo)), w, None, stride, 0, dilation, groups), x, w)
    case("conv2d_grad_input " + what, "conv2d_grad_input", [dy, w, x], dx, **a)
    case("conv2d_grad_weight " + what, "conv2d_grad_weight", [dy, x, w], dw, **a)


conv_grad_case("plain", normal(2, 3, 5, 6), normal(4, 3, 3, 3))
conv_grad_case("stride 2, asymmetric pads, rows left over", normal(2, 2, 7, 6), normal(3, 2, 3, 3), stride=(2, 2), pads=(1, 0, 0, 1))
conv_grad_case("groups, dilation", normal(1, 4, 7, 7), normal(6, 2, 3, 2), pads=(2, 1, 2, 1), dilation=(2, 1), groups=2)
conv_grad_case("depthwise", normal(2, 3, 5, 5), normal(3, 1, 3, 3), pads=(1, 1, 1, 1), groups=3)
conv_grad_case("1x1", normal(2, 3, 4, 4), normal(5, 3, 1, 1), stride=(2, 2))
x = normal(2, 2, 6, 7)
a = dict(kernel=(3, 3), stride=(2, 2), pads=(1, 1, 1, 1))
dy, y, dx = grads(lambda x: F.avg_pool2d(x, 3, 2, 1), x)
case("avg_pool_grad", "avg_pool_grad", [dy, x], dx, **a)
dy, y, dx = grads(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), x)
case("avg_pool_grad, pad not counted", "avg_pool_grad", [dy, x], dx, count_pad=0, **a)
dy, y, dx = grads(lambda x: F.max_pool2d(x, 3, 2, 1), x)
case("max_pool_grad", "max_pool_grad", [dy, x], dx, **a)
x, w, b = normal(2, 6, 3, 2) * 2 + 1, normal(6), normal(6)
dy, y, dx, dw, db = grads(lambda x, w, b: F.group_norm(x, 3, w, b, 1e-5), x, w, b)
case("group_norm_grad", "group_norm_grad", [dy, x, w], dx, groups=3)
case("group_norm_grad_weight", "group_norm_grad_weight", [dy, x], dw, groups=3)
dy, y, dx = grads(lambda x: F.group_norm(x, 2, None, None, 1e-5), x)
case("group_norm_grad bare", "group_norm_grad", [dy, x], dx, groups=2)
w = normal(3, 2)
dy, y, dx, dw, db = grads(lambda x, w, b: F.layer_norm(x, (3, 2), w, b, 1e-5), x, w, normal(3, 2))
case("layer_norm_grad", "layer_norm_grad", [dy, x, w], dx, axes=2)
case("layer_norm_grad_weight", "layer_norm_grad_weight", [dy, x], dw, axes=2)
w, b = normal(6), normal(6)
dy, y, dx, dw, db = grads(lambda x, w, b: F.batch_norm(x, None, None, w, b, True, 0, 1e-5), x, w, b)
stats = torch.stack([d(x).mean((0, 2, 3)), d(x).var((0, 2, 3), unbiased=False)])
case("batch_norm_stats", "batch_norm_stats", [x], stats)
case("batch_norm_train", "batch_norm_train", [x, w, b, stats.float()], y)
sums = torch.stack([db, dw])
case("batch_norm_train_sums", "batch_norm_train_sums", [dy, x, stats.float()], sums)
case("batch_norm_sums", "batch_norm_sums", [dy, x, stats[0].float(), stats[1].float()], sums)
case("batch_norm_train_grad", "batch_norm_train_grad", [dy, x, w, stats.float(), sums.float()], dx)
dy, y, dx = grads(lambda x: torch.stack([x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)]), x)
case("batch_norm_stats_grad", "batch_norm_stats_grad", [dy, x, stats.float()], dx)
x, s = normal(3, 4) * 2, torch.rand(3, 1) * 0.3 + 0.2
dy, y, dx, ds = grads(lambda x, s: lsq(x, s, -4, 3), x, s)
a = dict(bits=3, axis=0)
case("learned_quant", "learned_quant", [x, s[:, 0]], y, **a)
case("learned_quant_grad", "learned_quant_grad", [dy, x, s[:, 0]], dx, tol=0, **a)
case("learned_quant_grad_scale", "learned_quant_grad_scale", [dy, x, s[:, 0]], ds[:, 0], tol=5e-6, **a)
x, s = x.abs(), torch.tensor([0.4])
dy, y, dx, ds = grads(lambda x, s: lsq(x, s, 0, 15), x, s)
case("learned_quant unsigned, one scale", "learned_quant", [x, s], y, bits=4, symmetric=0)
case("learned_quant_grad_scale, one scale", "learned_quant_grad_scale", [dy, x, s], ds, tol=5e-6, bits=4, symmetric=0)
v = normal(9) * 3
dy, y, dv = grads(lambda v: torch.clamp(torch.sigmoid(v) * 1.2 - 0.1, 0, 1), v)
case("soft_round", "soft_round", [v], y)
case("soft_round_grad", "soft_round_grad", [dy, v], dv)
case("detach", "detach", [v], v, tol=0)
p, q = torch.tensor([1.0, 2, 3, math.inf]), torch.tensor([[2.0], [3]])
case("less", "less", [p, q], (p < q).float() + 0.5 * (p == q).float(), tol=0)
x, div = normal(2, 3, 4), torch.tensor([1.0, 2, 0.5])
dy, y, dx = grads(lambda x: torch.clamp(x / d(div)[:, None], -5 * 0.3, 2 * 0.3), x)
case("fake_quant_grad", "fake_quant_grad", [dy, x, div], dx, scale=0.3, zero=5, bits=3)


# the nearest row, the first of equals: (0.5, 0.5) lies between rows 0 and 1, row 2 repeats row 1; a NaN and infinity take row 0
table = torch.tensor([[0.0, 0], [1, 1], [1, 1], [-2, 3]])
x = torch.tensor([[0.5, 0.5], [0.9, 0.8], [-1, 2.5], [math.nan, 1], [math.inf, 1], [100, 100]])
case("codebook", "codebook", [x, table], table[[0, 1, 3, 0, 0, 1]], tol=0)
image = x.t().reshape(1, 2, 2, 3).contiguous()
case("codebook over space", "codebook", [image, table], table[[0, 1, 3, 0, 0, 1]].t().reshape(1, 2, 2, 3), tol=0)
x, table = normal(2, 5, 3), normal(40, 5)
case("codebook at random", "codebook", [x, table], table[torch.cdist(d(x).transpose(1, 2), d(table)).argmin(-1)].transpose(1, 2), tol=0)


# --- attention on codes; after the others, so that their numbers stay ---
def softmax_codes(scores, bits):
    """Weights of each query, rounded against the largest of them."""
    return torch.round(torch.exp(scores - scores.max(-1, keepdim=True).values) * (2 ** bits - 1))


def heads_of(y, heads):
    return d(y).reshape(y.shape[0], y.shape[1], heads, y.shape[2] // heads).transpose(1, 2)


def mixed(p, v, shape):
    return ((p @ v) / p.sum(-1, keepdim=True)).transpose(1, 2).reshape(shape)


def qattention(q, k, v, heads, scale, bits, maps):
    (qs, qz), (ks, kz), (vs, vz) = maps
    f = np.float32
    step = float(f(f(qs) * f(ks)) * f(scale or (q.shape[2] // heads) ** -0.5))
    acc = heads_of(q - qz, heads) @ heads_of(k - kz, heads).transpose(-1, -2)
    p = softmax_codes(((acc - acc.max(-1, keepdim=True).values).float() * f(step)).double(), bits)
    return mixed(p, heads_of(v - vz, heads), q.shape) * float(f(vs))


for what, types, heads, scale, bits, maps in (
        ("16 bits", ("u8", "u8", "u8"), 1, None, 16, ((0.02, 131), (0.03, 99), (0.05, 17))),
        ("8 bits, 3 heads", ("u8", "u8", "u8"), 3, None, 8, ((0.02, 131), (0.03, 99), (0.05, 17))),
        ("signed and not, scaled", ("i8", "u8", "i8"), 2, 0.3, 16, ((0.021, 0), (0.017, 255), (0.5, -3))),
        ("8 bits, one weight alone", ("i8", "i8", "u8"), 2, 3.0, 8, ((0.5, 0), (0.5, 0), (0.1, 128)))):
    ins = [codes(*((0, 255) if t == "u8" else (-128, 127)), 2, 5 if j else 3, 6) for j, t in enumerate(types)]
    attrs = dict(heads=heads, softmax_bits=bits, **{n + "_scale": float(m[0]) for n, m in zip("qkv", maps)},
                 **{n + "_zero": m[1] for n, m in zip("qkv", maps)}, **({"scale": scale} if scale else {}))
    case("qattention of " + what, "qattention", list(zip(types, ins)), qattention(*ins, heads, scale, bits, maps), tol=1e-6, **attrs)
q, k, v = normal(2, 3, 6), normal(2, 4, 6), normal(2, 4, 6)
for bits in (8, 16):
    scores = heads_of(q, 3) @ heads_of(k, 3).transpose(-1, -2) * 2 ** -0.5
    case("fake_attention of %d bits" % bits, "fake_attention", [q, k, v], mixed(softmax_codes(scores, bits), heads_of(v, 3), q.shape),
         tol=1e-6 if bits == 8 else 1e-5, heads=3, softmax_bits=bits)

# --- where: a above 0, else b; broadcast all ways
c, a, b = torch.tensor([[1.0], [0.0], [0.5], [-2.0]]), normal(4, 3), normal(3)
case("where", "where", [c, a, b], torch.where(c > 0, a, b.expand(4, 3)), tol=0)
c = normal(2, 5)
case("where with two scalars", "where", [c, torch.tensor(2.0), torch.tensor(-3.0)], torch.where(c > 0, torch.tensor(2.0), torch.tensor(-3.0)), tol=0)


def number(v):
    if math.isnan(v):
        return "NAN"
    if math.isinf(v):
        return "INFINITY" if v > 0 else "-INFINITY"
    s = "%.9g" % v
    return s


def tensor(dtype, t):
    if t is None:
        return "{ .dtype = QD_DTYPE_COUNT }"
    flat = ", ".join(number(v) for v in t.reshape(-1).tolist())
    dims = ", ".join(map(str, t.shape))
    return "{ QD_%s, { %d, { %s } }, (const float[]){ %s } }" % (dtype.upper(), t.dim(), dims or "0", flat)


def attr(name, v):
    if isinstance(v, tuple):
        return '{ .name = "%s", .kind = QD_ATTR_INTS, .n = %d, .ints = { %s } }' % (name, len(v), ", ".join(map(str, v)))
    if isinstance(v, float):
        return '{ .name = "%s", .kind = QD_ATTR_FLOAT, .f = %.17g }' % (name, v)
    return '{ .name = "%s", .kind = QD_ATTR_INT, .i = %d }' % (name, v)


print("/* ops_golden.h - written by make_ops.py (torch %s, numpy %s, seed 20240607); do not edit. */" % (torch.__version__, np.__version__))
print("/* clang-format off */")
print("static const golden_case golden_cases[] = {")
for what, op, ins, attrs, out_dtype, out, tol in cases:
    print('{ "%s", "%s", %g,' % (what, op, tol))
    print("  %d, { %s }," % (len(ins), ",\n    ".join(tensor(*i) for i in ins)))
    print("  %d, { %s }," % (len(attrs), ", ".join(attr(*kv) for kv in attrs.items()) or "{ 0 }"))
    print("  %s }," % tensor(out_dtype, out))
print("};")
sys.stderr.write("%d cases\n" % len(cases))
