#!/usr/bin/env python3
"""Writes metrics_golden.h: figures of merit by numpy, scipy (matrix square roots) and torch (resizing), each as its paper says it,
without the shortcuts of the C code.

usage: make_metrics.py > metrics_golden.h      writes stats.npz beside the script, too (Debian 12: numpy 1.24.2, scipy 1.10.1, torch 1.13.0a0)
"""
import os

import numpy as np
import scipy
import scipy.linalg
import torch

SEED = 20240912
rng = np.random.default_rng(SEED)


def emit(name, values, kind="double"):
    flat = np.asarray(values).ravel()
    digits = {"double": "%.17g", "float": "%.9g", "uint8_t": "%d"}[kind]
    print(f"static const {kind} {name}[{flat.size}] = {{ " + ", ".join(digits % v for v in flat) + " };")


def frechet(a, b):
    """pytorch-fid: sqrtm of the product, real part."""
    m1, m2 = a.mean(0), b.mean(0)
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2)
    return ((m1 - m2) ** 2).sum() + np.trace(c1 + c2) - 2 * np.trace(root.real)


def mmd(a, b):
    d, n, m = a.shape[1], len(a), len(b)
    k = lambda x, y: (x @ y.T / d + 1) ** 3
    xx, yy, xy = k(a, a), k(b, b), k(a, b)
    return (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * xy.mean()


def manifold(fake, real, k):
    dist = lambda x, y: np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))
    reach = lambda x: np.sort(dist(x, x), axis=1)[:, k]  # place 0 is itself
    rf, rr, d = reach(fake), reach(real), dist(fake, real)
    return [(d <= rr[None]).any(1).mean(), (d <= rf[:, None]).any(0).mean(), (d <= rr[None]).sum() / (k * len(fake)),
            (d.min(0) <= rr).mean()]


def inception(p, chunk):
    scores = []
    for first in range(0, len(p), chunk):
        q = p[first:first + chunk]
        scores.append(np.exp((q * (np.log(q) - np.log(q.mean(0, keepdims=True)))).sum(1).mean()))
    return [np.mean(scores), np.std(scores), len(scores)]


def ssim(a, b):
    """Wang 2004, with the window laid over every place where it fits."""
    size = min(11, min(a.shape[:2]) - (min(a.shape[:2]) + 1) % 2)
    g = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * 1.5 ** 2))
    w = np.outer(g, g) / np.outer(g, g).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    out = []
    for c in range(a.shape[2]):
        for i in range(a.shape[0] - size + 1):
            for j in range(a.shape[1] - size + 1):
                x = a[i:i + size, j:j + size, c].astype(float)
                y = b[i:i + size, j:j + size, c].astype(float)
                mx, my = (w * x).sum(), (w * y).sum()
                vx, vy, cov = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum(), (w * (x - mx) * (y - my)).sum()
                out.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx ** 2 + my ** 2 + c1) * (vx + vy + c2)))
    return np.mean(out)


print(f"/* metrics_golden.h - written by make_metrics.py (numpy {np.__version__}, scipy {scipy.__version__}, torch "
      f"{torch.__version__}, seed {SEED}); do not edit. */")
print("/* clang-format off */")
print("enum { GOLDEN_A = 150, GOLDEN_B = 130, GOLDEN_DIM = 6, GOLDEN_FEW = 5, GOLDEN_WIDE = 8, GOLDEN_ANSWERS = 50, GOLDEN_CLASSES = 7 };")
mix = rng.normal(size=(6, 6))
a = (rng.normal(size=(150, 6)) @ mix + 100.0).astype(np.float32)
b = (rng.normal(size=(130, 6)) @ (mix + 0.4 * rng.normal(size=(6, 6))) + 100.5).astype(np.float32)
emit("golden_a", a, "float")
emit("golden_b", b, "float")
a, b = a.astype(float), b.astype(float)
emit("golden_mean_a", a.mean(0))
emit("golden_cov_a", np.cov(a, rowvar=False))
np.savez_compressed(os.path.join(os.path.dirname(os.path.abspath(__file__)), "stats.npz"), mu=a.mean(0), sigma=np.cov(a, rowvar=False))
emit("golden_frechet", [frechet(a, b), frechet(b, a), frechet(a, a)])
few_a, few_b = rng.normal(size=(2, 5, 8)).astype(np.float32)
emit("golden_few_a", few_a, "float")
emit("golden_few_b", few_b, "float")
# Five rows in eight dimensions: the product has no root that sqrtm finds, but a trace by its eigenvalues.
few_a, few_b = few_a.astype(float), few_b.astype(float)
values = scipy.linalg.eigvals(np.cov(few_a, rowvar=False) @ np.cov(few_b, rowvar=False))
emit("golden_frechet_few", [((few_a.mean(0) - few_b.mean(0)) ** 2).sum() + np.trace(np.cov(few_a, rowvar=False)) +
                            np.trace(np.cov(few_b, rowvar=False)) - 2 * np.sqrt(np.maximum(values.real, 0)).sum()])
emit("golden_mmd", [mmd(a - 100, b - 100), mmd(a[:130] - 100, b - 100)])
emit("golden_manifold_3", manifold(a, b, 3))
emit("golden_manifold_5", manifold(a, b, 5))
logits = (3 * rng.normal(size=(50, 7))).astype(np.float32)
p = np.exp(logits.astype(float))
p /= p.sum(1, keepdims=True)
emit("golden_logits", logits, "float")
emit("golden_inception_all", inception(p, 5000))
emit("golden_inception_chunks", inception(p, 20))
for name, shape in (("grey", (16, 14, 1)), ("rgb", (12, 13, 3)), ("small", (8, 9, 1))):
    x = rng.integers(0, 256, size=shape)
    y = np.clip(x + rng.normal(scale=25, size=shape), 0, 255).astype(int)
    emit(f"golden_{name}_x", x, "uint8_t")
    emit(f"golden_{name}_y", y, "uint8_t")
    emit(f"golden_{name}_ssim", [ssim(x, y)])
plane = rng.random(size=(5, 7)).astype(np.float32)
emit("golden_plane", plane, "float")
emit("golden_plane_8x9", torch.nn.functional.interpolate(torch.tensor(plane)[None, None], (8, 9), mode="bilinear",
                                                         align_corners=False).numpy(), "float")
emit("golden_plane_3x4", torch.nn.functional.interpolate(torch.tensor(plane)[None, None], (3, 4), mode="bilinear",
                                                         align_corners=False).numpy(), "float")


def corner(x, h, w):
    """tf.image.resize of TensorFlow 1: pixel k of the result is at k * from / to."""
    out = np.empty((h, w), np.float32)
    for i in range(h):
        for j in range(w):
            r, c = i * x.shape[0] / h, j * x.shape[1] / w
            r0, c0 = int(r), int(c)
            r1, c1 = min(r0 + 1, x.shape[0] - 1), min(c0 + 1, x.shape[1] - 1)
            fr, fc = r - r0, c - c0
            out[i, j] = (x[r0, c0] * (1 - fc) + x[r0, c1] * fc) * (1 - fr) + (x[r1, c0] * (1 - fc) + x[r1, c1] * fc) * fr
    return out


emit("golden_plane_corner", corner(plane, 8, 9), "float")
print("/* clang-format on */")
