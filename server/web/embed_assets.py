#!/usr/bin/env python3
"""embed_assets.py - turn the files of the dashboard into the C table that web.h describes.

usage: embed_assets.py OUTPUT.c FILE ...
"""
import hashlib
import os
import sys

TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
         ".svg": "image/svg+xml", ".png": "image/png", ".ico": "image/x-icon", ".json": "application/json", ".woff2": "font/woff2"}


def main():
    output, files = sys.argv[1], sorted(sys.argv[2:], key=os.path.basename)
    bodies, rows = [], []
    for k, path in enumerate(files):
        name = os.path.basename(path)
        kind = TYPES.get(os.path.splitext(name)[1])
        if kind is None:
            sys.exit("no content type is known for " + name)
        with open(path, "rb") as f:
            data = f.read()
        lines = [",".join(str(b) for b in data[i:i + 32]) for i in range(0, len(data), 32)] or ["0"]
        bodies.append("static const unsigned char body_%d[] = {\n%s\n};" % (k, ",\n".join(lines)))
        rows.append('    { "/%s", "%s", "\\"%s\\"", body_%d, %d },' % (name, kind, hashlib.sha256(data).hexdigest()[:32], k, len(data)))
    text = ["/* Made by embed_assets.py from server/web/. */", "#include <string.h>", "", '#include "web/web.h"', ""]
    text += bodies
    text += ["", "const sv_asset sv_assets[] = {"] + rows + ["    { NULL },", "};", ""]
    with open(output, "w", encoding="ascii") as f:
        f.write("\n".join(text))


main()
