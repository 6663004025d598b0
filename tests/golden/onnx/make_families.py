"""Writes family_*.onnx and what PyTorch answers to them (families.safetensors).

    /usr/bin/python3 make_families.py

Made with torch 1.13.0a0, seed 20240817. Every family of networks that people export, in the block structure of its paper and of
torchvision, with narrow channels and small pictures, exported by torch.onnx with an open batch. family_<name>_op<opset>.onnx.
Inputs are not stored: element i of an input is ((i * 7919 + 13) % 1009) / 504.5 - 1 in double precision, then a float; of "timestep"
37 i + 5. In families.safetensors "<file>/out/<output>", for a batch of 3.
"""
import json
import math
import struct
import warnings

import torch
import torch.nn as nn
import torch.nn.functional as F

warnings.filterwarnings("ignore")
torch.manual_seed(20240817)
golden = {}


def numbers(*shape):
    i = torch.arange(math.prod(shape), dtype=torch.int64)
    return (((i * 7919 + 13) % 1009).double() / 504.5 - 1).float().reshape(shape)


def randomize(m):
    """Norms and biases that do something, and signals that neither die nor explode."""
    for name, p in m.named_parameters():
        if p.dim() == 1:
            nn.init.normal_(p, 0.0 if name.endswith("bias") else 1.0, 0.2)
        elif p.dim() > 1 and p.shape[0] > 1:
            nn.init.normal_(p, 0.0, math.sqrt(1.6 / math.prod(p.shape[1:])))
    for b in m.modules():
        if isinstance(b, nn.BatchNorm2d):
            b.running_mean.normal_(0, 0.2)
            b.running_var.uniform_(0.5, 1.5)
    return m


def export(name, model, *shapes, opset=13, names=None, fold=True):
    model = randomize(model).eval()
    names = names or ["input"]
    full = [torch.tensor([37.0 * k + 5 for k in range(s[0])]) if len(s) == 1 else numbers(*s) for s in shapes]
    file = "family_%s_op%d" % (name, opset)
    torch.onnx.export(model, tuple(x[:2] for x in full), file + ".onnx", opset_version=opset, input_names=names,
                      output_names=["output"], do_constant_folding=fold, training=torch.onnx.TrainingMode.PRESERVE,
                      dynamic_axes={k: {0: "N"} for k in names + ["output"]})
    with torch.no_grad():
        golden["%s/out/output" % file] = model(*full).contiguous()


def cbr(i, o, k=1, s=1, p=0, g=1, act=nn.ReLU, eps=1e-5, d=1):
    layers = [nn.Conv2d(i, o, k, s, p, groups=g, dilation=d, bias=False), nn.BatchNorm2d(o, eps=eps)]
    return nn.Sequential(*layers, *([act()] if act else []))


def pooled(x):
    return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)


# --- residual networks (He et al. 2016; Xie et al. 2017) ---

class BasicBlock(nn.Module):
    def __init__(self, i, o, s=1):
        super().__init__()
        self.conv1, self.conv2 = cbr(i, o, 3, s, 1), cbr(o, o, 3, 1, 1, act=None)
        self.downsample = cbr(i, o, 1, s, act=None) if s != 1 or i != o else None

    def forward(self, x):
        return F.relu(self.conv2(self.conv1(x)) + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    def __init__(self, i, w, s=1, groups=1, dilation=1):
        super().__init__()
        self.body = nn.Sequential(cbr(i, w), cbr(w, w, 3, s, dilation, groups, d=dilation), cbr(w, 2 * w, act=None))
        self.downsample = cbr(i, 2 * w, 1, s, act=None) if s != 1 or i != 2 * w else None

    def forward(self, x):
        return F.relu(self.body(x) + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, *blocks, out):
        super().__init__()
        self.stem = nn.Sequential(cbr(3, 4, 7, 2, 3), nn.MaxPool2d(3, 2, 1))
        self.layers, self.fc = nn.Sequential(*blocks), nn.Linear(out, 10)

    def forward(self, x):
        return self.fc(pooled(self.layers(self.stem(x))))


# --- MobileNet v2 (Sandler et al. 2018), v3 (Howard et al. 2019), EfficientNet (Tan and Le 2019) ---

class SqueezeExcite(nn.Module):
    def __init__(self, c, squeeze, act, gate):
        super().__init__()
        self.fc1, self.fc2, self.act, self.gate = nn.Conv2d(c, squeeze, 1), nn.Conv2d(squeeze, c, 1), act(), gate()
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return x * self.gate(self.fc2(self.act(self.fc1(self.avgpool(x)))))


class InvertedResidual(nn.Module):
    def __init__(self, i, mid, o, k=3, s=1, act=nn.ReLU6, se=None):
        super().__init__()
        layers = [cbr(i, mid, act=act)] if mid != i else []
        layers.append(cbr(mid, mid, k, s, k // 2, mid, act))
        layers += [se] if se else []
        self.body, self.skip = nn.Sequential(*layers, cbr(mid, o, act=None)), s == 1 and i == o

    def forward(self, x):
        return x + self.body(x) if self.skip else self.body(x)


class MobileNetV2(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(cbr(3, 8, 3, 2, 1, act=nn.ReLU6), InvertedResidual(8, 8, 4), InvertedResidual(4, 24, 6, s=2),
                                      InvertedResidual(6, 36, 6), InvertedResidual(6, 36, 8, s=2), cbr(8, 24, act=nn.ReLU6))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(24, 10))

    def forward(self, x):
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.features(x), (1, 1)), 1))


class MobileNetV3(nn.Module):
    def __init__(self):
        super().__init__()
        hs, se = nn.Hardswish, lambda c: SqueezeExcite(c, 4, nn.ReLU, nn.Hardsigmoid)
        self.features = nn.Sequential(cbr(3, 8, 3, 2, 1, act=hs), InvertedResidual(8, 8, 8, 3, 2, nn.ReLU, se(8)),
                                      InvertedResidual(8, 20, 8, 3, 1, nn.ReLU), InvertedResidual(8, 24, 12, 5, 2, hs, se(24)),
                                      InvertedResidual(12, 30, 12, 5, 1, hs, se(30)), cbr(12, 24, act=hs))
        self.classifier = nn.Sequential(nn.Linear(24, 20), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(20, 10))

    def forward(self, x):
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))


class EfficientNet(nn.Module):
    def __init__(self):
        super().__init__()
        se = lambda c: SqueezeExcite(c, 3, nn.SiLU, nn.Sigmoid)
        self.features = nn.Sequential(cbr(3, 8, 3, 2, 1, act=nn.SiLU), InvertedResidual(8, 8, 6, act=nn.SiLU, se=se(8)),
                                      InvertedResidual(6, 24, 8, 3, 2, nn.SiLU, se(24)), InvertedResidual(8, 30, 8, 5, 1, nn.SiLU, se(30)),
                                      cbr(8, 24, act=nn.SiLU))
        self.classifier = nn.Linear(24, 10)

    def forward(self, x):
        return self.classifier(pooled(self.features(x)))


# --- VGG (Simonyan and Zisserman 2015), SqueezeNet 1.1 (Iandola et al. 2016) ---

class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        layers, i = [], 3
        for o in (6, "M", 8, "M", 8, 8, "M", 12, 12, "M"):
            layers += [nn.MaxPool2d(2, 2)] if o == "M" else [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(True)]
            i = i if o == "M" else o
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(nn.Linear(48, 24), nn.ReLU(True), nn.Dropout(), nn.Linear(24, 24), nn.ReLU(True), nn.Dropout(),
                                        nn.Linear(24, 10))

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Fire(nn.Module):
    def __init__(self, i, s, e):
        super().__init__()
        self.squeeze, self.expand1x1, self.expand3x3 = nn.Conv2d(i, s, 1), nn.Conv2d(s, e, 1), nn.Conv2d(s, e, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    def __init__(self):
        super().__init__()
        pool = lambda: nn.MaxPool2d(3, 2, ceil_mode=True)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(True), pool(), Fire(8, 4, 6), Fire(12, 4, 6), pool(), Fire(12, 5, 8))
        self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(16, 10, 1), nn.ReLU(True), nn.AdaptiveAvgPool2d((1, 1)))

    def forward(self, x):
        return torch.flatten(self.classifier(self.features(x)), 1)


# --- DenseNet (Huang et al. 2017) ---

class DenseLayer(nn.Module):
    def __init__(self, i, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, parts):
        return self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(torch.cat(parts, 1)))))))


class DenseNet(nn.Module):
    def __init__(self, growth=3, blocks=(2, 5)):
        super().__init__()
        self.stem = nn.Sequential(cbr(3, 8, 7, 2, 3), nn.MaxPool2d(3, 2, 1))
        c, self.blocks, self.transitions = 8, nn.ModuleList(), nn.ModuleList()
        for n in blocks:
            self.blocks.append(nn.ModuleList([DenseLayer(c + k * growth, growth) for k in range(n)]))
            c += n * growth
            self.transitions.append(nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c // 2, 1, bias=False), nn.AvgPool2d(2, 2)))
            c //= 2
        self.norm5, self.classifier = nn.BatchNorm2d(c), nn.Linear(c, 10)

    def forward(self, x):
        x = self.stem(x)
        for block, transition in zip(self.blocks, self.transitions):
            parts = [x]
            for layer in block:
                parts.append(layer(parts))
            x = transition(torch.cat(parts, 1))
        return self.classifier(pooled(F.relu(self.norm5(x))))


# --- GoogLeNet (Szegedy et al. 2015), Inception v3 (Szegedy et al. 2016) ---

class GoogLeNet(nn.Module):
    class Block(nn.Module):
        def __init__(self, i, a, b, c, d):
            super().__init__()
            self.branch1, self.branch2 = cbr(i, a, eps=1e-3), nn.Sequential(cbr(i, b[0], eps=1e-3), cbr(b[0], b[1], 3, 1, 1, eps=1e-3))
            self.branch3 = nn.Sequential(cbr(i, c[0], eps=1e-3), cbr(c[0], c[1], 3, 1, 1, eps=1e-3))
            self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), cbr(i, d, eps=1e-3))

        def forward(self, x):
            return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)

    def __init__(self):
        super().__init__()
        pool = lambda: nn.MaxPool2d(3, 2, ceil_mode=True)
        self.stem = nn.Sequential(cbr(3, 6, 7, 2, 3), pool(), cbr(6, 6), cbr(6, 8, 3, 1, 1), pool())
        self.body = nn.Sequential(self.Block(8, 4, (4, 6), (2, 3), 3), self.Block(16, 4, (4, 6), (2, 3), 3),
                                  nn.MaxPool2d(2, 2, ceil_mode=True))
        self.fc = nn.Linear(16, 10)

    def forward(self, x):  # transform_input, as torchvision has it
        x = torch.cat([torch.unsqueeze(x[:, k], 1) * (s / 0.5) + (m - 0.5) / 0.5 for k, (s, m) in
                       enumerate([(0.229, 0.485), (0.224, 0.456), (0.225, 0.406)])], 1)
        return self.fc(pooled(self.body(self.stem(x))))


class InceptionV3(nn.Module):
    class A(nn.Module):
        def __init__(self, i, p):
            super().__init__()
            self.branch1x1, self.branch_pool = cbr(i, 4), cbr(i, p)
            self.branch5x5, self.branch3x3dbl = nn.Sequential(cbr(i, 3), cbr(3, 4, 5, 1, 2)), nn.Sequential(cbr(i, 4), cbr(4, 5, 3, 1, 1), cbr(5, 5, 3, 1, 1))

        def forward(self, x):
            return torch.cat([self.branch1x1(x), self.branch5x5(x), self.branch3x3dbl(x), self.branch_pool(F.avg_pool2d(x, 3, 1, 1))], 1)

    class B(nn.Module):
        def __init__(self, i):
            super().__init__()
            self.branch3x3, self.branch3x3dbl = cbr(i, 6, 3, 2), nn.Sequential(cbr(i, 4), cbr(4, 5, 3, 1, 1), cbr(5, 5, 3, 2))

        def forward(self, x):
            return torch.cat([self.branch3x3(x), self.branch3x3dbl(x), F.max_pool2d(x, 3, 2)], 1)

    class C(nn.Module):
        def __init__(self, i, w):
            super().__init__()
            row, column = lambda a, b: cbr(a, b, (1, 7), 1, (0, 3)), lambda a, b: cbr(a, b, (7, 1), 1, (3, 0))
            self.branch1x1, self.branch_pool = cbr(i, 6), cbr(i, 6)
            self.branch7x7 = nn.Sequential(cbr(i, w), row(w, w), column(w, 6))
            self.branch7x7dbl = nn.Sequential(cbr(i, w), column(w, w), row(w, w), column(w, w), row(w, 6))

        def forward(self, x):
            return torch.cat([self.branch1x1(x), self.branch7x7(x), self.branch7x7dbl(x), self.branch_pool(F.avg_pool2d(x, 3, 1, 1))], 1)

    class D(nn.Module):
        def __init__(self, i):
            super().__init__()
            self.branch3x3 = nn.Sequential(cbr(i, 5), cbr(5, 6, 3, 2))
            self.branch7x7x3 = nn.Sequential(cbr(i, 5), cbr(5, 5, (1, 7), 1, (0, 3)), cbr(5, 5, (7, 1), 1, (3, 0)), cbr(5, 5, 3, 2))

        def forward(self, x):
            return torch.cat([self.branch3x3(x), self.branch7x7x3(x), F.max_pool2d(x, 3, 2)], 1)

    class E(nn.Module):
        def __init__(self, i):
            super().__init__()
            self.branch1x1, self.branch_pool, self.a, self.b = cbr(i, 5), cbr(i, 4), cbr(i, 5), nn.Sequential(cbr(i, 5), cbr(5, 5, 3, 1, 1))
            self.a1, self.a2 = cbr(5, 4, (1, 3), 1, (0, 1)), cbr(5, 4, (3, 1), 1, (1, 0))
            self.b1, self.b2 = cbr(5, 4, (1, 3), 1, (0, 1)), cbr(5, 4, (3, 1), 1, (1, 0))

        def forward(self, x):
            a, b = self.a(x), self.b(x)
            a, b = torch.cat([self.a1(a), self.a2(a)], 1), torch.cat([self.b1(b), self.b2(b)], 1)
            return torch.cat([self.branch1x1(x), a, b, self.branch_pool(F.avg_pool2d(x, 3, 1, 1))], 1)

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(cbr(3, 4, 3, 2), cbr(4, 4, 3), cbr(4, 8, 3, 1, 1), nn.MaxPool2d(3, 2), cbr(8, 8), cbr(8, 10, 3), nn.MaxPool2d(3, 2))
        self.body = nn.Sequential(self.A(10, 3), self.B(16), self.C(27, 4), self.D(24), self.E(35))
        self.fc = nn.Linear(25, 10)

    def forward(self, x):
        return self.fc(torch.flatten(F.dropout(F.adaptive_avg_pool2d(self.body(self.stem(x)), (1, 1)), training=False), 1))


# --- ShuffleNet v2 (Ma et al. 2018) ---

def channel_shuffle(x, groups):
    n, c, h, w = x.size()
    x = torch.transpose(x.view(n, groups, c // groups, h, w), 1, 2).contiguous()
    return x.view(n, -1, h, w)


class ShuffleUnit(nn.Module):
    def __init__(self, i, o, s):
        super().__init__()
        c, self.s = o // 2, s
        self.branch1 = nn.Sequential(cbr(i, i, 3, s, 1, i, act=None), cbr(i, c)) if s > 1 else nn.Sequential()
        self.branch2 = nn.Sequential(cbr(i if s > 1 else c, c), cbr(c, c, 3, s, 1, c, act=None), cbr(c, c))

    def forward(self, x):
        if self.s == 1:
            a, b = x.chunk(2, dim=1)
            return channel_shuffle(torch.cat((a, self.branch2(b)), 1), 2)
        return channel_shuffle(torch.cat((self.branch1(x), self.branch2(x)), 1), 2)


class ShuffleNetV2(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(cbr(3, 8, 3, 2, 1), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.Sequential(ShuffleUnit(8, 16, 2), ShuffleUnit(16, 16, 1), ShuffleUnit(16, 24, 2), ShuffleUnit(24, 24, 1), cbr(24, 32))
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        return self.fc(self.stages(self.stem(x)).mean([2, 3]))


# --- ConvNeXt (Liu et al. 2022) ---

class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c, eps=1e-6)
        self.pw1, self.pw2, self.scale = nn.Linear(c, 4 * c), nn.Linear(4 * c, c), nn.Parameter(torch.ones(c, 1, 1) * 0.5)

    def forward(self, x):
        y = self.pw2(F.gelu(self.pw1(self.norm(self.dwconv(x).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return x + self.scale * y


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8, eps=1e-6), ConvNeXtBlock(8), LayerNorm2d(8, eps=1e-6),
                                      nn.Conv2d(8, 12, 2, 2), ConvNeXtBlock(12))
        self.norm, self.head = LayerNorm2d(12, eps=1e-6), nn.Linear(12, 10)

    def forward(self, x):
        return self.head(torch.flatten(self.norm(F.adaptive_avg_pool2d(self.features(x), 1)), 1))


# --- ViT (Dosovitskiy et al. 2021) as torchvision and as timm write it, Swin (Liu et al. 2021) ---

class EncoderBlock(nn.Module):
    def __init__(self, c, heads, mlp):
        super().__init__()
        self.ln_1, self.self_attention = nn.LayerNorm(c, eps=1e-6), nn.MultiheadAttention(c, heads, batch_first=True)
        self.ln_2, self.mlp = nn.LayerNorm(c, eps=1e-6), nn.Sequential(nn.Linear(c, mlp), nn.GELU(), nn.Dropout(0.0), nn.Linear(mlp, c), nn.Dropout(0.0))

    def forward(self, x):
        y = self.ln_1(x)
        with torch.enable_grad():  # keeps it from its fused path, which has no ONNX
            y, _ = self.self_attention(y, y, y, need_weights=False)
        x = x + y
        return x + self.mlp(self.ln_2(x))


class ViT(nn.Module):
    def __init__(self, c=16, heads=4):
        super().__init__()
        self.c, self.conv_proj = c, nn.Conv2d(3, c, 8, 8)
        self.class_token, self.pos_embedding = nn.Parameter(torch.randn(1, 1, c)), nn.Parameter(torch.randn(1, 17, c))
        self.layers, self.ln, self.head = nn.Sequential(EncoderBlock(c, heads, 24), EncoderBlock(c, heads, 24)), nn.LayerNorm(c, eps=1e-6), nn.Linear(c, 10)

    def forward(self, x):
        n, _, h, w = x.shape
        x = self.conv_proj(x).reshape(n, self.c, (h // 8) * (w // 8)).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(n, -1, -1), x], dim=1) + self.pos_embedding
        return self.head(self.ln(self.layers(x))[:, 0])


class WindowAttention(nn.Module):
    """Of windows of 4x4 tokens, shifted by 2, with a table of biases by relative place and a mask."""

    def __init__(self, c, heads, shift):
        super().__init__()
        self.heads, self.shift, self.qkv, self.proj = heads, shift, nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.table = nn.Parameter(torch.randn(49, heads))
        at = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        rel = (at[:, :, None] - at[:, None, :]).permute(1, 2, 0) + 3
        self.register_buffer("index", (rel[..., 0] * 7 + rel[..., 1]).flatten())
        zone = torch.zeros(8, 8)
        for k, a in enumerate((slice(0, -4), slice(-4, -2), slice(-2, None))):
            for j, b in enumerate((slice(0, -4), slice(-4, -2), slice(-2, None))):
                zone[a, b] = 3 * k + j
        zone = zone.view(2, 4, 2, 4).permute(0, 2, 1, 3).reshape(4, 16)
        mask = zone[:, None, :] - zone[:, :, None]
        self.register_buffer("mask", mask.masked_fill(mask != 0, -100.0))

    def forward(self, x):  # [N, 8, 8, C]
        n, h, w, c = x.shape
        if self.shift:
            x = torch.roll(x, (-2, -2), (1, 2))
        x = x.view(n, 2, 4, 2, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n * 4, 16, c)
        q, k, v = self.qkv(x).reshape(n * 4, 16, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        a = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        a = a + self.table[self.index].view(16, 16, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        if self.shift:
            a = (a.view(n, 4, self.heads, 16, 16) + self.mask.unsqueeze(1).unsqueeze(0)).view(-1, self.heads, 16, 16)
        x = self.proj((a.softmax(-1) @ v).transpose(1, 2).reshape(n * 4, 16, c))
        x = x.view(n, 2, 2, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, 8, 8, c)
        return torch.roll(x, (2, 2), (1, 2)) if self.shift else x


class Swin(nn.Module):
    def __init__(self, c=8):
        super().__init__()
        self.patch = nn.Conv2d(3, c, 4, 4)
        self.norm1, self.attn1, self.norm2, self.attn2 = nn.LayerNorm(c), WindowAttention(c, 2, False), nn.LayerNorm(c), WindowAttention(c, 2, True)
        self.merge_norm, self.reduction, self.norm, self.head = nn.LayerNorm(4 * c), nn.Linear(4 * c, 2 * c, bias=False), nn.LayerNorm(2 * c), nn.Linear(2 * c, 10)

    def forward(self, x):
        x = self.patch(x).permute(0, 2, 3, 1)
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        x = self.norm(self.reduction(self.merge_norm(x)))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 1), 1))


# --- a conditional U-Net (Rombach et al. 2022): cross attention by einsum, GEGLU ---

class CrossAttention(nn.Module):
    def __init__(self, c, context, heads):
        super().__init__()
        self.heads, self.scale = heads, (c // heads) ** -0.5
        self.to_q, self.to_k, self.to_v, self.to_out = nn.Linear(c, c, bias=False), nn.Linear(context, c, bias=False), nn.Linear(context, c, bias=False), nn.Linear(c, c)

    def split(self, x):
        n, t, c = x.shape
        return x.reshape(n, t, self.heads, c // self.heads).permute(0, 2, 1, 3).reshape(n * self.heads, t, c // self.heads)

    def forward(self, x, context=None):
        n, t, c = x.shape
        context = x if context is None else context
        q, k, v = self.split(self.to_q(x)), self.split(self.to_k(context)), self.split(self.to_v(context))
        a = (torch.einsum("b i d, b j d -> b i j", q, k) * self.scale).softmax(dim=-1)
        y = torch.einsum("b i j, b j d -> b i d", a, v)
        return self.to_out(y.reshape(n, self.heads, t, c // self.heads).permute(0, 2, 1, 3).reshape(n, t, c))


class TransformerBlock(nn.Module):
    def __init__(self, c, context):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(c), nn.LayerNorm(c), nn.LayerNorm(c)
        self.attn1, self.attn2 = CrossAttention(c, c, 2), CrossAttention(c, context, 2)
        self.ff_in, self.ff_out = nn.Linear(c, 4 * c), nn.Linear(2 * c, c)

    def forward(self, x, context):
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        y, gate = self.ff_in(self.norm3(x)).chunk(2, dim=-1)
        return self.ff_out(y * F.gelu(gate)) + x


class ResBlock(nn.Module):
    def __init__(self, i, o, t):
        super().__init__()
        self.norm1, self.conv1, self.emb = nn.GroupNorm(4, i), nn.Conv2d(i, o, 3, padding=1), nn.Linear(t, o)
        self.norm2, self.conv2 = nn.GroupNorm(4, o), nn.Conv2d(o, o, 3, padding=1)
        self.skip = nn.Conv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x, t):
        y = self.conv1(F.silu(self.norm1(x))) + self.emb(F.silu(t))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class UNet(nn.Module):
    def __init__(self, c=8, t=16, context=6):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, t), nn.SiLU(), nn.Linear(t, t))
        self.conv_in, self.res1, self.down = nn.Conv2d(3, c, 3, padding=1), ResBlock(c, c, t), nn.Conv2d(c, c, 3, 2, 1)
        self.norm, self.proj_in, self.block, self.proj_out = nn.GroupNorm(4, c, eps=1e-6), nn.Conv2d(c, c, 1), TransformerBlock(c, context), nn.Conv2d(c, c, 1)
        self.up, self.res2 = nn.Conv2d(c, c, 3, padding=1), ResBlock(2 * c, c, t)
        self.norm_out, self.conv_out = nn.GroupNorm(4, c), nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, sample, timestep, context):
        freqs = torch.exp(-math.log(10000) * torch.arange(0, 4, dtype=torch.float32) / 4)
        args = timestep[:, None].float() * freqs[None]
        t = self.time(torch.cat([torch.cos(args), torch.sin(args)], dim=-1))
        skip = x = self.res1(self.conv_in(sample), t)
        x = self.down(x)
        n, c, h, w = x.shape
        y = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(n, h * w, c)
        y = self.block(y, context).reshape(n, h, w, c).permute(0, 3, 1, 2)
        x = self.proj_out(y.contiguous()) + x
        x = self.up(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(self.res2(torch.cat([x, skip], 1), t))))


picture = (3, 3, 32, 32)
export("resnet_basic", ResNet(BasicBlock(4, 4), BasicBlock(4, 8, 2), BasicBlock(8, 12, 2), out=12), picture, opset=9)
for opset in (11, 17):
    export("resnet_bottleneck", ResNet(Bottleneck(4, 4), Bottleneck(8, 4), Bottleneck(8, 8, 2), out=16), picture, opset=opset)
export("resnext_dilated", ResNet(Bottleneck(4, 8, groups=4), Bottleneck(16, 8, groups=4, dilation=2), out=16), picture, opset=16)
for opset in (9, 16):
    export("mobilenet_v2", MobileNetV2(), picture, opset=opset, fold=opset > 9)
export("mobilenet_v3", MobileNetV3(), picture, opset=14)
export("efficientnet", EfficientNet(), picture, opset=13)
export("vgg", VGG(), picture, opset=9)
export("densenet", DenseNet(), picture, opset=16)
export("googlenet", GoogLeNet(), picture, opset=17)
export("inception_v3", InceptionV3(), (3, 3, 75, 75), opset=11)
export("shufflenet_v2", ShuffleNetV2(), picture, opset=11, fold=False)
for opset in (9, 16):
    export("squeezenet", SqueezeNet(), (3, 3, 35, 34), opset=opset)
export("convnext", ConvNeXt(), picture, opset=17)
export("convnext", ConvNeXt(), picture, opset=11)
for opset in (11, 17):
    export("vit", ViT(), picture, opset=opset)
export("swin", Swin(), picture, opset=13)
export("unet", UNet(), (3, 3, 8, 8), (3,), (3, 5, 6), opset=13, names=["sample", "timestep", "context"])

header, data = {}, b""
for k in sorted(golden):
    raw = golden[k].numpy().tobytes()
    header[k] = {"dtype": "F32", "shape": list(golden[k].shape), "data_offsets": [len(data), len(data) + len(raw)]}
    data += raw
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open("families.safetensors", "wb") as f:
    f.write(struct.pack("<Q", len(text)) + text + data)
print("%d files" % len(golden))
