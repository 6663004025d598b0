"""Writes small tar files for test_samples.c, in the three formats Python's tarfile knows.

    /usr/bin/python3 make_tar.py

Made with Python 3.11; no seed. Picture k is 3 x 2, grey, value 10 k + i at pixel i. One name is longer than a ustar header holds.
"""
import io
import struct
import tarfile
import zlib

LONG = "dog/" + "n" * 150 + ".png"


def png(k):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(10 * k + 3 * y + x for x in range(3)) for y in range(2))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write(path, files, format):
    with tarfile.open(path, "w", format=format) as t:
        t.addfile(tarfile.TarInfo("./set"), None)
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))


classes = [("./set/cat/a.png", png(1)), ("set/readme.txt", b"no picture"), ("set/" + LONG, png(2)), ("set/cat/b.png", png(3))]
write("gnu.tar", classes, tarfile.GNU_FORMAT)
write("pax.tar", classes, tarfile.PAX_FORMAT)
write("web.tar", [("000.png", png(1)), ("000.cls", b"7\n"), ("001.cls", b"2"), ("001.png", png(2)), ("001.json", b"{}")], tarfile.USTAR_FORMAT)
