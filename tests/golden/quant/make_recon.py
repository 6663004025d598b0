"""Writes recon_golden.h: learned rounding of a residual block, and GPTQ of a linear layer and a convolution.

    /usr/bin/python3 make_recon.py > recon_golden.h

Made with torch 1.13.0a0, seed 20240821, in double precision from float32 inputs. AdaRound by autograd over all samples at once; GPTQ as its
paper has it, by the inverse of the damped H and its upper Cholesky factor.
"""
import math

import numpy as np
import torch
import torch.nn.functional as F

torch.manual_seed(20240821)
print("/* recon_golden.h - written by make_recon.py (torch %s, seed 20240821); do not edit. */" % torch.__version__)
print("/* clang-format off */")


def put(name, t, kind="float"):
    flat = t.detach().reshape(-1).tolist()
    form = "%d" if kind == "int8_t" else "%.9g"
    print("static const %s %s[%d] = { %s };" % (kind, name, len(flat), ", ".join(form % v for v in flat)))


def scales(w, share):
    """One step for each row: share of what reaches its largest weight with codes up to 7, as float32 arithmetic has it."""
    top = w.reshape(w.shape[0], -1).abs().max(1).values.double()
    return ((top / 7).float() * torch.tensor(share)).double()


# --- AdaRound: x + conv2(silu(conv1(silu(group_norm(x))))) ---

N, C, SIDE, ITERATIONS = 6, 4, 5, 60
LR, LAMBDA, B0, B1, WARM = 0.02, 0.01, 20.0, 2.0, 0.2
x = torch.randn(N, C, SIDE, SIDE)
gamma, beta, bias = 1 + 0.2 * torch.randn(C), 0.1 * torch.randn(C), 0.1 * torch.randn(C)
weights = [0.25 * torch.randn(C, C, 3, 3), 0.25 * torch.randn(C, C, 3, 3)]
for name, t in (("block_x", x), ("block_gamma", gamma), ("block_beta", beta), ("block_bias", bias)):
    put(name, t)
for k, w in enumerate(weights):
    put("block_w%d" % k, w)


def block(ws):
    h = F.silu(F.group_norm(x.double(), 2, gamma.double(), beta.double(), 1e-6))
    h = F.silu(F.conv2d(h, ws[0], None, padding=1))
    return x.double() + F.conv2d(h, ws[1], bias.double(), padding=1)


steps = [scales(w, 0.6).reshape(-1, 1, 1, 1) for w in weights]
floors = [torch.floor(w.double() / s) for w, s in zip(weights, steps)]
vs = []
for w, s, f in zip(weights, steps, floors):
    r = w.double() / s - f
    vs.append((-torch.log(1.2 / (r + 0.1) - 1)).requires_grad_())
target = block([w.double() for w in weights])
adam = torch.optim.Adam(vs, lr=LR, betas=(0.9, 0.999), eps=1e-8)
losses = []
for it in range(ITERATIONS):
    hs = [torch.clamp(torch.sigmoid(v) * 1.2 - 0.1, 0, 1) for v in vs]
    ws = [torch.clamp(f + h, -8, 7) * s for f, h, s in zip(floors, hs, steps)]
    loss = (block(ws) - target).pow(2).sum(1).mean()
    losses.append(loss.item())
    warm = it < WARM * ITERATIONS
    b = B0 if warm else B0 + (B1 - B0) * (it - WARM * ITERATIONS) / (ITERATIONS - WARM * ITERATIONS)
    total = loss if warm else loss + LAMBDA * sum((1 - (2 * h - 1).abs().pow(b)).sum() for h in hs)
    adam.zero_grad()
    total.backward()
    adam.step()
put("block_loss", torch.tensor(losses, dtype=torch.float64))
codes = [torch.clamp(f + (v >= 0).double(), -8, 7) for f, v in zip(floors, vs)]
for k, c in enumerate(codes):
    put("block_codes%d" % k, c, "int8_t")
nearest = [torch.clamp(torch.round(w.double() / s), -8, 7) * s for w, s in zip(weights, steps)]
put("block_mse", torch.stack([(block(nearest) - target).pow(2).mean(),
                              (block([c * s for c, s in zip(codes, steps)]) - target).pow(2).mean()]))


# --- GPTQ ---

def gptq(w, rows, damping, order):
    """Codes of w [O, K] for inputs rows [n, K]."""
    s = scales(w, 1.0)
    w = w.double().clone()
    h = rows.double().T @ rows.double()
    k = h.shape[0]
    perm = torch.argsort(torch.diag(h), descending=True, stable=True) if order else torch.arange(k)
    h = h[perm][:, perm]
    h += damping * torch.diag(h).mean() * torch.eye(k, dtype=torch.float64)
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h))).T
    w = w[:, perm]
    out = torch.zeros_like(w)
    for j in range(k):
        out[:, perm[j]] = torch.clamp(torch.round(w[:, j] / s), -8, 7)
        off = (w[:, j] - out[:, perm[j]] * s) / u[j, j]
        w[:, j + 1:] -= torch.outer(off, u[j, j + 1:])
    return out


mix = torch.randn(3, 20)
tokens = torch.randn(40, 5, 3) @ mix + 0.3 * torch.randn(40, 5, 20)
w = torch.randn(12, 20)
put("linear_x", tokens)
put("linear_w", w)
put("linear_codes", gptq(w, tokens.reshape(-1, 20), 0.01, False), "int8_t")
put("linear_ordered", gptq(w, tokens.reshape(-1, 20), 0.01, True), "int8_t")

images = F.avg_pool2d(torch.randn(30, 4, 14, 14), 3, 2)
w = torch.randn(6, 2, 3, 3)
put("conv_x", images)
put("conv_w", w)
parts = []
for g in range(2):  # two groups of channels, stride 2, padding 1
    patches = F.unfold(images[:, 2 * g:2 * g + 2], 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 18)
    parts.append(gptq(w[3 * g:3 * g + 3].reshape(3, 18), patches, 0.02, False))
put("conv_codes", torch.cat(parts), "int8_t")
print("/* clang-format on */")
