#!/usr/bin/env python3
"""Golden vectors for core/nn: UNet2DModel written once more, in PyTorch, from its description (diffusion_models.md 2 and 3).

Run as: python3 make_unet.py deploy/models/fmnist-ddpm-unet
Made with Python 3.11.2, PyTorch 1.13.0 (CPU, float32), NumPy 1.24.2, seed 20240117. Writes beside itself:

  unets.safetensors   small networks, one for each option: metadata "<case>" = config, "<case>.params" = parameter count;
                      tensors "<case>.sample", "<case>.timestep", ["<case>.class_labels"], "<case>.eps".
                      Their weights are not stored: they come from fill() below, which the test repeats.
  fmnist.safetensors  the trained model: "sample", "timestep", "eps", inside values for the first sample, and a DDIM
                      trajectory "ddim10_noise" -> "ddim10_out" (t = 900, 800, .., 0, no clipping, to alpha_bar = 1).
"""
import json
import math
import os
import struct
import sys

import numpy as np
import torch
import torch.nn.functional as F

SEED = 20240117
HERE = os.path.dirname(os.path.abspath(__file__))

DEFAULTS = dict(
    sample_size=None, in_channels=3, out_channels=3, center_input_sample=False, time_embedding_type="positional",
    time_embedding_dim=None, freq_shift=0, flip_sin_to_cos=True,
    down_block_types=["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    mid_block_type="UNetMidBlock2D", up_block_types=["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    block_out_channels=[224, 448, 672, 896], layers_per_block=2, mid_block_scale_factor=1, downsample_padding=1,
    downsample_type="conv", upsample_type="conv", act_fn="silu", attention_head_dim=8, norm_num_groups=32,
    attn_norm_num_groups=None, norm_eps=1e-5, resnet_time_scale_shift="default", add_attention=True,
    class_embed_type=None, num_class_embeds=None, num_train_timesteps=None)


def fill(name, shape):
    """Weights from the tensor's name alone: a hash of (name, index) as a number in [-1, 1)."""
    h = 2166136261
    for c in name.encode():
        h = ((h ^ c) * 16777619) & 0xFFFFFFFF
    n = int(np.prod(shape))
    v = (h + np.arange(n, dtype=np.uint64) * 2654435761) & 0xFFFFFFFF
    v ^= v >> 16
    v = (v * 0x7FEB352D) & 0xFFFFFFFF
    v ^= v >> 15
    v = (v * 0x846CA68B) & 0xFFFFFFFF
    v ^= v >> 16
    u = v.astype(np.float64) / 2147483648.0 - 1.0
    if len(shape) > 1:
        x = u * (1.7 / math.sqrt(np.prod(shape[1:])))
    elif name.endswith(".weight"):
        x = 1.0 + 0.3 * u
    else:
        x = 0.2 * u
    return torch.from_numpy(x.astype(np.float32).reshape(shape))


class Net:
    """The network as plain functions; get(name, shape) hands over a weight."""

    def __init__(self, config, get):
        self.c = {**DEFAULTS, **{k: v for k, v in config.items() if k != "_class_name"}}
        self.get = get
        self.act = {"silu": F.silu, "swish": F.silu, "relu": F.relu, "gelu": F.gelu}[self.c["act_fn"]]
        self.seen = {}

    def linear(self, name, x, out):
        return F.linear(x, self.get(name + ".weight", (out, x.shape[-1])), self.get(name + ".bias", (out,)))

    def conv(self, name, x, out, k=3, stride=1, pad=1):
        return F.conv2d(x, self.get(name + ".weight", (out, x.shape[1], k, k)), self.get(name + ".bias", (out,)), stride, pad)

    def norm(self, name, x, groups):
        c = x.shape[1]
        return F.group_norm(x, groups, self.get(name + ".weight", (c,)), self.get(name + ".bias", (c,)), self.c["norm_eps"])

    def sinusoid(self, t):
        dim = self.c["block_out_channels"][0]
        half = dim // 2
        f = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / (half - self.c["freq_shift"]))
        a = t.float()[:, None] * f[None]
        v = torch.cat([a.cos(), a.sin()] if self.c["flip_sin_to_cos"] else [a.sin(), a.cos()], 1)
        return F.pad(v, (0, 1)) if dim % 2 else v

    def mlp(self, name, x, width):
        return self.linear(name + ".linear_2", F.silu(self.linear(name + ".linear_1", x, width)), width)

    def embed(self, t, labels):
        c = self.c
        width = c["time_embedding_dim"] or 4 * c["block_out_channels"][0]
        if c["time_embedding_type"] == "learned":
            v = self.get("time_proj.weight", (c["num_train_timesteps"], c["block_out_channels"][0]))[t.long()]
        else:
            v = self.sinusoid(t)
        self.seen["time_proj"] = v
        e = self.mlp("time_embedding", v, width)
        self.seen["time_embedding.linear_2"] = e
        if c["class_embed_type"] == "timestep":
            e = e + self.mlp("class_embedding", self.sinusoid(labels), width)
        elif c["class_embed_type"] == "identity":
            e = e + labels
        elif c["num_class_embeds"] is not None:
            e = e + self.get("class_embedding.weight", (c["num_class_embeds"], width))[labels.long()]
        return e

    def resnet(self, name, x, temb, out, how=None, scale=1.0):
        g = self.c["norm_num_groups"]
        change = {None: lambda v: v, "down": lambda v: F.avg_pool2d(v, 2),
                  "up": lambda v: F.interpolate(v, scale_factor=2.0, mode="nearest")}[how]
        h = self.conv(name + ".conv1", change(self.act(self.norm(name + ".norm1", x, g))), out)
        x = change(x)
        if self.c["resnet_time_scale_shift"] == "scale_shift":
            s, b = self.linear(name + ".time_emb_proj", self.act(temb), 2 * out)[:, :, None, None].chunk(2, 1)
            h = self.norm(name + ".norm2", h, g) * (1 + s) + b
        else:
            h = self.norm(name + ".norm2", h + self.linear(name + ".time_emb_proj", self.act(temb), out)[:, :, None, None], g)
        h = self.conv(name + ".conv2", self.act(h), out)
        if x.shape[1] != out:
            x = self.conv(name + ".conv_shortcut", x, out, 1, 1, 0)
        self.seen[name] = (x + h) / scale
        return self.seen[name]

    def attention(self, name, x, groups, scale=1.0):
        n, c, hh, ww = x.shape
        width = self.c["attention_head_dim"] or c
        heads = c // width
        h = self.norm(name + ".group_norm", x, groups) if groups else x
        h = h.reshape(n, c, hh * ww).transpose(1, 2)

        def split(v):
            return v.reshape(n, hh * ww, heads, width).transpose(1, 2)

        q = split(self.linear(name + ".to_q", h, heads * width))
        k = split(self.linear(name + ".to_k", h, heads * width))
        v = split(self.linear(name + ".to_v", h, heads * width))
        a = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(width), -1) @ v
        a = self.linear(name + ".to_out.0", a.transpose(1, 2).reshape(n, hh * ww, heads * width), c)
        return (a.transpose(1, 2).reshape(n, c, hh, ww) + x) / scale

    def down(self, name, x):
        if self.c["downsample_padding"] == 0:
            return self.conv(name + ".conv", F.pad(x, (0, 1, 0, 1)), x.shape[1], 3, 2, 0)
        return self.conv(name + ".conv", x, x.shape[1], 3, 2, 1)

    def __call__(self, x, t, labels=None):
        c = self.c
        ch, layers, g = c["block_out_channels"], c["layers_per_block"], c["norm_num_groups"]
        last = len(ch) - 1
        if c["center_input_sample"]:
            x = 2 * x - 1
        temb = self.embed(t, labels)
        x = self.conv("conv_in", x, ch[0])
        self.seen["conv_in"] = x
        skips = [x]
        for i, kind in enumerate(c["down_block_types"]):
            kind = kind.replace("UNetRes", "")
            for j in range(layers):
                x = self.resnet(f"down_blocks.{i}.resnets.{j}", x, temb, ch[i])
                if kind.startswith("Attn"):
                    x = self.attention(f"down_blocks.{i}.attentions.{j}", x, g)
                skips.append(x)
            if i < last:
                name = f"down_blocks.{i}.downsamplers.0"
                if kind.startswith("Resnet") or (kind.startswith("Attn") and c["downsample_type"] == "resnet"):
                    x = self.resnet(name, x, temb, ch[i], "down")
                else:
                    x = self.down(name, x)
                skips.append(x)
        if c["mid_block_type"]:
            s = c["mid_block_scale_factor"]
            x = self.resnet("mid_block.resnets.0", x, temb, ch[last], scale=s)
            if c["add_attention"]:
                groups = c["attn_norm_num_groups"] or (g if c["resnet_time_scale_shift"] == "default" else None)
                x = self.attention("mid_block.attentions.0", x, groups, s)
            x = self.resnet("mid_block.resnets.1", x, temb, ch[last], scale=s)
        for i, kind in enumerate(c["up_block_types"]):
            kind = kind.replace("UNetRes", "")
            out = ch[last - i]
            for j in range(layers + 1):
                x = self.resnet(f"up_blocks.{i}.resnets.{j}", torch.cat([x, skips.pop()], 1), temb, out)
                if kind.startswith("Attn"):
                    x = self.attention(f"up_blocks.{i}.attentions.{j}", x, g)
            if i < last:
                name = f"up_blocks.{i}.upsamplers.0"
                if kind.startswith("Resnet") or (kind.startswith("Attn") and c["upsample_type"] == "resnet"):
                    x = self.resnet(name, x, temb, out, "up")
                else:
                    x = self.conv(name + ".conv", F.interpolate(x, scale_factor=2.0, mode="nearest"), out)
        assert not skips
        return self.conv("conv_out", F.silu(self.norm("conv_norm_out", x, g)), c["out_channels"])


def save(path, tensors, meta):
    header, data = {"__metadata__": meta}, b""
    for name in sorted(tensors):
        a = np.ascontiguousarray(tensors[name].detach().numpy().astype(np.float32))
        header[name] = {"dtype": "F32", "shape": list(a.shape), "data_offsets": [len(data), len(data) + a.nbytes]}
        data += a.tobytes()
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def load(path):
    with open(path, "rb") as f:
        raw = f.read()
    n = struct.unpack("<Q", raw[:8])[0]
    out = {}
    for name, e in json.loads(raw[8:8 + n]).items():
        if name != "__metadata__":
            b, end = e["data_offsets"]
            assert e["dtype"] == "F32"
            out[name] = torch.from_numpy(np.frombuffer(raw[8 + n + b:8 + n + end], np.float32).reshape(e["shape"]).copy())
    return out


TWO = dict(sample_size=8, in_channels=2, out_channels=2, block_out_channels=[8, 12], layers_per_block=1, norm_num_groups=4,
           attention_head_dim=4, down_block_types=["DownBlock2D", "AttnDownBlock2D"], up_block_types=["AttnUpBlock2D", "UpBlock2D"])
CASES = {
    "base": {},
    "ddpm": dict(downsample_padding=0, attention_head_dim=None, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6),
    "three_levels": dict(block_out_channels=[8, 16, 12], layers_per_block=2,
                         down_block_types=["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
                         up_block_types=["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]),
    "scale_shift": dict(resnet_time_scale_shift="scale_shift"),
    "scale_shift_attn_groups": dict(resnet_time_scale_shift="scale_shift", attn_norm_num_groups=2),
    "attn_groups": dict(attn_norm_num_groups=6),
    "resnet_resampling": dict(downsample_type="resnet", upsample_type="resnet", block_out_channels=[8, 12, 8],
                              down_block_types=["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
                              up_block_types=["UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D"]),
    "resnet_blocks": dict(down_block_types=["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
                          up_block_types=["ResnetUpsampleBlock2D", "UpBlock2D"]),
    "legacy_names": dict(down_block_types=["UNetResDownBlock2D", "UNetResAttnDownBlock2D"],
                         up_block_types=["UNetResAttnUpBlock2D", "UNetResUpBlock2D"]),
    "head_dim_not_dividing": dict(attention_head_dim=5),
    "class_table": dict(num_class_embeds=7),
    "class_timestep": dict(class_embed_type="timestep"),
    "class_identity": dict(class_embed_type="identity", time_embedding_dim=20),
    "center_input": dict(center_input_sample=True, in_channels=1, out_channels=3),
    "mid_scale": dict(mid_block_scale_factor=1.4142135623730951),
    "no_mid_attention": dict(add_attention=False),
    "no_mid": dict(mid_block_type=None),
    "relu": dict(act_fn="relu"),
    "gelu": dict(act_fn="gelu"),
    "learned_time": dict(time_embedding_type="learned", num_train_timesteps=50),
    "odd_width": dict(block_out_channels=[9, 12], norm_num_groups=3, attention_head_dim=3, freq_shift=0.5),
    "rectangle": dict(sample_size=[8, 12]),
}


def small_networks():
    tensors, meta = {}, {}
    for k, (name, change) in enumerate(CASES.items()):
        config = {"_class_name": "UNet2DModel", **TWO, **change}
        taken = {}

        def get(key, shape):
            if key not in taken:
                taken[key] = fill(key, shape)
            assert tuple(taken[key].shape) == tuple(shape)
            return taken[key]

        rng = np.random.RandomState(SEED + k)
        size = config["sample_size"]
        h, w = (size, size) if isinstance(size, int) else size
        x = torch.from_numpy(rng.randn(2, config["in_channels"], h, w).astype(np.float32))
        t = torch.tensor([3.0, 37.0])
        labels = None
        if config.get("num_class_embeds"):
            labels = torch.tensor([5.0, 0.0])
        elif config.get("class_embed_type") == "timestep":
            labels = torch.tensor([12.0, 1.0])
        elif config.get("class_embed_type") == "identity":
            labels = torch.from_numpy(rng.randn(2, config["time_embedding_dim"]).astype(np.float32))
        eps = Net(config, get)(x, t, labels)
        tensors.update({name + ".sample": x, name + ".timestep": t, name + ".eps": eps})
        if labels is not None:
            tensors[name + ".class_labels"] = labels
        meta[name] = json.dumps(config)
        meta[name + ".params"] = str(sum(v.numel() for v in taken.values()))
        print(f"{name:26} {meta[name + '.params']:>7} parameters, eps std {eps.std().item():.4f}")
    save(os.path.join(HERE, "unets.safetensors"), tensors, meta)


def trained(folder):
    with open(os.path.join(folder, "config.json")) as f:
        config = json.load(f)
    weights = load(os.path.join(folder, "diffusion_pytorch_model.safetensors"))

    def get(key, shape):
        assert tuple(weights[key].shape) == tuple(shape), key
        return weights[key]

    net = Net(config, get)
    rng = np.random.RandomState(SEED)
    x = torch.from_numpy(rng.randn(4, 1, 28, 28).astype(np.float32))
    t = torch.tensor([999.0, 640.0, 120.0, 3.0])
    out = {"sample": x, "timestep": t, "eps": net(x, t)}
    for key in ("time_proj", "time_embedding.linear_2"):
        out[key] = net.seen[key]
    for key in ("conv_in", "down_blocks.0.resnets.0", "mid_block.resnets.1"):
        out[key] = net.seen[key][:1]

    abar = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    z = torch.from_numpy(rng.randn(2, 1, 28, 28).astype(np.float32))
    out["ddim10_noise"] = z
    for s in range(900, -1, -100):
        a, b = abar[s], abar[s - 100] if s else 1.0
        e = net(z, torch.full((2,), float(s)))
        z = float(math.sqrt(b)) * (z - float(math.sqrt(1 - a)) * e) / float(math.sqrt(a)) + float(math.sqrt(1 - b)) * e
    out["ddim10_out"] = z
    save(os.path.join(HERE, "fmnist.safetensors"), out, {"model": "fmnist-ddpm-unet", "seed": str(SEED)})


if __name__ == "__main__":
    with torch.no_grad():
        small_networks()
        trained(sys.argv[1])
