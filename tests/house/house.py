#!/usr/bin/env python3
"""Checks that the house still stands as STYLE describes it: include rings, faces, doors, prefixes, banned calls, file heads, format.

usage: house.py SOURCE_ROOT [BUILD_ROOT]     BUILD_ROOT adds the check of exported names (nm on the static libraries)
"""
import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.abspath(sys.argv[1])
BUILD = os.path.abspath(sys.argv[2]) if len(sys.argv) > 2 else None
failures = []

# Ring of each room: includes point to a smaller number. Rooms with one number do not know each other.
RINGS = {"base": 0, "tensor": 1, "graph": 2, "plan": 3, "model": 3, "data": 3, "nn": 4, "diffusion": 5, "metrics": 5,
         "quant": 6, "synth": 6, "ssl": 6}
# live stands right of store: what it sends is the stored event log.
SERVER_RINGS = {"log": 0, "settings": 0, "store": 1, "live": 2, "jobs": 3, "web": 3, "http": 4, "app": 5, "main": 6}
# What other rooms may include of a room; base is a shelf where every header is a face.
FACES = {room: {f"{room}/{room}.h"} for room in list(RINGS) + list(SERVER_RINGS)}
FACES["tensor"].add("tensor/kernels.h")
FACES["graph"].add("graph/op.h")
FACES["log"], FACES["settings"], FACES["app"] = {"log.h"}, {"settings.h"}, {"app.h"}
# One library, one door: header -> files (or folders) that may include it.
DOORS = {
    "microhttpd.h": ["server/http/"],
    "sqlite3.h": ["server/store/"],
    "uv.h": ["server/live/", "server/app.c"],
    "wslay/": ["server/live/"],
    "jansson.h": ["server/", "core/model/safetensors.c", "core/model/bundle.c", "core/model/config.c", "core/model/model_int.h",
                  "core/model/formats.c"],
    "onnx.pb-c.h": ["core/model/onnx_wire.c"],
    "protobuf-c/": ["core/model/onnx_wire.c"],
    "oneapi/dnnl": ["core/plan/"],
    "cblas.h": ["core/plan/"],
    "lapacke.h": ["core/metrics/"],
    "png.h": ["core/data/"],
    "jpeglib.h": ["core/data/"],
    "archive.h": ["core/data/"],
    "archive_entry.h": ["core/data/"],
    "sodium.h": ["core/base/", "server/http/", "server/store/"],
    "omp.h": ["core/base/par.c", "core/plan/"],
}
BANNED = ["strcpy", "strcat", "sprintf", "vsprintf", "gets", "strtok", "atoi", "atol", "atof", "rand", "srand", "random", "system", "popen",
          "alloca", "mktemp", "tmpnam", "roundf", "lroundf"]
HEAP = ["malloc", "calloc", "realloc", "strdup", "strndup", "asprintf", "vasprintf"]
HEAP_OK = ["core/base/mem.c"]
FORBIDDEN_WORDS = re.compile(r"/work/|\bTODO\b|\bFIXME\b|not implemented", re.I)


def fail(path, line, words):
    failures.append(f"{os.path.relpath(path, ROOT)}:{line}: {words}")


def sources(*folders):
    for folder in folders:
        for base, dirs, names in os.walk(os.path.join(ROOT, folder)):
            dirs.sort()
            for name in sorted(names):
                if name.endswith((".c", ".h")):
                    yield os.path.join(base, name)


def strip(text):
    """Code with comments and strings blanked, lines kept."""
    def blank(m):
        s = m.group(0)
        return "\n" * s.count("\n") if s.startswith("/") else '""'
    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, text, flags=re.S)


def room_of(rel):
    parts = rel.split("/")
    if parts[0] == "core":
        return parts[1], RINGS
    if len(parts) == 2:
        return parts[1].split(".")[0], SERVER_RINGS
    return parts[1], SERVER_RINGS


def target_of(include):
    """Room an include points at, and whether it is one of ours."""
    first = include.split("/")[0]
    if "/" in include and (first in RINGS or first in SERVER_RINGS):
        return first
    if include in ("log.h", "settings.h", "app.h"):
        return include[:-2]
    return None


for path in sources("core", "server"):
    rel = os.path.relpath(path, ROOT)
    text = open(path, encoding="utf-8").read()
    code = strip(text)
    name = os.path.basename(path)
    room, rings = room_of(rel)
    in_core = rel.startswith("core/")

    if not text.startswith(f"/* {name} - "):
        fail(path, 1, f"the file must begin with '/* {name} - ...'")
    if text.count("\n") > 900:
        fail(path, 1, f"{text.count(chr(10))} lines: one subject, most files are 150-500 lines")
    for m in re.finditer(r'^\s*#\s*include\s+(["<])([^">]+)[">]', text, re.M):
        line = text.count("\n", 0, m.start()) + 1
        quoted, include = m.group(1) == '"', m.group(2)
        for header, doors in DOORS.items():
            if include == header or (header.endswith("/") and include.startswith(header)) or \
               (header == "oneapi/dnnl" and include.startswith(header)):
                if not any(rel == d or (d.endswith("/") and rel.startswith(d)) for d in doors):
                    fail(path, line, f"<{include}> has its door elsewhere: {', '.join(doors)}")
        if not quoted:
            continue
        target = target_of(include)
        if target is None:
            if "/" in include:
                fail(path, line, f'"{include}" is in no room')
            continue
        if in_core and target not in RINGS:
            fail(path, line, "core never knows the server")
            continue
        if target == room:
            continue
        if target in rings and target in (RINGS if in_core else SERVER_RINGS):
            if rings[target] >= rings.get(room, 99):
                fail(path, line, f'{room} must not know {target} (include points left only)')
        if target != "base" and include not in FACES[target]:
            fail(path, line, f'"{include}" is not the face of {target}')
    for i, row in enumerate(code.split("\n"), 1):
        for m in re.finditer(r"(?<![\w.>])(\w+)\s*\(", row):
            call = m.group(1)
            if call in BANNED:
                fail(path, i, f"banned call: {call}")
            if call in HEAP and rel not in HEAP_OK:
                fail(path, i, f"{call}: use the house's heap (base/mem.h)")
            if in_core and call in ("printf", "puts", "perror", "exit", "abort") or (in_core and "stderr" in row):
                fail(path, i, f"core never prints and never exits ({call})")

# Words that must not stand in what we ship: unfinished work and places of one machine.
listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
names = listed.stdout.split("\n") if listed.returncode == 0 else []
for rel in names:
    if not rel or rel == "tests/house/house.py" or rel.startswith(("tests/fuzz/corpus/", "deploy/models/")):
        continue
    path = os.path.join(ROOT, rel)
    try:
        text = open(path, encoding="utf-8").read()
    except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
        continue
    for m in FORBIDDEN_WORDS.finditer(text):
        fail(path, text.count("\n", 0, m.start()) + 1, f"'{m.group(0)}' must not stand here")

# What a static library exports carries the prefix of its side.
if BUILD and shutil.which("nm"):
    for base, _, libs in os.walk(BUILD):
        for lib in sorted(libs):
            m = re.match(r"lib(qd_\w+|sv)\.a$", lib)
            if not m:
                continue
            prefix = "qd_" if m.group(1).startswith("qd_") else "sv_"
            out = subprocess.run(["nm", "--defined-only", "-g", os.path.join(base, lib)], capture_output=True, text=True).stdout
            for line in out.split("\n"):
                parts = line.split()
                if len(parts) == 3 and parts[1] in "TDBRVC" and not parts[2].startswith((prefix, "__odr_asan", "__asan", "__gcov")):
                    failures.append(f"{lib}: exported name {parts[2]} lacks the prefix {prefix}")

if shutil.which("clang-format"):
    files = list(sources("core", "server", "tests"))
    files = [f for f in files if "golden" not in f]
    for k in range(0, len(files), 40):
        out = subprocess.run(["clang-format", "--dry-run", "--ferror-limit=1"] + files[k:k + 40], capture_output=True, text=True, cwd=ROOT)
        for line in out.stderr.split("\n"):
            m = re.match(r"(.+?):(\d+):\d+: (?:warning|error): code should be clang-formatted", line)
            if m:
                fail(os.path.join(ROOT, m.group(1)), m.group(2), "not in the house's format (run clang-format -i)")
else:
    print("skipped: clang-format is not installed, layout not checked")

for f in failures:
    print(f)
print(f"house: {len(failures)} findings")
sys.exit(1 if failures else 0)
