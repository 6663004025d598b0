#!/usr/bin/env python3
"""make_classifiers.py - small ResNets and a MobileNet under the names their writers use, as checkpoints, with answers of PyTorch.

Made with PyTorch 1.13.0, seed 11. `classifiers/<name>.pth` is what a training program saves; `classifiers/golden.safetensors` holds
<name>.input and <name>.logits (dwnet also .features). Run in this folder.
"""
import json
import pathlib
import struct
from collections import OrderedDict

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(11)
OUT = pathlib.Path("classifiers")
OUT.mkdir(exist_ok=True)


class OptionA(nn.Module):
    def __init__(self, more):
        super().__init__()
        self.more = more

    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


class Basic(nn.Module):
    def __init__(self, i, o, stride, option, name):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.short = name
        if stride != 1 or i != o:
            setattr(self, name, OptionA(o - i) if option == "A" else
                    nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)))

    def forward(self, x):
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(h + (getattr(self, self.short)(x) if hasattr(self, self.short) else x))


class Bottleneck(nn.Module):
    def __init__(self, i, inner, o, stride, groups):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, o, 1, bias=False), nn.BatchNorm2d(o)
        if stride != 1 or i != o:
            self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(h)))))
        return F.relu(h + (self.downsample(x) if hasattr(self, "downsample") else x))


class ResNet(nn.Module):
    def __init__(self, stem, kernel, levels, last, block):
        super().__init__()
        self.large, self.last, self.levels = kernel == 7, last, len(levels)
        self.conv1, self.bn1 = nn.Conv2d(3, stem, kernel, 2 if self.large else 1, kernel // 2, bias=False), nn.BatchNorm2d(stem)
        i = stem
        for k, (n, o) in enumerate(levels):
            blocks = []
            for j in range(n):
                blocks.append(block(i, o, 2 if k and not j else 1))
                i = o
            setattr(self, f"layer{k + 1}", nn.Sequential(*blocks))
        setattr(self, last, nn.Linear(i, 7))

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)))
        if self.large:
            h = F.max_pool2d(h, 3, 2, 1)
        for k in range(self.levels):
            h = getattr(self, f"layer{k + 1}")(h)
        return getattr(self, self.last)(h.mean((2, 3)))


def unit(i, o, k, s=1, p=0, g=1):
    return nn.Sequential(nn.Conv2d(i, o, k, s, p, groups=g, bias=False), nn.BatchNorm2d(o))


class Inverted(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.same = stride == 1 and i == o
        self.expand, self.dw, self.project = unit(i, 2 * i, 1), unit(2 * i, 2 * i, 3, stride, 1, 2 * i), unit(2 * i, o, 1)

    def forward(self, x):
        h = self.project(F.relu6(self.dw(F.relu6(self.expand(x)))))
        return h + x if self.same else h


class DWNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = unit(1, 4, 3, 1, 1)
        self.blocks = nn.Sequential(Inverted(4, 4, 1), Inverted(4, 6, 2), Inverted(6, 6, 1), Inverted(6, 8, 2))
        self.head, self.fc = unit(8, 12, 1), nn.Linear(12, 5)

    def forward(self, x):
        f = F.relu6(self.head(self.blocks(F.relu6(self.stem(x))))).mean((2, 3))
        return self.fc(f), f


def train_a_little(net, shape):
    """Statistics and biases that are not their defaults."""
    net.train()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.uniform_(0.5, 1.5)
                m.bias.uniform_(-0.5, 0.5)
        for _ in range(3):
            net(torch.randn(8, *shape) * 2)
    net.eval()


def safetensors(path, tensors):
    header, data = {}, b""
    for name, t in tensors.items():
        raw = t.detach().contiguous().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + 56)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def pytorchcv_name(name):
    if name.startswith("layer"):
        level, block, rest = name[5:].split(".", 2)
        head, _, tail = rest.partition(".")
        if head == "downsample":
            index, tail = tail.split(".", 1)
            return f"features.stage{level}.unit{int(block) + 1}.identity_conv.{'conv' if index == '0' else 'bn'}.{tail}"
        part = "conv" if head.startswith("conv") else "bn"
        return f"features.stage{level}.unit{int(block) + 1}.body.conv{head[-1]}.{part}.{tail}"
    return name.replace("conv1.", "features.init_block.conv.").replace("bn1.", "features.init_block.bn.").replace("fc.", "output.")


small, rgb = [(1, 4), (2, 6), (1, 8)], (3, 32, 32)
golden = OrderedDict()
nets = {
    "option_a": ResNet(4, 3, small, "linear", lambda i, o, s: Basic(i, o, s, "A", "shortcut")),
    "option_b": ResNet(4, 3, small, "linear", lambda i, o, s: Basic(i, o, s, "B", "shortcut")),
    "torchvision": ResNet(4, 7, small + [(1, 10)], "fc", lambda i, o, s: Basic(i, o, s, "B", "downsample")),
    "bottleneck": ResNet(4, 7, [(1, 8), (2, 8), (1, 12), (1, 16)], "fc", lambda i, o, s: Bottleneck(i, o // 2, o, s, 2)),
    "pytorchcv": ResNet(4, 3, small, "fc", lambda i, o, s: Basic(i, o, s, "B", "downsample")),
    "dwnet": DWNet(),
}
for name, net in nets.items():
    shape = (1, 28, 28) if name == "dwnet" else rgb
    train_a_little(net, shape)
    x = torch.randn(3, *shape)
    with torch.no_grad():
        y = net(x)
    golden[f"{name}.input"] = x
    if name == "dwnet":
        golden["dwnet.features"] = y[1]
        y = y[0]
    golden[f"{name}.logits"] = y
    state = net.state_dict()
    if name == "pytorchcv":
        state = OrderedDict((pytorchcv_name(k), v) for k, v in state.items())
    if name == "option_a":  # as akamaster's trainer saves it, from several devices; and with an average
        state = {"state_dict": nn.DataParallel(net).state_dict(), "model_ema": net.state_dict(), "best_prec1": 91.0}
    torch.save(state, OUT / f"{name}.pth", _use_new_zipfile_serialization=name != "option_b")
safetensors(OUT / "golden.safetensors", golden)
