#!/usr/bin/env python3
"""Write the ddpm-cifar10 U-Net (35.7 M parameters, weights by rule, not trained) as ONNX, for runtimes to be compared on.

usage: export_cifar.py OUT.onnx      needs PyTorch (Debian's python3-torch 1.13)"""
import os
import sys

out = sys.argv[1]
here = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(here, "..", "golden", "nn"))
import torch  # noqa: E402

import make_unet  # noqa: E402

CONFIG = dict(
    sample_size=32, in_channels=3, out_channels=3, block_out_channels=[128, 256, 256, 256],
    down_block_types=["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"], layers_per_block=2, attention_head_dim=None,
    downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, norm_num_groups=32)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = torch.nn.ParameterDict()
        self.net = make_unet.Net(CONFIG, self.get)

    def get(self, name, shape):
        key = name.replace(".", "/")
        if key not in self.weights:
            self.weights[key] = torch.nn.Parameter(make_unet.fill(name, shape), requires_grad=False)
        return self.weights[key]

    def forward(self, sample, timestep):
        return self.net(sample, timestep)


network = Network().eval()
x, t = torch.zeros(2, 3, 32, 32), torch.tensor([10.0, 10.0])
with torch.no_grad():
    network(x, t)
    batch = {0: "N"}
    torch.onnx.export(network, (x, t), out, opset_version=13, input_names=["sample", "timestep"], output_names=["eps"],
                      dynamic_axes={"sample": batch, "timestep": batch, "eps": batch})
