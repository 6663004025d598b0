"""Files from strangers: each refused with a 422 that names the thing, nothing left on disk, the daemon lives."""
import io
import json
import os
import struct
import tarfile
import zipfile

from daemon import SHIPPED, run, shipped_tar

WEIGHTS = "diffusion_pytorch_model.safetensors"


def header_of(data):
    n = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + n]), data[8 + n:]


def with_header(change):
    """The shipped weights with a changed header over the same bytes."""
    def edit(name, data):
        if name != WEIGHTS:
            return data
        header, body = header_of(data)
        body = change(header, body) or body
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + body
    return shipped_tar(edit)


def weights(f):
    return shipped_tar(lambda name, data: f(data) if name == WEIGHTS else data)


def config(**changes):
    def edit(name, data):
        if name != "config.json":
            return data
        doc = json.loads(data)
        for k, v in changes.items():
            if v is DROP:
                doc.pop(k, None)
            else:
                doc[k] = v
        return json.dumps(doc).encode()
    return shipped_tar(edit)


DROP = object()


def set_offsets(name, a, b):
    def f(h, body):
        h[name]["data_offsets"] = [a, b]
    return f


def set_key(name, key, value):
    def f(h, body):
        h[name][key] = value
    return f


def rename(old, new):
    def f(h, body):
        h[new] = h.pop(old)
    return f


def overlap(h, body):
    h["conv_in.weight"]["data_offsets"] = h["conv_out.weight"]["data_offsets"]


def nan(data):
    header, _ = header_of(data)
    n = struct.unpack("<Q", data[:8])[0]
    at = 8 + n + header["conv_in.bias"]["data_offsets"][0]
    return data[:at] + struct.pack("<f", float("nan")) + data[at + 4:]


def archive(*entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in entries:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def link():
    info = tarfile.TarInfo("m/config.json")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return archive((info, b""))


def bomb():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        with z.open("m/zeros", "w", force_zip64=True) as f:
            block = bytes(1 << 20)
            for _ in range(80):
                f.write(block)
    return out.getvalue()


def table():
    with open(os.path.join(SHIPPED, WEIGHTS), "rb") as f:
        plain = f.read()
    return [
        ("empty body", b"", ""),
        ("text", b"hello, I am not a model\n", ""),
        ("a png", b"\x89PNG\r\n\x1a\n" + bytes(100), ""),
        ("weights without config", plain, "config"),
        ("truncated in the data", weights(lambda x: x[:-1000]), "tensor"),
        ("truncated in the header", weights(lambda x: x[:200]), "header"),
        ("header longer than allowed", weights(lambda x: struct.pack("<Q", 1 << 40) + x[8:]), "header"),
        ("header length zero", weights(lambda x: struct.pack("<Q", 0) + x[8:]), "header"),
        ("trailing bytes", weights(lambda x: x + b"tail"), ""),
        ("offset past the end", with_header(set_offsets("conv_in.weight", 0, 1 << 30)), "conv_in.weight"),
        ("negative offset", with_header(set_offsets("conv_in.weight", -8, 568)), "conv_in.weight"),
        ("overlap", with_header(overlap), "conv_"),
        ("lying shape", with_header(set_key("conv_in.weight", "shape", [16, 1, 3, 4])), "conv_in.weight"),
        ("shape that overflows", with_header(set_key("conv_in.weight", "shape", [1 << 62, 1 << 62])), "conv_in.weight"),
        ("unknown dtype", with_header(set_key("conv_in.weight", "dtype", "F7")), "F7"),
        ("missing tensor", with_header(rename("conv_in.bias", "conv_in.bios")), "conv_in.bi"),
        ("NaN", weights(nan), "conv_in.bias"),
        ("config is not JSON", shipped_tar(lambda n, x: b"{" if n == "config.json" else x), "config.json"),
        ("no config", shipped_tar(lambda n, x: None if n == "config.json" else x), "config"),
        ("no weights", shipped_tar(lambda n, x: None if n == WEIGHTS else x), "safetensors"),
        ("unknown class", config(_class_name="StyleGAN"), "StyleGAN"),
        ("unknown block", config(down_block_types=["DownBlock2D", "DownBlock2D", "MagicBlock"]), "MagicBlock"),
        ("channels do not fit", config(block_out_channels=[16, 32, 96]), ""),
        ("channels not divisible", config(norm_num_groups=7), "norm_num_groups"),
        ("absurd channels", config(block_out_channels=[16, 32, 1 << 40]), "block_out_channels"),
        ("string for a number", config(layers_per_block="two"), "layers_per_block"),
        ("bad schedule", shipped_tar(lambda n, x: b'{"beta_schedule":"wavy"}' if n == "scheduler_config.json" else x), "wavy"),
        ("path out of the folder", archive((tarfile.TarInfo("../../evil"), b"x")), "evil"),
        ("absolute path", archive((tarfile.TarInfo("/tmp/evil"), b"x")), "evil"),
        ("symbolic link", link(), "config.json"),
        ("zip bomb", bomb(), "zeros"),
    ]


def each_is_refused(d):
    for name, data, words in table():
        r = d.upload(data, "bad")
        try:
            doc = r.json()
        except ValueError:
            raise AssertionError(f"{name}: {r.status} {r.body[:200]}")
        assert r.status == 422, f"{name}: {r.status} {doc}"
        assert words in doc["detail"], f"{name}: '{words}' is not in: {doc['detail']}"
        left = d.files()
        assert left == [], f"{name}: left behind {left}"
        print(f"     {name}: {doc['detail']}")
    assert d.alive()
    assert d.get("/v1/models").json()["data"] == []
    d.upload_shipped()


each_is_refused.flags = ["--max-unpacked", str(64 << 20)]


def too_large_is_refused_early(d):
    r = d.upload(bytes((1 << 20) + 1), "big")
    assert r.status == 413, (r.status, r.body)
    assert d.files() == [] and d.alive()


too_large_is_refused_early.flags = ["--max-upload", str(1 << 20)]

if __name__ == "__main__":
    run(each_is_refused, too_large_is_refused_early)
