#!/usr/bin/env python3
"""Golden vectors for core/diffusion: a latent diffusion pipeline from noise to picture, in PyTorch: conditional U-Net with
classifier-free guidance, five DDIM steps, first stage (diffusion_models.md 4.1, 5 and 8.2).

Run as: python3 make_pipeline.py
Made with Python 3.11.2, PyTorch 1.13.0 (CPU, float32; the sampler's scalars in float64), NumPy 1.24.2, seed 20240415. Writes beside
itself:

  pipelines.safetensors   metadata "<case>.unet", ".first_stage", ".scheduler" = configs, "<case>.guidance" = w;
                          tensors "<case>.noise", ".context" and ".null_context" or ".class_table", ".eps" (guided answer at the
                          first step, as the network says it), ".latent" (after the last step), ".image" (decoded, not clamped).
                          Weights are not stored: fill() of ../nn/make_unet.py, which the test repeats.
"""
import json
import os
import sys

import numpy as np
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "nn"))
from make_condition import Autoencoder, Condition, normal, weights  # noqa: E402
from make_unet import save  # noqa: E402

SEED = 20240415
STEPS = 5

UNET = dict(_class_name="UNet2DConditionModel", sample_size=8, in_channels=4, out_channels=4, block_out_channels=[8, 12],
            layers_per_block=1, norm_num_groups=4, attention_head_dim=2, cross_attention_dim=6, context_length=5,
            down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"])
STAGE = dict(sample_size=32, in_channels=3, out_channels=3, block_out_channels=[8, 12], layers_per_block=1, norm_num_groups=4,
             latent_channels=4, act_fn="silu", down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
KL = dict(STAGE, _class_name="AutoencoderKL", scaling_factor=0.18215)
VQ = dict(STAGE, _class_name="VQModel", latent_channels=3, num_vq_embeddings=64)
SCHEDULER = dict(_class_name="DDIMScheduler", num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                 steps_offset=1, set_alpha_to_one=False, clip_sample=False, prediction_type="epsilon", timestep_spacing="leading")
CASES = {
    "kl_guided": (UNET, KL, SCHEDULER, 7.5, "zeros"),
    "kl_null_given": (UNET, KL, SCHEDULER, 3.0, "given"),
    "kl_v": (UNET, KL, dict(SCHEDULER, prediction_type="v_prediction"), 4.0, "given"),
    "kl_sample": (UNET, KL, dict(SCHEDULER, prediction_type="sample"), 2.0, "given"),
    "kl_unguided": (UNET, KL, SCHEDULER, 1.0, None),
    "kl_without": (UNET, KL, SCHEDULER, 0.0, "given"),
    "vq_class_table": (dict(UNET, in_channels=3, out_channels=3, context_length=1), VQ, SCHEDULER, 3.0, "table"),
}


def alpha_bars(s):
    b = np.linspace(np.sqrt(s["beta_start"]), np.sqrt(s["beta_end"]), s["num_train_timesteps"]) ** 2
    return np.cumprod(1 - b)


def sample(net, s, w, x, context, null):
    abar = alpha_bars(s)
    stride = s["num_train_timesteps"] // STEPS
    first = None
    for k in range(STEPS - 1, -1, -1):
        t = k * stride + s["steps_offset"]
        a, p = abar[t], abar[t - stride] if t >= stride else abar[0]
        times = torch.full((2 * len(x),), float(t))
        out_u, out_c = net(torch.cat([x, x]), times, torch.cat([null, context])).chunk(2)
        out = out_u + w * (out_c - out_u)
        first = out if first is None else first
        root, noise = np.sqrt(a), np.sqrt(1 - a)
        eps = {"epsilon": lambda: out, "v_prediction": lambda: root * out + noise * x, "sample": lambda: (x - root * out) / noise}[s["prediction_type"]]()
        x = np.sqrt(p) * (x - noise * eps) / root + np.sqrt(1 - p) * eps
    return first, x


def main():
    tensors, meta = {}, {}
    for k, (name, (unet, stage, scheduler, w, null_kind)) in enumerate(CASES.items()):
        rng = np.random.RandomState(SEED + k)
        x = normal(rng, 3, unet["in_channels"], 8, 8)
        if null_kind == "table":  # rows 0..4, of which the last stands for no class
            table = normal(rng, 5, unet["cross_attention_dim"])
            context, null = table[:3, None], table[4:, None].expand(3, 1, -1)
            tensors[name + ".class_table"] = table
        else:
            context = normal(rng, 3, unet["context_length"], unet["cross_attention_dim"])
            tensors[name + ".context"] = context
            null = torch.zeros_like(context)
            if null_kind == "given":
                row = normal(rng, 1, unet["context_length"], unet["cross_attention_dim"])
                tensors[name + ".null_context"] = row
                null = row.expand_as(context)
        eps, latent = sample(Condition(unet, weights({})), scheduler, w, x, context, null)
        first = Autoencoder(stage, weights({}))
        first.encode(torch.zeros(1, 3, 16, 16))  # shapes only: the test fills all weights
        image = first.decode(latent)["image"]
        tensors.update({name + ".noise": x, name + ".eps": eps, name + ".latent": latent, name + ".image": image})
        meta.update({name + ".unet": json.dumps(unet), name + ".first_stage": json.dumps(stage),
                     name + ".scheduler": json.dumps(scheduler), name + ".guidance": repr(w)})
        print(f"{name:16} eps std {eps.std():.3f}, latent std {latent.std():.3f}, image std {image.std():.3f}")
    save(os.path.join(HERE, "pipelines.safetensors"), tensors, meta)


if __name__ == "__main__":
    with torch.no_grad():
        main()
