"""Views a second on one thread: bench_augment_torch.py PRESET SIDE prints PyTorch's loop, then torchvision on Pillow (0 if absent).

The first makes the steps of the preset with torch alone, on float tensors; the second is what published programs do.
"""
import math
import random
import sys
import time

import torch
import torch.nn.functional as F

preset, side = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
torch.manual_seed(1)
random.seed(1)
size = 224 if "imagenet" in preset else side
mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
simclr = preset.startswith("simclr")
blurs = preset == "simclr-imagenet"
pictures = [(torch.rand(3, side, side) * 255).to(torch.uint8) for _ in range(64)]


def rectangle(h, w, low):
    for _ in range(10):
        area, ratio = h * w * random.uniform(low, 1), math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        cw, ch = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < cw <= w and 0 < ch <= h:
            return random.randint(0, h - ch), random.randint(0, w - cw), ch, cw
    return 0, 0, h, w


def grey(x):
    return (0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]).unsqueeze(0)


def hue(x, turn):
    high, low = x.max(0).values, x.min(0).values
    span = high - low
    s = span / high.clamp(min=1e-8)
    d = torch.where(span == 0, torch.ones_like(span), span)
    rc, gc, bc = (high - x[0]) / d, (high - x[1]) / d, (high - x[2]) / d
    h = torch.where(x[0] == high, bc - gc, torch.where(x[1] == high, 2 + rc - bc, 4 + gc - rc))
    h = (h / 6 + 1 + turn) % 1
    i = torch.floor(h * 6)
    f = h * 6 - i
    p, q, t = high * (1 - s), high * (1 - s * f), high * (1 - s * (1 - f))
    i = i.long() % 6
    table = torch.stack([torch.stack(c) for c in ((high, t, p), (q, high, p), (p, high, t), (p, q, high), (t, p, high), (high, p, q))])
    return table.gather(0, i.expand(1, 3, *i.shape)).squeeze(0)


def blur(x, sigma, kernel=23):
    k = torch.exp(-0.5 * (torch.arange(kernel) - kernel // 2).float().div(sigma) ** 2)
    k = (k / k.sum()).view(1, 1, 1, -1)
    x = F.pad(x.unsqueeze(1), (kernel // 2,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(x, k), k.transpose(2, 3)).squeeze(1)


def view(u8):
    x = u8.float() / 255
    if simclr or preset == "imagenet-supervised":
        top, left, h, w = rectangle(side, side, 0.1 if preset == "simclr-cifar" else 0.08)
        x = F.interpolate(x[None, :, top:top + h, left:left + w], size=(size, size), mode="bicubic" if simclr else "bilinear",
                          align_corners=False, antialias=True)[0].clamp(0, 1)
    elif preset == "cifar-supervised":
        y, z = random.randint(0, 8), random.randint(0, 8)
        x = F.pad(x, (4, 4, 4, 4))[:, y:y + side, z:z + side]
    if preset != "eval" and random.random() < 0.5:
        x = x.flip(2)
    if simclr and random.random() < 0.8:
        for step in random.sample(range(4), 4):
            f = random.uniform(0.6, 1.4)
            if step == 0:
                x = (x * f).clamp(0, 1)
            elif step == 1:
                x = torch.lerp(grey(x).mean().expand_as(x), x, f).clamp(0, 1)
            elif step == 2:
                x = torch.lerp(grey(x).expand_as(x), x, f).clamp(0, 1)
            else:
                x = hue(x, random.uniform(-0.1, 0.1))
    if simclr and random.random() < 0.2:
        x = grey(x).expand(3, -1, -1)
    if blurs and random.random() < 0.5:
        x = blur(x, random.uniform(0.1, 2))
    return (x - mean) / std


def measure(f, items, n):
    best = []
    for _ in range(3):
        start = time.perf_counter()
        for k in range(n):
            f(items[k % len(items)])
        best.append(n / (time.perf_counter() - start))
    return sorted(best)[1]


n = 400 if size <= 64 else 60
ours = measure(view, pictures, n)
theirs = 0
try:
    from PIL import Image
    from torchvision import transforms as T
    bicubic = T.InterpolationMode.BICUBIC
    tail = [T.ToTensor(), T.Normalize(mean.flatten().tolist(), std.flatten().tolist())]
    if simclr:
        steps = [T.RandomResizedCrop(size, scale=(0.1 if size == side else 0.08, 1), interpolation=bicubic), T.RandomHorizontalFlip(),
                 T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), T.RandomGrayscale(0.2)]
        steps += [T.RandomApply([T.GaussianBlur(23, (0.1, 2.0))], 0.5)] if blurs else []
    elif preset == "cifar-supervised":
        steps = [T.RandomCrop(side, 4), T.RandomHorizontalFlip()]
    elif preset == "imagenet-supervised":
        steps = [T.RandomResizedCrop(size), T.RandomHorizontalFlip()]
    else:
        steps = [T.Resize(256), T.CenterCrop(224)] if size == 224 else []
    theirs = measure(T.Compose(steps + tail), [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures], n)
except ImportError:
    pass
print(ours, theirs)
