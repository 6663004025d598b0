"""Writes the small ONNX files of this folder and what PyTorch answers to them (golden.safetensors).

    /usr/bin/python3 make_onnx.py

Made with torch 1.13.0a0, seed 20240611. Those named after networks are tiny blocks of them, exported by torch.onnx with an open
batch, so that the shape arithmetic exporters write is there; those named op_* are put together by hand, for opsets that
exporter does not know and for ways of storing tensors. In golden.safetensors "<file>/in/<input>" and "<file>/out/<output>".
"""
import json
import math
import os
import struct
import warnings

import torch
import torch.nn as nn
import torch.nn.functional as F

from onnx_bytes import field, model, node, tensor, value

warnings.filterwarnings("ignore")
torch.manual_seed(20240611)
golden = {}


def put(name, ins, outs):
    for k, v in ins.items():
        golden["%s/in/%s" % (name, k)] = v.contiguous()
    for k, v in outs.items():
        golden["%s/out/%s" % (name, k)] = v.detach().contiguous()


def randomize(m):
    """Norms and biases that do something."""
    for p in m.parameters():
        if p.dim() == 1:
            nn.init.normal_(p, 0.5, 0.3)
    for b in m.modules():
        if isinstance(b, nn.BatchNorm2d):
            b.running_mean.normal_(0, 0.3)
            b.running_var.uniform_(0.5, 1.5)
    return m


def export(name, model, *inputs, opset=13, names=None, fold=True, dynamic=True, batch=3):
    model = randomize(model).eval()
    names = names or ["input"]
    one = [i[:2] for i in inputs]  # traced with another batch than the one that is checked
    torch.onnx.export(model, tuple(one), name + ".onnx", opset_version=opset, input_names=names, output_names=["output"],
                      do_constant_folding=fold, training=torch.onnx.TrainingMode.PRESERVE,
                      dynamic_axes={k: {0: "N"} for k in names + ["output"]} if dynamic else None)
    given = inputs if dynamic else one
    with torch.no_grad():
        put(name, dict(zip(names, given)), {"output": model(*given)})


# --- classifiers ---

def cbr(i, o, k=3, s=1, p=None, g=1, act=nn.ReLU):
    return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2 if p is None else p, groups=g, bias=False), nn.BatchNorm2d(o), act())


class Bottleneck(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(cbr(3, 8, 7, 2, 3), nn.MaxPool2d(3, 2, 1))
        self.body = nn.Sequential(cbr(8, 4, 1), cbr(4, 4, 3, 2), nn.Conv2d(4, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.down = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(self.body(x) + self.down(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class SqueezeExcite(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.a, self.b = nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1)

    def forward(self, x):
        return x * F.hardsigmoid(self.b(F.relu(self.a(F.adaptive_avg_pool2d(x, 1)))))


class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = cbr(3, 8, 3, 2, act=nn.Hardswish)
        self.v2 = nn.Sequential(cbr(8, 16, 1, act=nn.ReLU6), cbr(16, 16, 3, g=16, act=nn.ReLU6), nn.Conv2d(16, 8, 1, bias=False),
                                nn.BatchNorm2d(8))
        self.v3 = nn.Sequential(cbr(8, 16, 1, act=nn.Hardswish), cbr(16, 16, 5, 2, g=16, act=nn.Hardswish), SqueezeExcite(16),
                                nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.fc = nn.Sequential(nn.Linear(8, 12), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(12, 5))

    def forward(self, x):
        x = self.stem(x)
        x = x + self.v2(x)
        return self.fc(self.v3(x).mean([2, 3]))


class ShuffleNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = cbr(3, 8)
        self.branch = nn.Sequential(cbr(4, 4, 1), nn.Conv2d(4, 4, 3, 1, 1, groups=4, bias=False), nn.BatchNorm2d(4), cbr(4, 4, 1))

    def forward(self, x):
        a, b = self.stem(x).chunk(2, dim=1)
        x = torch.cat((a, self.branch(b)), dim=1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w)
        x = torch.transpose(x, 1, 2).contiguous().view(n, -1, h, w)
        return x.mean([2, 3])


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        layer = lambda i: nn.Sequential(nn.BatchNorm2d(i), nn.ReLU(), nn.Conv2d(i, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                                        nn.Conv2d(8, 4, 3, padding=1, bias=False))
        self.layers = nn.ModuleList([layer(6 + 4 * k) for k in range(3)])
        self.down = nn.Sequential(nn.BatchNorm2d(18), nn.ReLU(), nn.Conv2d(18, 9, 1, bias=False), nn.AvgPool2d(2, 2))
        self.fc = nn.Linear(9, 5)

    def forward(self, x):
        parts = [self.stem(x)]
        for f in self.layers:
            parts.append(f(torch.cat(parts, 1)))
        x = F.relu(self.down(torch.cat(parts, 1)))
        return F.log_softmax(self.fc(F.adaptive_avg_pool2d(x, (1, 1)).view(x.size(0), -1)), dim=1)


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = cbr(3, 4, 1), nn.Sequential(cbr(3, 4, (1, 7), p=(0, 3)), cbr(4, 4, (7, 1), p=(3, 0)))
        self.c = cbr(3, 4, 1)
        self.d = cbr(12, 6, 3, 2, 0)

    def forward(self, x):
        x = torch.cat([self.a(x), self.b(x), self.c(F.avg_pool2d(x, 3, 1, 1))], 1)
        return torch.cat([self.d(x), F.max_pool2d(x, 3, 2)], 1)


class SqueezeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2)
        self.squeeze, self.e1, self.e3 = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, ceil_mode=True)
        x = F.relu(self.squeeze(x))
        x = torch.cat([F.relu(self.e1(x)), F.relu(self.e3(x))], 1)
        x = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
        return torch.flatten(F.adaptive_avg_pool2d(F.relu(self.head(F.dropout(x, training=self.training))), 1), 1)


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Conv2d(6, 4, 3, padding=1),
                                      nn.LeakyReLU(0.1), nn.MaxPool2d(2, 2))
        self.classifier = nn.Sequential(nn.Linear(64, 12), nn.PReLU(12), nn.Dropout(), nn.Linear(12, 5))

    def forward(self, x):
        return F.softmax(self.classifier(self.features(x).view(x.size(0), -1)), dim=1)


image = torch.randn(3, 3, 16, 16)
export("resnet", Bottleneck(), image)
export("resnet_op9", Bottleneck(), image, opset=9)
export("mobilenet", MobileNet(), image, opset=14)
export("mobilenet_op11", MobileNet(), image, opset=11, fold=False)
export("shufflenet", ShuffleNet(), image)
export("shufflenet_op7", ShuffleNet(), image, opset=7, fold=False)
export("densenet", DenseNet(), image, opset=11)
export("inception", Inception(), image)
export("squeezenet", SqueezeNet(), torch.randn(3, 3, 19, 18))
export("vgg", VGG(), image, opset=12)


# --- transformers ---

class Block(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.heads, self.scale = heads, (c // heads) ** -0.5
        self.norm1, self.norm2 = nn.LayerNorm(c, eps=1e-6), nn.LayerNorm(c)
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.mlp = nn.Sequential(nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c))

    def forward(self, x):
        n, t, c = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        a = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        x = x + self.proj((a @ v).transpose(1, 2).reshape(n, t, c))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, c=12, heads=3):
        super().__init__()
        self.patch = nn.Conv2d(3, c, 4, 4)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, c)), nn.Parameter(torch.randn(1, 17, c))
        self.blocks = nn.Sequential(Block(c, heads), Block(c, heads))
        self.norm, self.head = nn.LayerNorm(c), nn.Linear(c, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x), dim=1) + self.pos
        return self.head(self.norm(self.blocks(x))[:, 0])


class Torchvision(nn.Module):
    """Attention by nn.MultiheadAttention: time first, batch and heads merged."""

    def __init__(self, c=12):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(c), nn.MultiheadAttention(c, 3, batch_first=True)
        self.fc = nn.Linear(c, 5)

    def forward(self, x):
        y = self.norm(x)
        with torch.enable_grad():  # keeps it from its fused path, which has no ONNX
            y, _ = self.attn(y, y, y, need_weights=False)
        return self.fc((x + y).mean(1))


export("vit", ViT(), image)
export("vit_op17", ViT(), image, opset=17)
export("vit_op9", ViT(), image, opset=9, fold=False)
export("mha", Torchvision(), torch.randn(3, 7, 12), opset=14)


# --- diffusion ---

class Attention(nn.Module):
    """diffusers: heads merged into the batch, scaled in two halves."""

    def __init__(self, c, heads):
        super().__init__()
        self.heads = heads
        self.group_norm = nn.GroupNorm(4, c, eps=1e-6)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(c, c) for _ in range(4))

    def split(self, x):
        n, t, c = x.shape
        return x.reshape(n, t, self.heads, c // self.heads).permute(0, 2, 1, 3).reshape(n * self.heads, t, c // self.heads)

    def forward(self, x):
        n, c, h, w = x.shape
        y = self.group_norm(x).view(n, c, h * w).transpose(1, 2)
        q, k, v = self.split(self.to_q(y)), self.split(self.to_k(y)), self.split(self.to_v(y))
        s = 1 / math.sqrt(math.sqrt(c / self.heads))
        p = torch.softmax(torch.matmul(q * s, k.transpose(-1, -2) * s).float(), dim=-1)
        y = torch.matmul(p, v).reshape(n, self.heads, h * w, c // self.heads).permute(0, 2, 1, 3).reshape(n, h * w, c)
        return self.to_out(y).transpose(-1, -2).reshape(n, c, h, w) + x


class UNet(nn.Module):
    def __init__(self, c=8):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(8, 16), nn.Linear(16, 16)
        self.conv_in = nn.Conv2d(2, c, 3, padding=1)
        self.norm1, self.conv1 = nn.GroupNorm(4, c), nn.Conv2d(c, c, 3, padding=1)
        self.time_emb_proj = nn.Linear(16, c)
        self.norm2, self.conv2 = nn.GroupNorm(4, c), nn.Conv2d(c, c, 3, padding=1)
        self.attention = Attention(c, 2)
        self.down = nn.Conv2d(c, c, 3, 2)
        self.up = nn.Conv2d(c, c, 3, padding=1)
        self.norm_out, self.conv_out = nn.GroupNorm(4, 2 * c), nn.Conv2d(2 * c, 2, 3, padding=1)

    def forward(self, sample, timestep):
        half = 4
        e = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        e = timestep[:, None].float() * e[None, :]
        t = self.linear_2(F.silu(self.linear_1(torch.cat([torch.cos(e), torch.sin(e)], dim=-1))))
        skip = x = self.conv_in(sample)
        y = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(t))[:, :, None, None]
        x = x + self.conv2(F.silu(self.norm2(y)))
        x = self.down(F.pad(self.attention(x), (0, 1, 0, 1)))
        x = self.up(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(torch.cat([x, skip], dim=1))))


export("unet", UNet(), torch.randn(3, 2, 8, 8), torch.tensor([0, 500, 999]), names=["sample", "timestep"])
export("unet_op9", UNet(), torch.randn(3, 2, 8, 8), torch.tensor([0, 500, 999]), names=["sample", "timestep"], opset=9, fold=False)


# --- rows that those networks do not have ---

class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2)
        self.line = nn.Conv1d(6, 4, 3, padding=1, stride=2)
        self.inst = nn.InstanceNorm2d(6, affine=True)
        self.bare = nn.GroupNorm(3, 6, affine=False)

    def forward(self, x):
        x = self.inst(self.up(x))
        x = self.bare(F.avg_pool2d(x, 3, 2, 1, ceil_mode=True) - F.max_pool2d(x, 3, 2, 1, ceil_mode=True))
        return self.line(x.flatten(2))


class Elementwise(nn.Module):
    def forward(self, x):
        a = torch.sqrt(x.abs() + 0.1) + torch.log(x * x + 1) - torch.exp(-x).clamp(max=3.0)
        b = torch.minimum(x, a).pow(3) / torch.maximum(x, a).pow(2).add(1) + torch.reciprocal(2 + torch.tanh(x)) + (x * x + 1) ** 1.3
        return 1 - torch.erf(a) * torch.sin(b) + torch.cos(2 / (3 + b * b)) + F.gelu(b) * torch.sigmoid(a)


class Shapes(nn.Module):
    def forward(self, x):
        n, c, h, w = x.shape
        a = F.pad(x, (1, 2, 2, 1), mode="reflect")[:, :, 1::2, :-1]
        b = F.interpolate(x, size=(7, 9), mode="bilinear", align_corners=False)
        d = F.interpolate(x, scale_factor=1.5, mode="nearest")
        e = F.pixel_shuffle(x, 2)
        f = x[:, [2, 0, 3, 0]].reshape(n, 2, -1).sum(-1, keepdim=True).squeeze(2)
        g = torch.stack([x[:, 1], x[:, -1]], dim=1).mean(1).norm(dim=2)
        return torch.cat([y.flatten(1) for y in (a, b, d, e)] + [f, g], dim=1)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.fc = nn.Embedding(11, 6), nn.Linear(6, 4, bias=False)

    def forward(self, index):
        return self.fc(self.table(index)) @ torch.ones(4, 1)


export("windows", Windows(), torch.randn(3, 4, 5, 6))
export("elementwise", Elementwise(), torch.randn(3, 7))
export("shapes", Shapes(), torch.randn(3, 4, 6, 6), opset=11)
export("table", Table(), torch.randint(0, 11, (3, 5)), names=["index"])
export("fixed_batch", Bottleneck(), image, dynamic=False)


# --- by hand ---

x = torch.randn(3, 6, 4, 4)
w, b = torch.randn(6), torch.randn(6)
axes = torch.tensor([2, 3])
y = F.gelu(F.group_norm(x, 3, w, b, 1e-5), approximate="tanh")
model("op_opset21", 21, [
    node("GroupNormalization", ["x", "w", "b"], ["gn"], num_groups=3),
    node("Gelu", ["gn"], ["g"], approximate="tanh"),
    node("ReduceMean", ["g", "axes"], ["m"], keepdims=0),
    node("Split", ["g"], ["s0", "s1"], axis=1, num_outputs=2),
    node("Pad", ["s1", "pads", "", "axes"], ["p"]),
    node("ReduceSum", ["p", "axes"], ["q"], keepdims=0),
    node("Concat", ["m", "q"], ["y"], axis=1)],
    [tensor("w", w), tensor("b", b), tensor("axes", axes), tensor("pads", torch.tensor([1, 0, 0, 1]), "typed")],
    [value("x", 1, "N", 6, 4, 4)], [value("y", 1, "N", 9)])
put("op_opset21", {"x": x}, {"y": torch.cat([y.mean((2, 3)), y[:, 3:].sum((2, 3))], 1)})

gw, gb = torch.randn(3), torch.randn(3)
model("op_opset18", 18, [node("GroupNormalization", ["x", "w", "b"], ["y"], num_groups=3, epsilon=1e-3)],
      [tensor("w", gw), tensor("b", gb)], [value("x", 1, "N", 6, 4, 4)], [value("y", 1, "N", 6, 4, 4)])
put("op_opset18", {"x": x}, {"y": F.group_norm(x, 3, gw.repeat_interleave(2), gb.repeat_interleave(2), 1e-3)})

x = torch.randn(3, 4)
parts = {"f32": torch.randn(4), "f16": torch.randn(4).half(), "bf16": torch.randn(4).bfloat16(), "f64": torch.randn(4).double()}
for how in ("raw", "typed"):
    name = "op_types_" + how
    sums = [node("Cast", ["i8"], ["a0"], to=1), node("Cast", ["u8"], ["a1"], to=1), node("Cast", ["i32"], ["a2"], to=1),
            node("Cast", ["i64"], ["a3"], to=1), node("Cast", ["bool"], ["a4"], to=1)]
    terms = list(parts) + ["a0", "a1", "a2", "a3", "a4"]
    last = "x"
    for k, t in enumerate(terms):
        sums.append(node("Add", [last, t], ["y" if k + 1 == len(terms) else "s%d" % k]))
        last = "s%d" % k
    whole = {"i8": torch.tensor([-3, 127, -128, 0], dtype=torch.int8), "u8": torch.tensor([255, 1, 0, 7], dtype=torch.uint8),
             "i32": torch.tensor([-70000, 5, 0, 1], dtype=torch.int32), "i64": torch.tensor([-1, 2, 3, 4]),
             "bool": torch.tensor([True, False, True, True])}
    model(name, 13, sums, [tensor(k, v, how) for k, v in list(parts.items()) + list(whole.items())], [value("x", 1, "N", 4)],
          [value("y", 1, "N", 4)])
    put(name, {"x": x}, {"y": x + sum(v.float() for v in parts.values()) + sum(v.float() for v in whole.values())})

x = torch.randn(3, 2, 5, 5)
w = torch.randn(4, 2, 3, 3)
model("op_same_pads", 11, [node("Conv", ["x", "w"], ["c"], auto_pad="SAME_UPPER", strides=[2, 2]),
                           node("MaxPool", ["c"], ["d"], auto_pad="SAME_LOWER", kernel_shape=[2, 2]),
                           node("GlobalMaxPool", ["d"], ["y"])],
      [tensor("w", w)], [value("x", 1, "N", 2, 5, 5)], [value("y", 1, "N", 4, 1, 1)])
c = F.conv2d(x, w, None, 2, 1)
put("op_same_pads", {"x": x}, {"y": F.max_pool2d(F.pad(c, (1, 0, 1, 0), value=-math.inf), 2, 1).amax((2, 3), keepdim=True)})

x, w, c = torch.randn(3, 4), torch.randn(4, 5), torch.randn(1, 5)
model("op_gemm", 13, [node("Gemm", ["x", "w", "c"], ["g"], alpha=0.5, beta=2.0), node("Gemm", ["g", "g"], ["h"], transB=1),
                      node("MatMul", ["h", "x"], ["m"]), node("LogSoftmax", ["m"], ["y"])],
      [tensor("w", w), tensor("c", c)], [value("x", 1, 3, 4)], [value("y", 1, 3, 4)])
g = 0.5 * x @ w + 2 * c
put("op_gemm", {"x": x}, {"y": torch.log_softmax((g @ g.T) @ x, -1)})

# External data: two tensors of one file, which lies beside the model.
os.makedirs("external", exist_ok=True)
x, w, b = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5).half()
with open("external/weights.bin", "wb") as f:
    f.write(b"\0" * 16 + w.numpy().tobytes() + b.numpy().tobytes())


def entry(k, v):
    return field(13, field(1, k) + field(2, v))


def outside(name, kind, dims, offset, length):
    return b"".join(field(1, d) for d in dims) + field(2, kind) + field(8, name) + entry("location", "weights.bin") + \
        entry("offset", str(offset)) + entry("length", str(length)) + field(14, 1)


model("external/model", 13, [node("Gemm", ["x", "fc.weight", "fc.bias"], ["y"], transB=1)],
      [outside("fc.weight", 1, [5, 4], 16, 80), outside("fc.bias", 10, [5], 96, 10)], [value("x", 1, "N", 4)], [value("y", 1, "N", 5)])
put("external", {"x": x}, {"y": F.linear(x, w, b.float())})

# --- all answers in one file ---

header, data = {}, b""
for k in sorted(golden):
    t = golden[k]
    raw = t.numpy().tobytes()
    header[k] = {"dtype": "I64" if t.dtype == torch.int64 else "F32", "shape": list(t.shape), "data_offsets": [len(data), len(data) + len(raw)]}
    data += raw
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open("golden.safetensors", "wb") as f:
    f.write(struct.pack("<Q", len(text)) + text + data)
print("%d files" % len({k.split("/")[0] for k in golden}))
