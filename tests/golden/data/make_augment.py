"""Writes augment_golden.h: single transforms and chains of them, as torchvision does them on Pillow pictures.

    /usr/bin/python3 make_augment.py > augment_golden.h

Made with Pillow 9.4.0, torchvision 0.14.1, torch 1.13.0a0 (Debian 12: python3-pil, python3-torchvision). No seed: pictures are a
formula, see picture(); test_augment.c has the same.
"""
import hashlib

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

BICUBIC, BILINEAR = InterpolationMode.BICUBIC, InterpolationMode.BILINEAR


def picture(h, w):
    y, x, c = np.meshgrid(np.arange(h), np.arange(w), np.arange(3), indexing="ij")
    v = (x * x * 3 + y * y * 5 + x * y * (c + 1) * 7 + c * 90 + 11 * (x ^ y)) // 4
    return Image.fromarray((v & 255).astype(np.uint8))


def planes(im):
    return np.asarray(im.convert("RGB")).transpose(2, 0, 1).tobytes()


def put(name, im):
    data = planes(im)
    rows = [", ".join(str(b) for b in data[k:k + 32]) for k in range(0, len(data), 32)]
    print("static const unsigned char golden_%s[%d] = {\n    %s };" % (name, len(data), ",\n    ".join(rows)))


def put_hash(name, data):
    print('static const char golden_%s_sha256[] = "%s";' % (name, hashlib.sha256(data).hexdigest()))


def hue(im, shift):
    """adjust_hue cuts 255 x off towards zero: half a step more gives just this shift."""
    return F.adjust_hue(im, (shift + 0.5 * (1 if shift > 0 else -1)) / 255)


print("/* augment_golden.h - written by make_augment.py (Pillow %s, torchvision %s, torch %s); do not edit. */"
      % (PIL.__version__, torchvision.__version__, torch.__version__))
print("/* clang-format off */")

im = picture(33, 29)
put("bicubic_shrink", F.resized_crop(im, 3, 2, 24, 25, (12, 12), BICUBIC))
put("bicubic_flip", F.hflip(F.resized_crop(im, 3, 2, 24, 9, (12, 12), BICUBIC)))
put("bicubic_grow", F.resized_crop(im, 20, 17, 7, 5, (12, 12), BICUBIC))
put("bicubic_one_pass", F.resized_crop(im, 5, 6, 12, 20, (12, 12), BICUBIC))
put("bicubic_other_pass", F.hflip(F.resized_crop(im, 5, 6, 20, 12, (12, 12), BICUBIC)))
put("bilinear_shrink", F.resized_crop(im, 0, 0, 33, 29, (12, 12), BILINEAR))
put("bilinear_grow", F.resized_crop(im, 30, 26, 3, 3, (12, 12), BILINEAR))
put("centre", F.center_crop(F.resize(im, 15, BILINEAR), [12, 12]))
put("padded", F.hflip(F.crop(F.pad(picture(12, 12), 4), 1, 7, 12, 12)))

small = picture(12, 12)
for name, step in [("brightness", F.adjust_brightness), ("contrast", F.adjust_contrast), ("saturation", F.adjust_saturation)]:
    put(name + "_down", step(small, 0.61))
    put(name + "_up", step(small, 1.39))
put("hue_up", hue(small, 21))
put("hue_down", hue(small, -25))
put("hue_none", F.adjust_hue(small, 0.0))
put("grey", F.to_grayscale(small, 3))
put("chain", F.to_grayscale(F.adjust_brightness(hue(F.adjust_contrast(F.adjust_saturation(
    F.hflip(F.resized_crop(im, 3, 2, 24, 25, (12, 12), BICUBIC)), 0.7), 1.3), 9), 0.9), 3))
put("colours", F.adjust_brightness(hue(F.adjust_contrast(F.adjust_saturation(
    F.hflip(F.resized_crop(im, 3, 2, 24, 25, (12, 12), BICUBIC)), 0.7), 1.3), 9), 0.9))
put("blur_little", F.gaussian_blur(small, [5, 5], [0.3, 0.3]))
put("blur_much", F.gaussian_blur(small, [9, 9], [1.7, 1.7]))

# How near a half the blurred values come, in double precision: the single precision of both sides must not matter.
for size, sigma in [(5, 0.3), (9, 1.7)]:
    x = np.arange(size) - size // 2
    k = np.exp(-0.5 * (x / sigma) ** 2)
    k /= k.sum()
    a = np.pad(np.asarray(small).astype(float), ((size // 2,) * 2, (size // 2,) * 2, (0, 0)), mode="reflect")
    a = sum(k[t] * a[t:t + 12] for t in range(size))
    a = sum(k[t] * a[:, t:t + 12] for t in range(size))
    assert abs(a - np.floor(a) - 0.5).min() > 1e-4, "choose another sigma"

large = picture(375, 500)
put_hash("large_bicubic", planes(F.resized_crop(large, 11, 37, 351, 402, (224, 224), BICUBIC)))
put_hash("large_bilinear", planes(F.resized_crop(large, 11, 37, 91, 402, (224, 224), BILINEAR)))
put_hash("large_centre", planes(F.center_crop(F.resize(large, 256, BILINEAR), [224, 224])))

# Every colour there is, 4096 x 4096, red slowest: hue of all of them turned by 13 of 255 parts, and saturated.
n = np.arange(1 << 24, dtype=np.uint32)
every = Image.fromarray(np.stack([n >> 16, n >> 8 & 255, n & 255], -1).astype(np.uint8).reshape(4096, 4096, 3))
put_hash("every_hue", planes(hue(every, 13)))
put_hash("every_saturation", planes(F.adjust_saturation(every, 1.37)))
