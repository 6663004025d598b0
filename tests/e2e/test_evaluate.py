"""Evaluating over real HTTP: pictures against a data set in the features of a network, kept and uploaded statistics, a quantized denoiser
beside the float one, cancelling, refusals."""
import gzip
import json
import os
import struct
import subprocess
import sys
import time

from daemon import QUANTD, QUICK, SHIPPED, SOURCE, run

DATA = os.environ.get("QUANTD_DATA") or os.path.join(SOURCE, "..", "shared", "data")
FASHION = {"mean": "0.2860", "std": "0.3530"}
SMALL = {**FASHION, "kid_subsets": 5, "kid_size": 50, "resamples": 3}
DRAW = {"steps": 4, "count": 20, "batch": 8, "seed": 5, "clip": "off", "show": 3}


def shared(name):
    path = os.path.join(DATA, name)
    if not os.path.exists(path):
        print(f"skipped: '{path}' is not there")
        sys.exit(77)
    with open(path, "rb") as f:
        return f.read()


def pictures(name, first, count):
    """Some pictures of Fashion-MNIST as an IDX file of their own."""
    raw = gzip.decompress(shared(f"datasets/fashion-mnist/{name}-images-idx3-ubyte.gz"))
    return struct.pack(">IIII", 0x803, count, 28, 28) + raw[16 + 784 * first:16 + 784 * (first + count)]


def put(d, collection, name, data):
    r = d.request("PUT", f"/v1/{collection}/{name}", data)
    assert r.status in (200, 201), (r.status, r.body)
    return r.json()


def finished(d, body):
    r = d.post("/v1/jobs", body)
    assert r.status == 202, (r.status, r.body)
    return d.wait(r.json()["id"])


def evaluated(d, **body):
    job = finished(d, {"kind": "evaluate", **body})
    assert job["status"] == "succeeded", job
    return job, job["result"]


def prepare(d):
    network = put(d, "models", "dwnet", shared("weights/fmnist-dwnet/dwnet.onnx"))
    assert network["role"] == "classifier", network
    put(d, "datasets", "real", pictures("t10k", 0, 300))
    put(d, "datasets", "others", pictures("train", 0, 200))
    return network["id"]


def sets_that_exist_are_compared(d):
    network = prepare(d)
    ask = {"method": "fid", "generated": "others", "count": 0, **SMALL}
    job, a = evaluated(d, model="dwnet", dataset="real", params=ask)
    assert (a["count"], a["reference_count"], a["reference"]) == (200, 300, "computed"), a
    # Two draws from one distribution: near, not equal; three hundred pictures leave an FID of about a half.
    assert 0.1 < a["fid"] < 1.5 and 0 < a["fid_error"] < 0.5 and -0.05 < a["kid"] < 0.05, a
    assert 0.5 < a["precision"] <= 1 and 0.5 < a["recall"] <= 1 and 0.5 < a["coverage"] <= 1 and a["density"] > 0.5
    assert 5 < a["inception_score"] <= 10 and 5 < a["reference_inception_score"] <= 10
    assert a["features"]["dim"] == 128 and a["features"]["network"] == network and len(a["feature_hash"]) == 64
    assert d.get(f"/v1/jobs/{job['id']}/artifacts/report.json").json() == a
    assert any(e["type"] == "progress" and e["data"]["phase"] == "features of the reference" for e in d.events(job["id"]))

    # The statistics of the reference are kept: the second job has them, and the same figures.
    job, b = evaluated(d, model="dwnet", dataset="real", params=ask)
    assert b.pop("reference") == "kept" and a.pop("reference") == "computed" and a == b, (a, b)
    assert not any(e["type"] == "progress" and e["data"]["phase"] == "features of the reference" for e in d.events(job["id"]))
    # A set has no distance from itself, and nothing beside itself.
    _, same = evaluated(d, model="dwnet", dataset="real", params={**ask, "generated": "real"})
    assert abs(same["fid"]) < 1e-6 and same["precision"] == same["recall"] == same["coverage"] == 1, same

    # Statistics handed out are a data set for whoever uploads them, with or without their rows.
    first = d.get("/v1/jobs?kind=evaluate&order=asc").json()["data"][0]["id"]
    kept = d.get(f"/v1/jobs/{first}/artifacts/reference.safetensors").body
    stats = put(d, "datasets", "stats", kept)
    assert (stats["role"], stats["summary"]["dim"], stats["summary"]["count"], stats["summary"]["rows"]) == ("statistics", 128, 300, 300)
    assert stats["summary"]["feature_hash"] == a["feature_hash"]
    _, c = evaluated(d, model="dwnet", dataset="stats", params=ask)
    assert c["reference"] == "uploaded" and (c["fid"], c["kid"], c["recall"]) == (a["fid"], a["kid"], a["recall"]), (a, c)
    for body in ({"kind": "evaluate", "model": "dwnet", "dataset": "stats", "params": FASHION},
                 {"kind": "quantize", "model": "dwnet", "dataset": "stats"}):
        r = d.post("/v1/jobs", body)
        assert r.status == 422 and r.json()["param"] == "/dataset" and "statistics" in r.json()["detail"], r.body

    # Other preprocessing is another feature: said in the hash, and warned of.
    job, other = evaluated(d, model="dwnet", dataset="stats", params={**ask, "mean": "0.3"})
    assert other["feature_hash"] != a["feature_hash"] and other["fid"] != a["fid"]
    assert any(e["type"] == "warning" and "other preprocessing" in e["data"]["message"] for e in d.events(job["id"])), d.events(job["id"])


def drawn_pictures_are_measured(d):
    prepare(d)
    model = d.upload_shipped()
    ask = {"method": "fid", "network": "dwnet", **SMALL, **DRAW}
    job, a = evaluated(d, model=model, dataset="real", params=ask)
    assert a["count"] == 20 and a["fid"] > 1 and a["seed"] == 5 and a["drawn"]["sampler"] == "ddim" and a["drawn"]["steps"] == 4, a
    events = d.events(job["id"])
    assert sum(e["type"] == "sample" for e in events) == 3
    assert any(e["type"] == "warning" and "do not span" in e["data"]["message"] for e in events)
    steps = [e["data"] for e in events if e["type"] == "progress" and e["data"]["phase"] == "sample"]
    assert steps[-1]["done"] == steps[-1]["total"] == 12, steps[-1]
    assert d.get(f"/v1/jobs/{job['id']}/artifacts/samples.png").body[:4] == b"\x89PNG"

    # What a sample job drew from the same seed is the same set of pictures; other pixels are others.
    job = finished(d, {"kind": "sample", "model": model, "params": {"method": "ddim", "steps": 4, "count": 20, "batch": 5, "seed": 5, "clip": "off"}})
    _, b = evaluated(d, model="dwnet", dataset="real", params={"method": "fid", "generated": job["id"], "count": 0, "seed": 5, **SMALL})
    assert (b["fid"], b["kid"], b["reference"]) == (a["fid"], a["kid"], "kept"), (a, b)
    _, c = evaluated(d, model="dwnet", dataset="real", params={"method": "fid", "generated": job["id"], "count": 0, **SMALL, "pixels": "float"})
    assert c["fid"] != b["fid"] and c["reference"] == "kept"


def the_quantized_one_is_compared_with_the_float_one(d):
    prepare(d)
    model = d.upload_shipped()
    quantized = d.wait(d.submit(model))["result"]["model"]
    ask = {"method": "fidelity", "pairs": 6, "batch": 4, "steps": 5, "seed": 3, "show": 2, "worst": 3, "network": "dwnet", **FASHION}
    job, a = evaluated(d, model=quantized, params=ask)
    report = d.get(f"/v1/jobs/{job['id']}/artifacts/report.json").json()
    assert len(report["steps"]) == 5 and len(report["by_pair"]) == 6 and len(a["worst"]) == 3 and a["pairs_identical"] == 0
    psnr = [p["psnr_db"] for p in report["by_pair"]]
    assert min(psnr) == a["psnr_db_min"] and abs(sum(psnr) / 6 - a["psnr_db_mean"]) < 1e-9 and sorted(psnr)[2] == a["psnr_db_median"]
    assert [psnr[k] for k in a["worst"]] == sorted(psnr)[:3]
    assert 15 < a["psnr_db_mean"] < 60 and 0.5 < a["ssim_mean"] < 1 and 0.9 < a["cosine_mean"] < 1 and a["mse_mean"] > 0
    assert a["feature_distance_mean"] > 0 and 0 < a["feature_cosine_mean"] < 1 and a["eps_sqnr_db"] > 10
    t = [s["t"] for s in report["steps"]]
    assert t == sorted(t, reverse=True) and abs(report["steps"][0]["std_float"] - 1) < 0.2
    drift = max(abs(s["mean_quantized"] - s["mean_float"]) for s in report["steps"])
    assert abs(drift - a["mean_drift_max"]) < 1e-12
    curve = d.get(f"/v1/jobs/{job['id']}/metrics?name=eps_sqnr_db").json()
    assert len(curve["data"]) == 5, curve
    assert sum(e["type"] == "sample" for e in d.events(job["id"])) == 2
    for name in ("pairs.png", "worst.png"):
        assert d.get(f"/v1/jobs/{job['id']}/artifacts/{name}").body[:4] == b"\x89PNG"

    # Batches do not matter, nor does naming the float model; beside itself a model shows no difference.
    _, b = evaluated(d, model=quantized, params={**ask, "batch": 1, "reference": model})
    for name in ("psnr_db_mean", "ssim_mean", "mse_mean", "feature_distance_mean", "worst"):
        assert a[name] == b[name], (name, a, b)
    assert abs(a["eps_sqnr_db"] - b["eps_sqnr_db"]) < 1e-9
    _, c = evaluated(d, model=model, params={**ask, "reference": model})
    assert c["pairs_identical"] == 6 and c["ssim_mean"] == 1 and c["mse_mean"] == 0 and c["worst"] == [] and "psnr_db_mean" not in c, c
    assert c["mean_drift_max"] == 0 and "eps_sqnr_db" not in c and c["feature_distance_max"] == 0

    assert d.request("DELETE", f"/v1/models/{model}").status == 204
    job = finished(d, {"kind": "evaluate", "model": quantized, "params": ask})
    assert job["status"] == "failed" and "give reference=.." in job["error"]["message"], job


def cancelled_within_two_seconds(d):
    prepare(d)
    model = d.upload_shipped()
    for params in ({"method": "fid", "network": "dwnet", "count": 5000, "steps": 100, "batch": 64, **FASHION},
                   {"method": "fidelity", "reference": model, "pairs": 5000, "steps": 100, "batch": 64}):
        body = {"kind": "evaluate", "model": model, "params": params, **({"dataset": "real"} if params["method"] == "fid" else {})}
        job = d.post("/v1/jobs", body).json()["id"]
        end = time.time() + 60
        while d.job(job)["progress"]["phase"] not in ("sample", "pairs") and time.time() < end:
            time.sleep(0.05)
        start = time.time()
        assert d.post(f"/v1/jobs/{job}/cancel", {}).status == 202
        assert d.wait(job)["status"] == "canceled"
        assert time.time() - start < 2, time.time() - start


def wrong_jobs_are_told_what_is_wrong(d):
    network = prepare(d)
    model = d.upload_shipped()
    for body, pointer, words in [
        ({"model": model, "dataset": "real", "params": {"method": "fid"}}, "/params/network", "must name the model"),
        ({"model": model, "dataset": "real", "params": {"method": "fid", "network": "nobody"}}, "/params/network", "does not exist"),
        ({"model": model, "dataset": "real", "params": {"method": "fid", "network": model}}, "/params/network", "is a denoiser"),
        ({"model": network, "dataset": "real", "params": {"method": "fid"}}, "/params/generated", "must name pictures"),
        ({"model": network, "dataset": "real", "params": {"method": "fid", "network": network, "generated": "others"}}, "/params/network", "feature network already"),
        ({"model": network, "dataset": "real", "params": {"method": "fid", "generated": "nothing"}}, "/params/generated", "does not exist"),
        ({"model": network, "dataset": "real", "params": {"method": "fid", "generated": "job_nothing"}}, "/params/generated", "does not exist"),
        ({"model": model, "dataset": "real", "params": {"method": "fid", "network": network, "count": 1}}, "/params/count", "2 or more"),
        ({"model": model, "params": {"method": "fid", "network": network}}, "/dataset", "needs a dataset"),
        ({"model": model, "params": {"method": "fid", "network": network, "guidance": 3}, "dataset": "real"}, "/params/guidance", "takes no condition"),
        ({"model": model, "params": {"method": "fidelity", "reference": network}}, "/params/reference", "a denoiser is needed"),
        ({"model": network, "params": {"method": "fidelity"}}, "/params/method", "takes a denoiser"),
        ({"model": model, "dataset": "real", "params": {"method": "fidelity"}}, "/dataset", "takes no dataset"),
    ]:
        r = d.post("/v1/jobs", {"kind": "evaluate", **body})
        assert r.status == 422 and r.json()["param"] == pointer and words in r.json()["detail"], (body, r.status, r.body)
    # What only the network and the pictures can tell comes when the job runs.
    for params, words in [({"features": "nowhere"}, "no value 'nowhere'"), ({"mean": "1, 2, 3"}, "params.mean"),
                          ({"spatial": "features"}, "spatial: the value is")]:
        job = finished(d, {"kind": "evaluate", "model": network, "dataset": "real",
                           "params": {"method": "fid", "generated": "others", **params}})
        assert job["status"] == "failed" and words in job["error"]["message"], job
    job = finished(d, {"kind": "evaluate", "model": model, "params": {"method": "fidelity"}})
    assert job["status"] == "failed" and "give reference=.." in job["error"]["message"], job


def a_job_without_a_server(d):
    """quantd run takes paths for whatever a job names."""
    paths = {name: os.path.join(d.dir, name) for name in ("dwnet.onnx", "real-idx3-ubyte", "job.json", "out")}
    with open(paths["dwnet.onnx"], "wb") as f:
        f.write(shared("weights/fmnist-dwnet/dwnet.onnx"))
    with open(paths["real-idx3-ubyte"], "wb") as f:
        f.write(pictures("t10k", 0, 100))
    with open(paths["job.json"], "w") as f:
        json.dump({"kind": "evaluate", "model": SHIPPED, "dataset": paths["real-idx3-ubyte"],
                   "params": {"method": "fid", "network": paths["dwnet.onnx"], **SMALL, **DRAW}}, f)
    done = subprocess.run([QUANTD, "run", paths["job.json"], "--out", paths["out"]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)["result"]
    assert result["count"] == 20 and result["fid"] > 1
    names = os.listdir(paths["out"])
    assert {"report.json", "generated.safetensors", "reference.safetensors", "samples.png"} <= set(names), names


if __name__ == "__main__":
    run(sets_that_exist_are_compared, drawn_pictures_are_measured, the_quantized_one_is_compared_with_the_float_one,
        cancelled_within_two_seconds, wrong_jobs_are_told_what_is_wrong, a_job_without_a_server)
