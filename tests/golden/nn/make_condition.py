#!/usr/bin/env python3
"""Golden vectors for core/nn: UNet2DConditionModel, AutoencoderKL and VQModel written once more, in PyTorch, from their
description (diffusion_models.md 2.6, 4 and 5).

Run as: python3 make_condition.py
Made with Python 3.11.2, PyTorch 1.13.0 (CPU, float32), NumPy 1.24.2, seed 20240301. Writes beside itself:

  conditions.safetensors  small networks, one for each option: metadata "<case>" = config, "<case>.params" = parameter count;
                          tensors "<case>.in.<input>" and "<case>.out.<output>" under the graph's names of them.
                          Their weights are not stored: they come from fill() of make_unet.py, which the test repeats.
"""
import json
import os

import numpy as np
import torch
import torch.nn.functional as F

from make_unet import HERE, Net, fill, save

SEED = 20240301

CONDITION = dict(
    center_input_sample=False, freq_shift=0, flip_sin_to_cos=True, mid_block_type="UNetMidBlock2DCrossAttn",
    only_cross_attention=False, downsample_padding=1, mid_block_scale_factor=1, act_fn="silu", norm_eps=1e-5,
    transformer_layers_per_block=1, reverse_transformer_layers_per_block=None, use_linear_projection=False,
    class_embed_type=None, num_class_embeds=None, resnet_time_scale_shift="default", time_embedding_dim=None,
    time_embedding_type="positional", conv_in_kernel=3, conv_out_kernel=3, projection_class_embeddings_input_dim=None,
    class_embeddings_concat=False, context_length=77)


def levels(v, n):
    return list(v) if isinstance(v, list) else [v] * n


class Condition(Net):
    def __init__(self, config, get):
        super().__init__({**CONDITION, **config}, get)

    def matrix(self, name, x, out):
        return F.linear(x, self.get(name + ".weight", (out, x.shape[-1])))

    def layer_norm(self, name, x):
        w = x.shape[-1]
        return F.layer_norm(x, (w,), self.get(name + ".weight", (w,)), self.get(name + ".bias", (w,)), 1e-5)

    def attend(self, name, x, y, heads):
        n, t, w = x.shape
        q, k, v = (self.matrix(f"{name}.to_{a}", b, w).reshape(n, -1, heads, w // heads).transpose(1, 2)
                   for a, b in (("q", x), ("k", y), ("v", y)))
        a = torch.softmax(q @ k.transpose(2, 3) * (w // heads) ** -0.5, -1) @ v
        return self.linear(name + ".to_out.0", a.transpose(1, 2).reshape(n, t, w), w)

    def transformer(self, name, x, context, heads, depth, only_cross):
        n, c, hh, ww = x.shape
        w = c // heads * heads
        linear = self.c["use_linear_projection"]
        eps, self.c["norm_eps"] = self.c["norm_eps"], 1e-6
        h = self.norm(name + ".norm", x, self.c["norm_num_groups"])
        self.c["norm_eps"] = eps
        if not linear:
            h = self.conv(name + ".proj_in", h, w, 1, 1, 0)
        h = h.flatten(2).transpose(1, 2)
        if linear:
            h = self.linear(name + ".proj_in", h, w)
        for d in range(depth):
            b = f"{name}.transformer_blocks.{d}"
            y = self.layer_norm(b + ".norm1", h)
            h = h + self.attend(b + ".attn1", y, context if only_cross else y, heads)
            h = h + self.attend(b + ".attn2", self.layer_norm(b + ".norm2", h), context, heads)
            a, g = self.linear(b + ".ff.net.0.proj", self.layer_norm(b + ".norm3", h), 8 * w).chunk(2, -1)
            h = h + self.linear(b + ".ff.net.2", a * F.gelu(g), w)
        if linear:
            h = self.linear(name + ".proj_out", h, c)
        h = h.transpose(1, 2).reshape(n, -1, hh, ww)
        if not linear:
            h = self.conv(name + ".proj_out", h, c, 1, 1, 0)
        return x + h

    def embed(self, t, labels):
        c, ch = self.c, self.c["block_out_channels"]
        width = c["time_embedding_dim"] or 4 * ch[0]

        def mlp(name, x, act):
            return self.linear(name + ".linear_2", act(self.linear(name + ".linear_1", x, width)), width)

        e = mlp("time_embedding", self.sinusoid(t), self.act)
        kind = c["class_embed_type"]
        if kind is None and c["num_class_embeds"] is None:
            return e
        if kind is None:
            k = self.get("class_embedding.weight", (c["num_class_embeds"], width))[labels.long()]
        elif kind == "timestep":
            k = mlp("class_embedding", self.sinusoid(labels), self.act)
        elif kind == "identity":
            k = labels
        elif kind == "projection":
            k = mlp("class_embedding", labels, F.silu)
        else:
            k = self.linear("class_embedding", labels, width)
        return torch.cat([e, k], -1) if c["class_embeddings_concat"] else e + k

    def __call__(self, x, t, context, labels=None):
        c, ch, g = self.c, self.c["block_out_channels"], self.c["norm_num_groups"]
        n, last = len(ch), len(ch) - 1
        heads, depth = levels(c["attention_head_dim"], n), levels(c["transformer_layers_per_block"], n)
        layers = levels(c["layers_per_block"], n)
        up_depth = c["reverse_transformer_layers_per_block"] or depth[::-1]
        temb = self.embed(t, labels)
        if c["center_input_sample"]:
            x = 2 * x - 1
        x = self.conv("conv_in", x, ch[0], c["conv_in_kernel"], 1, c["conv_in_kernel"] // 2)
        skips = [x]
        for i, kind in enumerate(c["down_block_types"]):
            for j in range(layers[i]):
                x = self.resnet(f"down_blocks.{i}.resnets.{j}", x, temb, ch[i])
                if kind == "CrossAttnDownBlock2D":
                    x = self.transformer(f"down_blocks.{i}.attentions.{j}", x, context, heads[i], depth[i], c["only_cross_attention"])
                skips.append(x)
            if i < last:
                name = f"down_blocks.{i}.downsamplers.0"
                x = self.resnet(name, x, temb, ch[i], "down") if kind.startswith("Resnet") else self.down(name, x)
                skips.append(x)
        s = c["mid_block_scale_factor"]
        if c["mid_block_type"]:
            x = self.resnet("mid_block.resnets.0", x, temb, ch[last], scale=s)
        if c["mid_block_type"] == "UNetMidBlock2DCrossAttn":
            x = self.transformer("mid_block.attentions.0", x, context, heads[last], depth[last], False)
            x = self.resnet("mid_block.resnets.1", x, temb, ch[last], scale=s)
        for i, kind in enumerate(c["up_block_types"]):
            k = last - i
            for j in range(layers[k] + 1):
                x = self.resnet(f"up_blocks.{i}.resnets.{j}", torch.cat([x, skips.pop()], 1), temb, ch[k])
                if kind == "CrossAttnUpBlock2D":
                    x = self.transformer(f"up_blocks.{i}.attentions.{j}", x, context, heads[k], up_depth[i], c["only_cross_attention"])
            if i < last:
                name = f"up_blocks.{i}.upsamplers.0"
                if kind.startswith("Resnet"):
                    x = self.resnet(name, x, temb, ch[k], "up")
                else:
                    x = self.conv(name + ".conv", F.interpolate(x, scale_factor=2.0, mode="nearest"), ch[k])
        assert not skips
        return self.conv("conv_out", self.act(self.norm("conv_norm_out", x, g)), c["out_channels"],
                         c["conv_out_kernel"], 1, c["conv_out_kernel"] // 2)


class Autoencoder(Net):
    """Both first stages; images and latents as the diffusion model sees them, that is, scaled."""

    def __init__(self, config, get):
        self.kl = config["_class_name"] == "AutoencoderKL"
        config = dict(dict(mid_block_add_attention=True, shift_factor=None, use_quant_conv=True, use_post_quant_conv=True,
                           scaling_factor=0.18215 if self.kl else 1.0, vq_embed_dim=None), **config)
        super().__init__({**config, "norm_eps": 1e-6, "attention_head_dim": None, "downsample_padding": 0}, get)

    def resnet(self, name, x, out):
        g = self.c["norm_num_groups"]
        h = self.conv(name + ".conv1", self.act(self.norm(name + ".norm1", x, g)), out)
        h = self.conv(name + ".conv2", self.act(self.norm(name + ".norm2", h, g)), out)
        return (self.conv(name + ".conv_shortcut", x, out, 1, 1, 0) if x.shape[1] != out else x) + h

    def middle(self, name, x):
        x = self.resnet(name + ".mid_block.resnets.0", x, x.shape[1])
        if self.c["mid_block_add_attention"]:
            x = self.attention(name + ".mid_block.attentions.0", x, self.c["norm_num_groups"])
        return self.resnet(name + ".mid_block.resnets.1", x, x.shape[1])

    def encode(self, x):
        c, ch = self.c, self.c["block_out_channels"]
        z = c["latent_channels"]
        x = self.conv("encoder.conv_in", x, ch[0])
        for i, kind in enumerate(c["down_block_types"]):
            for j in range(c["layers_per_block"]):
                x = self.resnet(f"encoder.down_blocks.{i}.resnets.{j}", x, ch[i])
                if kind.startswith("Attn"):
                    x = self.attention(f"encoder.down_blocks.{i}.attentions.{j}", x, c["norm_num_groups"])
            if i < len(ch) - 1:
                x = self.down(f"encoder.down_blocks.{i}.downsamplers.0", x)
        x = F.silu(self.norm("encoder.conv_norm_out", self.middle("encoder", x), c["norm_num_groups"]))
        x = self.conv("encoder.conv_out", x, 2 * z if self.kl else z)
        s = c["scaling_factor"]
        if not self.kl:
            return {"latent": s * self.conv("quant_conv", x, c["vq_embed_dim"] or z, 1, 1, 0)}
        if c["use_quant_conv"]:
            x = self.conv("quant_conv", x, 2 * z, 1, 1, 0)
        mean, logvar = x.chunk(2, 1)
        return {"latent_mean": s * (mean - (c["shift_factor"] or 0)), "latent_std": s * torch.exp(0.5 * logvar.clamp(-30, 20))}

    def decode(self, x):
        c, ch = self.c, self.c["block_out_channels"][::-1]
        z = c["latent_channels"]
        x = x / c["scaling_factor"]
        if self.kl:
            x = x + (c["shift_factor"] or 0)
        else:
            table = self.get("quantize.embedding.weight", (c["num_vq_embeddings"], x.shape[1]))
            d = ((x.permute(0, 2, 3, 1)[..., None, :] - table) ** 2).sum(-1)
            x = table[d.argmin(-1)].permute(0, 3, 1, 2)
        if not self.kl or c["use_post_quant_conv"]:
            x = self.conv("post_quant_conv", x, z, 1, 1, 0)
        x = self.middle("decoder", self.conv("decoder.conv_in", x, ch[0]))
        for i, kind in enumerate(c["up_block_types"]):
            for j in range(c["layers_per_block"] + 1):
                x = self.resnet(f"decoder.up_blocks.{i}.resnets.{j}", x, ch[i])
                if kind.startswith("Attn"):
                    x = self.attention(f"decoder.up_blocks.{i}.attentions.{j}", x, c["norm_num_groups"])
            if i < len(ch) - 1:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
                x = self.conv(f"decoder.up_blocks.{i}.upsamplers.0.conv", x, ch[i])
        x = F.silu(self.norm("decoder.conv_norm_out", x, c["norm_num_groups"]))
        return {"image": self.conv("decoder.conv_out", x, c["out_channels"])}


TWO = dict(sample_size=8, in_channels=2, out_channels=2, block_out_channels=[8, 12], layers_per_block=1, norm_num_groups=4,
           attention_head_dim=2, cross_attention_dim=6, context_length=5,
           down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"])
THREE = dict(block_out_channels=[8, 16, 12], down_block_types=["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"],
             up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2)
CONDITIONS = {
    "cond_base": {},
    "cond_linear": dict(use_linear_projection=True),
    "cond_lists": dict(THREE, attention_head_dim=[2, 4, 3], layers_per_block=[2, 1, 1], transformer_layers_per_block=[2, 1, 3],
                       cross_attention_dim=[6, 6, 6]),
    "cond_reverse_depth": dict(THREE, transformer_layers_per_block=[1, 2, 1], reverse_transformer_layers_per_block=[1, 1, 2]),
    "cond_only_cross": dict(only_cross_attention=True),
    "cond_heads_not_dividing": dict(attention_head_dim=5),
    "cond_mid_resnet": dict(mid_block_type="UNetMidBlock2D"),
    "cond_no_mid": dict(mid_block_type=None),
    "cond_no_context": dict(down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2, mid_block_type="UNetMidBlock2D"),
    "cond_mid_scale": dict(mid_block_scale_factor=1.4142135623730951),
    "cond_scale_shift": dict(resnet_time_scale_shift="scale_shift", down_block_types=["ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"],
                             up_block_types=["ResnetUpsampleBlock2D", "CrossAttnUpBlock2D"]),
    "cond_gelu": dict(act_fn="gelu", class_embed_type="timestep"),
    "cond_kernels": dict(conv_in_kernel=1, conv_out_kernel=5, center_input_sample=True, sample_size=[8, 4]),
    "cond_class_table": dict(num_class_embeds=7),
    "cond_class_identity": dict(class_embed_type="identity", time_embedding_dim=20),
    "cond_class_projection": dict(class_embed_type="projection", projection_class_embeddings_input_dim=5, act_fn="relu"),
    "cond_class_linear": dict(class_embed_type="simple_projection", projection_class_embeddings_input_dim=5),
    "cond_class_concat": dict(num_class_embeds=7, class_embeddings_concat=True),
}
STAGE = dict(sample_size=16, in_channels=3, out_channels=3, block_out_channels=[8, 12], layers_per_block=1, norm_num_groups=4,
             latent_channels=2, act_fn="silu", down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
VQ = dict(STAGE, latent_channels=3, num_vq_embeddings=64)
STAGES = {
    "kl_base": ("AutoencoderKL", STAGE),
    "kl_three_levels": ("AutoencoderKL", dict(STAGE, block_out_channels=[4, 8, 12], layers_per_block=2, sample_size=[16, 24],
                                              down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3)),
    "kl_shift": ("AutoencoderKL", dict(STAGE, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)),
    "kl_no_mid_attention": ("AutoencoderKL", dict(STAGE, mid_block_add_attention=False, act_fn="relu")),
    "vq_base": ("VQModel", VQ),
    "vq_embed_dim": ("VQModel", dict(VQ, vq_embed_dim=2, scaling_factor=0.5)),
    "vq_attention": ("VQModel", dict(VQ, down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
                                     up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"])),
}


def weights(taken):
    def get(key, shape):
        if key not in taken:
            taken[key] = fill(key, shape)
        assert tuple(taken[key].shape) == tuple(shape)
        return taken[key]
    return get


def normal(rng, *shape):
    return torch.from_numpy(rng.randn(*shape).astype(np.float32))


def condition(rng, config, taken):
    h, w = (config["sample_size"],) * 2 if isinstance(config["sample_size"], int) else config["sample_size"]
    d = config["cross_attention_dim"]
    given = {"sample": normal(rng, 2, config["in_channels"], h, w), "timestep": torch.tensor([3.0, 37.0])}
    context = normal(rng, 2, config["context_length"], d[0] if isinstance(d, list) else d)
    labels = None
    if config.get("num_class_embeds"):
        labels = torch.tensor([5.0, 0.0])
    elif config.get("class_embed_type") == "timestep":
        labels = torch.tensor([12.0, 1.0])
    elif config.get("class_embed_type"):
        labels = normal(rng, 2, config.get("time_embedding_dim") or config["projection_class_embeddings_input_dim"])
    eps = Condition(config, weights(taken))(given["sample"], given["timestep"], context, labels)
    if any("attn2" in k for k in taken):
        given["encoder_hidden_states"] = context
    if labels is not None:
        given["class_labels"] = labels
    return given, {"eps": eps}


def stage(rng, config, taken):
    size = config["sample_size"]
    h, w = (size, size) if isinstance(size, int) else size
    f = 2 ** (len(config["block_out_channels"]) - 1)
    net = Autoencoder(config, weights(taken))
    z = config.get("vq_embed_dim") or config["latent_channels"]
    given = {"sample": normal(rng, 2, config["in_channels"], h, w), "latent": normal(rng, 2, z, h // f, w // f) * 0.5}
    return given, {**net.encode(given["sample"]), **net.decode(given["latent"])}


def main():
    tensors, meta = {}, {}
    cases = [(n, dict(TWO, **c, _class_name="UNet2DConditionModel"), condition) for n, c in CONDITIONS.items()]
    cases += [(n, dict(c, _class_name=k), stage) for n, (k, c) in STAGES.items()]
    for k, (name, config, run) in enumerate(cases):
        taken = {}
        given, made = run(np.random.RandomState(SEED + k), config, taken)
        tensors.update({f"{name}.in.{n}": v for n, v in given.items()})
        tensors.update({f"{name}.out.{n}": v for n, v in made.items()})
        meta[name] = json.dumps(config)
        meta[name + ".params"] = str(sum(v.numel() for v in taken.values()))
        print(f"{name:26} {meta[name + '.params']:>7} parameters,", ", ".join(f"{n} std {v.std().item():.4f}" for n, v in made.items()))
    save(os.path.join(HERE, "conditions.safetensors"), tensors, meta)


if __name__ == "__main__":
    with torch.no_grad():
        main()
