"""A user's first job, whole: upload, quantize, watch on three transports, download, upload the result, sample it, same bytes again."""
import base64
import hashlib
import html.parser
import json
import re
import threading
import xml.etree.ElementTree

from daemon import QUICK, Daemon, WebSocket, check_gap_free, run


def png_size(data):
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


class Page(html.parser.HTMLParser):
    """What a page is made of: every tag with its attributes, and the cells of the noise map."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.cells = [], [], 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        self.open.append((tag, dict(attrs).get("id")))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.cells += tag == "rect" and ("svg", "noise-map") in self.open

    def handle_endtag(self, tag):
        assert self.open and self.open.pop()[0] == tag, f"</{tag}> closes something else"


def check_page(reply, report):
    """One whole file: no script, nothing from elsewhere, a cell for each layer and step."""
    assert reply.status == 200 and reply.headers["Content-Type"].startswith("text/html"), reply.headers
    assert reply.headers["Content-Disposition"].startswith("inline")
    policies = reply.headers.get_all("Content-Security-Policy")
    assert len(policies) == 1 and "sandbox" in policies[0] and "script" not in policies[0], policies
    text = reply.body.decode()
    page = Page(text)
    assert page.open == [] and not re.search(r"https?://|url\(|@import", text)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    sources = [a[k] for _, a in page.tags for k in ("src", "href", "xlink:href") if k in a]
    assert len(sources) == 1 and sources[0].startswith("data:image/png;base64,"), [s[:40] for s in sources]
    png_size(base64.b64decode(sources[0].split(",")[1], validate=True))
    xml.etree.ElementTree.fromstring(text)
    noise = report["noise_map"]
    assert page.cells == len(noise["layers"]) * len(noise["t"]) > 100, page.cells
    assert report["source"]["sha256"] in text and report["bundle"]["sha256"] in text


def check_drift(walk, figures):
    """Both trajectories, step by step; the figures are the largest differences."""
    assert [w["step"] for w in walk] == list(range(QUICK["steps"]))
    assert [w["t"] for w in walk] == sorted((w["t"] for w in walk), reverse=True)
    # Noise at first, on both sides nearly the same; a picture with a deviation of its own at the end.
    assert 0.8 < walk[0]["std_float"] < 1.2 and abs(walk[0]["std_quantized"] - walk[0]["std_float"]) < 0.05, walk[0]
    for name in ("mean", "std"):
        worst = max(abs(w[f"{name}_quantized"] - w[f"{name}_float"]) for w in walk)
        assert 0 < worst < 0.5 and abs(worst - figures[f"drift_{name}_max"]) < 1e-12, (name, worst, figures)


def quantize_watch_download(d):
    model = d.upload_shipped()
    assert d.upload_shipped() == model, "the same bytes under the same name are the same model"
    ws = WebSocket(d)
    ws.send({"op": "hello", "features": ["binary_samples", "layers"]})
    assert ws.receive()[1]["op"] == "hello"
    job = d.submit(model)
    ws.send({"op": "subscribe", "job": job, "after_seq": 0})

    live, pairs = [], []

    def watch():
        while True:
            m = ws.receive()
            if m[0] == "binary":
                pairs.append(m[1:])
                ws.send({"op": "ack", "job": job, "seq": m[2]["seq"]})
            elif m[0] == "text" and m[1]["op"] == "event":
                live.append(m[1])
            elif m[0] == "text" and m[1]["op"] == "end":
                live.append(m[1])
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    final = d.wait(job)
    watcher.join(30)
    assert not watcher.is_alive(), "no end message on the WebSocket"
    assert final["status"] == "succeeded", final["error"]

    # One log, three transports.
    stored = d.events(job)
    check_gap_free(stored)
    assert stored[0]["seq"] == 1 and stored[-1]["type"] == "end"
    # Live, progress and metrics are thinned to twice a second; everything else arrives, in order, once.
    seen = [e["seq"] for e in live]
    assert seen == sorted(set(seen))
    thinned = ("progress", "metric")
    got = set(seen)
    missing = [e for e in stored if e["type"] not in thinned and e["seq"] not in got]
    assert not missing, missing
    half = len(stored) // 2
    sse = d.get(f"/v1/jobs/{job}/events", Accept="text/event-stream", Last_Event_ID=str(half))
    ids = [int(line[4:]) for line in sse.body.decode().split("\n") if line.startswith("id: ")]
    assert ids == list(range(half + 1, len(stored) + 1))
    types = {e["type"] for e in stored}
    assert {"state", "progress", "layer", "metric", "sample", "artifact", "end"} <= types, types

    # Who asks from a number that cannot be gets the job as it is.
    ws.send({"op": "unsubscribe", "job": job})
    ws.send({"op": "subscribe", "job": job, "after_seq": 10**6})
    while True:
        m = ws.receive()
        if m[0] == "text" and m[1].get("type") == "reset":
            assert m[1]["data"] == d.job(job)
            break

    # Pairs came while it ran, as pictures.
    assert len(pairs) == QUICK["pairs"]
    for kind, header, png in pairs:
        assert kind == 2 and header["mime"] == "image/png" and header["psnr_db"] > 10
        assert png_size(png) == (header["width"], header["height"])
        assert d.get(header["url"]).body == png

    r = final["result"]
    assert r["float_bytes"] > 3 * r["quantized_bytes"] > 0
    # What was expected when it was submitted came out; and now there is experience.
    expected = final["estimate"]
    assert expected["output"]["float_bytes"] == r["float_bytes"]
    assert abs(expected["output"]["quantized_bytes"] / r["quantized_bytes"] - 1) < 0.03, (expected, r)
    assert expected["seconds"]["basis"] == "assumed"
    later = d.post("/v1/estimates", {"kind": "quantize", "model": model, "params": QUICK}).json()
    assert later["seconds"]["basis"] == "history" and later["seconds"]["p50"] > 0, later
    assert r["eps_sqnr_db"] > 20 and r["psnr_db_mean"] > 15
    assert r["seconds_per_image_float"] > 0 and r["seconds_per_image_int8"] > 0

    # Downloads: hash, ETag, Range, revalidation.
    for a in d.get(f"/v1/jobs/{job}/artifacts").json()["data"]:
        path = f"/v1/jobs/{job}/artifacts/{a['name']}"
        whole = d.get(path)
        assert hashlib.sha256(whole.body).hexdigest() == a["sha256"] and len(whole.body) == a["size_bytes"]
        assert whole.headers["ETag"] == f'"{a["sha256"]}"'
        part = d.get(path, Range="bytes=8-15")
        assert part.status == 206 and part.body == whole.body[8:16]
        assert d.get(path, If_None_Match=whole.headers["ETag"]).status == 304
        assert d.get(path, Range=f"bytes={len(whole.body)}-").status == 416
    report = d.get(f"/v1/jobs/{job}/artifacts/report.json").json()
    assert any(layer["weight_bits"] == 8 for layer in report["layers"])
    check_drift(report["trajectory"], r)
    check_page(d.get(f"/v1/jobs/{job}/artifacts/report.html"), report)

    # The bundle is a model: registered here, and the same when a stranger sends it back.
    bundle = d.get(f"/v1/jobs/{job}/artifacts/model.safetensors").body
    again = d.upload(bundle, "mine").json()
    results = []
    for m in (r["model"], again["id"]):
        s = d.wait(d.submit(m, {"method": "ddim", "steps": 10, "count": 3, "seed": 3}, kind="sample"))
        assert s["status"] == "succeeded", s["error"]
        results.append(d.get(f"/v1/jobs/{s['id']}/artifacts/samples.png").body)
    assert results[0] == results[1], "the same model and seed give the same bytes"


def same_bytes_on_one_and_two_threads(d):
    other = Daemon("--threads", "2", "--workers", "1")
    try:
        hashes = []
        for daemon in (d, other.start()):
            job = daemon.wait(daemon.submit(daemon.upload_shipped()))
            assert job["status"] == "succeeded", job["error"]
            listed = daemon.get(f"/v1/jobs/{job['id']}/artifacts").json()["data"]
            hashes.append({a["name"]: a["sha256"] for a in listed if a["name"] in ("model.safetensors", "samples.png")})
        assert len(hashes[0]) == 2 and hashes[0] == hashes[1], hashes
    finally:
        other.close()


same_bytes_on_one_and_two_threads.flags = ["--threads", "1", "--workers", "1"]


def submit_twice_is_once(d):
    model = d.upload_shipped()
    body = {"kind": "quantize", "model": model, "params": QUICK}
    first = d.post("/v1/jobs", body, Idempotency_Key="abc").json()["id"]
    assert d.post("/v1/jobs", body, Idempotency_Key="abc").json()["id"] == first
    other = d.post("/v1/jobs", {**body, "params": {**QUICK, "seed": 8}}, Idempotency_Key="abc")
    assert other.status == 422, (other.status, other.body)
    done = d.post("/v1/jobs", body, Idempotency_Key="abc", Prefer="wait=30")
    assert done.json()["id"] == first
    assert len(d.get("/v1/jobs").json()["data"]) == 1


def wrong_requests_are_told_what_is_wrong(d):
    model = d.upload_shipped()
    for params, pointer, words in [
        ({"method": "mse", "weight_bits": 5}, "/params/weight_bits", "weight_bits"),
        ({"method": "mse", "wieght_bits": 8}, "/params/wieght_bits", "wieght_bits"),
        ({"method": "magic"}, "/params/method", "magic"),
        ({"method": "mse", "steps": 0}, "/params/steps", "steps"),
        ({"method": "mse", "steps": "many"}, "/params/steps", "steps"),
    ]:
        r = d.post("/v1/jobs", {"kind": "quantize", "model": model, "params": params})
        doc = r.json()
        assert r.status == 422 and doc["param"] == pointer and words in doc["detail"], (r.status, doc)
        assert r.headers["Content-Type"].startswith("application/problem+json") and doc["request_id"] == r.headers["X-Request-Id"]
    assert d.post("/v1/jobs", {"kind": "quantize", "model": "mdl_none", "params": QUICK}).status in (404, 422)
    assert d.request("POST", "/v1/jobs", "{", {"Content-Type": "application/json"}).status == 400
    assert d.request("POST", "/v1/jobs", "{}", {"Content-Type": "text/plain"}).status == 415
    missing = d.get("/v1/jobs/job_00000000000000000000000000")
    assert missing.status == 404 and missing.json()["status"] == 404
    wrong = d.request("DELETE", "/v1/jobs")
    assert wrong.status == 405 and "POST" in wrong.headers["Allow"]
    assert d.get("/v1/jobs", Host="evil.example").status in (403, 421)
    assert json.loads(d.get("/openapi.json").body)["openapi"].startswith("3.1")
    assert d.get("/readyz").json() and b"quantd_jobs_total" in d.get("/metrics").body


if __name__ == "__main__":
    run(quantize_watch_download, same_bytes_on_one_and_two_threads, submit_twice_is_once, wrong_requests_are_told_what_is_wrong)
