#!/usr/bin/env python3
"""Write ResNet-20 (He et al. 2016, for CIFAR) or ResNet-18 for 32 x 32 pictures as ONNX, random weights, for runtimes to be compared on.

usage: export_nets.py resnet20|resnet18 OUT.onnx      needs PyTorch (Debian's python3-torch 1.13)"""
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, i, o, s):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o)
        self.c2, self.b2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.short = None if i == o else nn.Sequential(nn.Conv2d(i, o, 1, s, bias=False), nn.BatchNorm2d(o))

    def forward(self, x):
        y = self.b2(self.c2(F.relu(self.b1(self.c1(x)))))
        return F.relu(y + (x if self.short is None else self.short(x)))


def resnet(stages, blocks, width):
    layers, i = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()], width
    for stage in range(stages):
        for block in range(blocks):
            o = width << stage
            layers.append(Block(i, o, 2 if stage and not block else 1))
            i = o
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, 10))


torch.manual_seed(1)
net = {"resnet20": lambda: resnet(3, 3, 16), "resnet18": lambda: resnet(4, 2, 64)}[sys.argv[1]]()
for m in net.modules():
    if isinstance(m, nn.BatchNorm2d):
        nn.init.uniform_(m.running_mean, -0.1, 0.1)
        nn.init.uniform_(m.running_var, 0.5, 1.5)
batch = {0: "N"}
torch.onnx.export(net.eval(), torch.zeros(2, 3, 32, 32), sys.argv[2], opset_version=13, input_names=["x"], output_names=["y"],
                  dynamic_axes={"x": batch, "y": batch})
