"""Checkpoints of PyTorch over real HTTP and from the command line: taken as models, refused by name, and what `quantd check` says of files."""
import gzip
import io
import os
import subprocess
import tarfile
import tempfile

from daemon import QUANTD, SHIPPED, SOURCE, run

SMALL = os.path.join(SOURCE, "tests/golden/nn/classifiers")
SEEDS = os.path.join(SOURCE, "tests/fuzz/corpus/torch")


def read(*parts):
    with open(os.path.join(*parts), "rb") as f:
        return f.read()


def tar_of(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return out.getvalue()


def cifar(n):
    """Records of CIFAR-10: pictures whose brightness is their label."""
    return b"".join(bytes([k % 10]) + bytes([k % 10 * 25]) * 3072 for k in range(n))


def taken_as_models(d):
    for name, data, classes in [("archive", read(SMALL, "pytorchcv.pth"), 7), ("stream", read(SMALL, "option_b.pth"), 7),
                                ("in-a-folder", tar_of({"net/config.json": b'{"_class_name": "ResNet", "image_size": 32}',
                                                        "net/checkpoint.pth": read(SMALL, "torchvision.pth")}), 7)]:
        r = d.upload(data, name)
        assert r.status == 201, (name, r.status, r.body)
        m = r.json()
        assert m["role"] == "classifier" and m["summary"]["inputs"]["input"]["shape"] == [None, 3, 32, 32], m
        print(f"     {name}: {m['format']}, {m['summary']['parameters']} parameters")
    # The average was taken, and that is said.
    r = d.upload(read(SMALL, "option_a.pth"), "averaged")
    assert r.status == 201 and any("'model_ema'" in w and "state_dict" in w for w in r.json()["summary"]["warnings"]), r.body
    # A job opens it like any other model: it has seven classes, the pictures have ten.
    r = d.request("PUT", "/v1/datasets/grey", cifar(40))
    assert r.status == 201, r.body
    r = d.post("/v1/jobs", {"kind": "evaluate", "model": "stream", "dataset": "grey", "params": {"mean": "0.5", "std": "0.25"}})
    assert r.status == 202, r.body
    job = d.wait(r.json()["id"])
    assert job["status"] == "failed" and "the model tells 7 classes apart" in str(job["error"]), job


def refused_by_name(d):
    for seed, words in [("system", "global 'posix.system' is not something that rebuilds a tensor"), ("eval", "eval' is not"),
                        ("overlap", "zip:"), ("dotdot", "walks with '.' or '..'"), ("cut", "zip"), ("checksum", "checksum"),
                        ("outside", "ends at element"), ("repeated", "laid out plainly")]:
        r = d.upload(read(SEEDS, "seed-" + seed), "bad")
        assert r.status == 422, (seed, r.status, r.body)
        assert words in r.json()["detail"], (seed, r.json()["detail"])
        assert d.files() == [], seed
        print(f"     {seed}: {r.json()['detail']}")
    assert d.alive()


def check(*args):
    p = subprocess.run([QUANTD, "check", *args], capture_output=True, text=True, timeout=120)
    return p.returncode, p.stdout, p.stderr


def check_looks_at_files(d):
    with tempfile.TemporaryDirectory() as tmp:
        def file(name, data):
            with open(os.path.join(tmp, name), "wb") as f:
                f.write(data)
            return f.name

        for path, words in [(SHIPPED, "model, diffusers, denoiser"),
                            (os.path.join(SMALL, "dwnet.pth"), "model, torch, classifier"),
                            (file("model.tar", tar_of({"m/config.json": b"{}", "m/net.pth": read(SMALL, "option_b.pth")})), "classifier"),
                            (file("data.bin", cifar(12)), "data set, cifar, labelled"),
                            (file("data.bin.gz", gzip.compress(cifar(12))), "data set, cifar, labelled"),
                            (file("data.tar", tar_of({"pictures/train.bin": cifar(20)})), "data set, cifar, labelled")]:
            code, out, err = check(path)
            assert code == 0 and words in out.split("\n")[0] and out.split("\n")[1].startswith("{"), (path, code, out, err)
            print(f"     {out.split(chr(10))[0]}")
        for path, words in [(os.path.join(SEEDS, "seed-system"), "global 'posix.system'"), (file("text", b"hello"), "neither"),
                            (file("bad.tar", tar_of({"../x": b""})), ".."), (os.path.join(tmp, "nowhere"), "there is no file")]:
            code, out, err = check(path)
            assert code == 1 and words in err and not out, (path, code, out, err)
        assert sorted(os.listdir(tmp)) == ["bad.tar", "data.bin", "data.bin.gz", "data.tar", "model.tar", "text"]


if __name__ == "__main__":
    run(taken_as_models, refused_by_name, check_looks_at_files)
