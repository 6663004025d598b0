"""README tells the truth: its curl session works line by line, and the commands it lists exist."""
import os
import re
import shutil
import subprocess
import sys

from daemon import QUANTD, SOURCE, run

if not (shutil.which("curl") and shutil.which("jq")):
    print("skipped: curl and jq are not installed")
    sys.exit(77)

with open(os.path.join(SOURCE, "README.md"), encoding="utf-8") as f:
    README = f.read()


def the_session_works(d):
    script = re.search(r"## A session with curl.*?```sh\n(.*?)```", README, re.S).group(1)
    script = script.replace("http://127.0.0.1:8420", f"http://127.0.0.1:{d.port}").replace("/tmp/", d.dir + "/")
    out = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=SOURCE, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, (out.returncode, out.stderr, out.stdout[-2000:])
    assert "null" not in re.findall(r"[a-f0-9]{64} \d+ (\S+)", out.stdout)
    for part in ('"eps_sqnr_db"', "model.safetensors", "params.weight_bits"):
        assert part in out.stdout, f"{part} is not in:\n{out.stdout[-3000:]}"
    for name in ("pairs.png", "samples.png"):
        with open(os.path.join(d.dir, name), "rb") as f:
            assert f.read(4) == b"\x89PNG", name


def the_commands_exist(d):
    listed = re.search(r"## Commands\n\n(.*?)\n\n", README, re.S).group(1)
    names = re.findall(r"^    quantd (\w+)", listed, re.M)
    assert len(names) >= 6
    helped = subprocess.run([QUANTD, "help"], capture_output=True, text=True).stdout
    for name in names:
        own = subprocess.run([QUANTD, name, "--help"], capture_output=True, text=True)
        assert own.returncode == 0 and f"usage: quantd {name}" in own.stdout, (name, own)
        assert name in helped, f"quantd help does not list {name}"
    for name in re.findall(r"^  (\w+)\s", helped, re.M):
        assert name in names + ["help"], f"README does not list quantd {name}"


if __name__ == "__main__":
    run(the_session_works, the_commands_exist)
