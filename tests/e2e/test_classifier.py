"""Classifiers over real HTTP: upload ONNX and data sets, quantize with pictures, evaluate float and quantized, refusals, forgetting."""
import io
import os
import struct
import sys
import tarfile

from daemon import SOURCE, run

DATA = os.environ.get("QUANTD_DATA") or os.path.join(SOURCE, "..", "shared", "data")
CIFAR = {"mean": "0.485, 0.456, 0.406", "std": "0.229, 0.224, 0.225"}
FASHION = {"mean": "0.2860", "std": "0.3530"}


def shared(name):
    path = os.path.join(DATA, name)
    if not os.path.exists(path):
        print(f"skipped: '{path}' is not there")
        sys.exit(77)
    with open(path, "rb") as f:
        return f.read()


def put(d, collection, name, data):
    r = d.request("PUT", f"/v1/{collection}/{name}", data)
    assert r.status in (200, 201), (r.status, r.body)
    assert r.headers["Location"] == f"/v1/{collection}/{r.json()['id']}"
    return r.json()


def tar_of(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return out.getvalue()


def finished(d, body):
    r = d.post("/v1/jobs", body)
    assert r.status == 202, (r.status, r.body)
    return d.wait(r.json()["id"])


def resnet20_in_integers(d):
    model = put(d, "models", "resnet20", shared("weights/cifar10-resnet20/resnet20.onnx"))
    assert model["role"] == "classifier" and not model["summary"]["quantized"], model
    data = put(d, "datasets", "test-1000", shared("datasets/cifar10/test-1000.bin.gz"))
    s = data["summary"]
    assert (data["object"], data["format"], data["role"]) == ("dataset", "cifar", "labelled") and data["id"].startswith("dst_")
    assert (s["count"], s["channels"], s["height"], s["width"], s["classes"]) == (1000, 3, 32, 32, 10)
    assert s["class_counts"] == [103, 89, 100, 103, 90, 86, 112, 102, 106, 109]

    # Accuracy of the float network, exactly as its authors counted.
    job = finished(d, {"kind": "evaluate", "model": "resnet20", "dataset": "test-1000", "params": CIFAR})
    assert job["status"] == "succeeded" and job["dataset"] == data["id"], job
    r = job["result"]
    assert (r["count"], r["right"]) == (1000, 915) and abs(r["top1"] - 0.915) < 1e-9 and 0.99 < r["top5"] <= 1
    assert abs(sum(c["top1"] * n for c, n in zip(r["by_class"], s["class_counts"])) - 915) < 1e-6
    assert r["images_per_second"] > 0 and "agreement" not in r

    # The method is chosen by the model's role; half a point may be lost.
    job = finished(d, {"kind": "quantize", "model": model["id"], "dataset": data["id"],
                       "params": {**CIFAR, "sensitivity_samples": 16, "seed": 3},
                       "max_drop": {"metric": "top1", "value": 0.5}})
    assert job["status"] == "succeeded" and job["method"] == "ptq", job
    q = job["result"]
    assert q["right_float"] == 915 and q["right_quantized"] >= 910 and q["agreement"] > 0.98, q
    assert q["norms_folded"] == 19 and q["layers_quantized"] == 20 and q["ratio"] > 3
    report = d.get(f"/v1/jobs/{job['id']}/artifacts/report.json").json()
    assert len(report["layers"]) == 20 and all(0 <= layer["alone_agreement"] <= 1 for layer in report["layers"])
    assert report["dataset"]["id"] == data["id"]
    assert len(d.get(f"/v1/jobs/{job['id']}/layers").json()["data"]) == 20

    # The bundle is a model like any other: the same answers, compared with the float one.
    job = finished(d, {"kind": "evaluate", "model": q["model"], "dataset": data["id"],
                       "params": {**CIFAR, "reference": "resnet20", "batch": 100}})
    r = job["result"]
    assert job["status"] == "succeeded" and r["right"] == q["right_quantized"] and r["reference_right"] == 915, job
    assert abs(r["agreement"] - q["agreement"]) < 1e-9
    assert d.get(f"/v1/models/{q['model']}").json()["role"] == "classifier"

    # Too much to ask: the report stays, no model is handed out.
    models = len(d.get("/v1/models").json()["data"])
    job = finished(d, {"kind": "quantize", "model": model["id"], "dataset": data["id"],
                       "params": {**CIFAR, "preset": "fast", "limit": 200}, "max_drop": {"metric": "agreement", "value": -1}})
    assert job["status"] == "failed" and job["error"]["code"] == "max_drop_exceeded", job
    assert job["error"]["figures"]["count"] == 200
    assert len(d.get("/v1/models").json()["data"]) == models


def wrong_jobs_are_told_what_is_wrong(d):
    model = put(d, "models", "resnet20", shared("weights/cifar10-resnet20/resnet20.onnx"))["id"]
    denoiser = d.upload_shipped()
    grey = put(d, "datasets", "grey", struct.pack(">IIII", 0x803, 2, 28, 28) + bytes(2 * 784))["id"]
    for body, pointer, words in [
        ({"kind": "quantize", "model": model}, "/dataset", "needs a dataset"),
        ({"kind": "quantize", "model": model, "dataset": "dst_none"}, "/dataset", "does not exist"),
        ({"kind": "quantize", "model": model, "dataset": 7}, "/dataset", "id or name"),
        ({"kind": "quantize", "model": denoiser, "dataset": grey}, "/dataset", "takes no dataset"),
        ({"kind": "quantize", "model": denoiser, "params": {"method": "ptq"}, "dataset": grey}, "/params/method", "takes a classifier"),
        ({"kind": "quantize", "model": model, "params": {"method": "mse"}}, "/params/method", "takes a denoiser"),
        ({"kind": "quantize", "model": model, "dataset": grey, "max_drop": {"metric": "psnr_db", "value": 1}},
         "/max_drop/metric", "top1, agreement"),
        ({"kind": "evaluate", "model": denoiser, "dataset": grey, "params": {"method": "accuracy"}}, "/params/method", "takes a classifier"),
        ({"kind": "evaluate", "model": model, "dataset": grey, "params": {"reference": "nobody"}}, "/params/reference", "nobody"),
        ({"kind": "evaluate", "model": model, "dataset": grey, "params": {"reference": denoiser}}, "/params/reference", "denoiser"),
    ]:
        r = d.post("/v1/jobs", body)
        assert r.status == 422 and r.json()["param"] == pointer and words in r.json()["detail"], (body, r.status, r.body)
    # What only the pictures can tell comes when the job runs, and is not tried again.
    job = finished(d, {"kind": "evaluate", "model": model, "dataset": grey})
    assert job["status"] == "failed" and "1 x 28 x 28" in job["error"]["message"] and job["attempt"] == 1, job


def datasets_come_in_every_form(d):
    images, labels = (shared(f"datasets/fashion-mnist/t10k-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1"))
    pair = tar_of({"fashion/t10k-images-idx3-ubyte.gz": images, "fashion/t10k-labels-idx1-ubyte.gz": labels, "fashion/README": b"x"})
    a = put(d, "datasets", "fashion", pair)
    s = a["summary"]
    assert (a["format"], s["count"], s["classes"], s["files_left_out"]) == ("idx", 10000, 10, 1), a
    assert abs(s["mean"][0] - 0.2868) < 1e-3 and abs(s["std"][0] - 0.3524) < 1e-3
    assert put(d, "datasets", "fashion", pair)["id"] == a["id"], "the same bytes under the same name are the same data set"
    assert d.get("/v1/datasets/fashion").json()["id"] == a["id"]
    assert d.get(f"/v1/datasets/{a['id']}/content").body == pair
    alone = put(d, "datasets", "unlabelled", images)
    assert alone["role"] == "unlabelled" and alone["summary"]["classes"] == 0
    assert [x["id"] for x in d.get("/v1/datasets").json()["data"]] == [alone["id"], a["id"]]

    put(d, "models", "dwnet", shared("weights/fmnist-dwnet/dwnet.onnx"))
    job = finished(d, {"kind": "evaluate", "model": "dwnet", "dataset": "fashion", "params": {**FASHION, "limit": 1000}})
    assert job["status"] == "succeeded" and 900 <= job["result"]["right"] <= 935, job
    job = finished(d, {"kind": "evaluate", "model": "dwnet", "dataset": "unlabelled", "params": FASHION})
    assert job["status"] == "failed" and "no labels" in job["error"]["message"], job

    for data, words in [(b"hello", "no whole number of CIFAR-10 records"), (b"", "empty"),
                        (images[:len(images) // 2], "truncated gzip"), (tar_of({"a/readme": b"x"}), "no data set was found"),
                        (tar_of({"a-images-idx3": images, "b-images-idx3": images}), "two IDX files"),
                        (tar_of({"../evil.bin": bytes(3073)}), "..")]:
        r = d.request("PUT", "/v1/datasets/bad", data)
        assert r.status == 422 and r.json()["code"] == "invalid_dataset" and words in r.json()["detail"], (r.status, r.body)
        assert d.dir not in r.body.decode(), "no paths of ours in words for strangers"

    # Forgetting: bytes go with the last that uses them; a name may come again.
    second = put(d, "datasets", "again", images)
    for gone, blobs in ((alone, True), (second, False)):
        assert d.request("DELETE", f"/v1/datasets/{gone['id']}").status == 204
        assert d.get(f"/v1/datasets/{gone['id']}").status == 410
        assert (d.request("HEAD", f"/v1/blobs/sha256:{gone['sha256']}").status == 200) == blobs
    d.kill()
    d.start()
    assert d.get("/v1/datasets/fashion").json()["id"] == a["id"] and d.get(f"/v1/datasets/{a['id']}/content").body == pair


def bytes_shared_by_both_kinds_stay(d):
    """One file that is a model to some and, sent as data, data to others: deleting one leaves the other its bytes."""
    header = b'{"images":{"dtype":"U8","shape":[2,1,2,2],"data_offsets":[0,8]},"labels":{"dtype":"U8","shape":[2],"data_offsets":[8,10]}}'
    data = struct.pack("<Q", len(header)) + header + bytes(range(10))
    a = put(d, "datasets", "tensors", data)
    assert a["format"] == "tensors" and a["summary"]["class_counts"][8:] == [1, 1], a
    r = d.post("/v1/datasets", {"blob": f"sha256:{a['sha256']}", "name": "same"})
    assert r.status == 201 and r.json()["sha256"] == a["sha256"], r.body
    assert d.request("DELETE", f"/v1/datasets/{a['id']}").status == 204
    assert d.get("/v1/datasets/same/content").body == data
    assert d.request("DELETE", f"/v1/datasets/{r.json()['id']}").status == 204
    assert not [f for f in d.files() if a["sha256"] in f]


if __name__ == "__main__":
    run(resnet20_in_integers, wrong_jobs_are_told_what_is_wrong, datasets_come_in_every_form, bytes_shared_by_both_kinds_stay)
