"""Writes small NumPy files for test_npy.c, as numpy saves them.

    /usr/bin/python3 make_arrays.py

Made with numpy 1.24.2; no seed: value k of an array is (k * 7 + 3) mod 251.
"""
import numpy as np


def values(*shape):
    return (np.arange(np.prod(shape)) * 7 + 3).reshape(shape) % 251


images = values(4, 6, 5, 3).astype(np.uint8)
labels = np.array([2, 0, 1, 2], np.int64)
np.save("images.npy", images)
np.save("labels.npy", labels)
np.savez_compressed("arrays.npz", labels=labels.astype(np.int32), images=(images.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32))
np.savez("unlabelled.npz", x=images[..., 0])
np.save("fortran.npy", np.asfortranarray(images[:, :, 0, 0]))
np.save("big_endian.npy", labels.astype(">i4"))
np.save("objects.npy", np.array([None, 1], object), allow_pickle=True)
