"""What the end-to-end tests share: the real daemon as a child process, HTTP, a small WebSocket client, the model that ships."""
import base64
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import time

QUANTD, SOURCE = sys.argv[1], sys.argv[2]
SHIPPED = os.path.join(SOURCE, "deploy", "models", "fmnist-ddpm-unet")
# Small enough for a sanitizer build, large enough to be a real job.
QUICK = {"method": "mse", "steps": 10, "calibration_samples": 16, "calibration_steps": 5, "measure_samples": 2, "pairs": 2, "seed": 7}
FINAL = ("succeeded", "failed", "canceled", "dead")


class Reply:
    def __init__(self, response, body):
        self.status, self.headers, self.body = response.status, response.headers, body

    def json(self):
        return json.loads(self.body)


class Daemon:
    """One data directory; start and stop it as often as you like."""

    def __init__(self, *flags):
        self.dir = tempfile.mkdtemp(prefix="quantd-e2e-")
        self.flags, self.child, self.port = list(flags), None, None

    def start(self):
        self.log = open(os.path.join(self.dir, "daemon.log"), "ab")
        self.child = subprocess.Popen([QUANTD, "serve", "--listen", "127.0.0.1:0", "--data", os.path.join(self.dir, "data")] + self.flags,
                                      stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.child.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, f"the daemon said {line!r}; its log:\n{self.read_log()}"
        self.port = int(found.group(1))
        return self

    def read_log(self):
        with open(os.path.join(self.dir, "daemon.log"), errors="replace") as f:
            return f.read()[-4000:]

    def kill(self):
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()

    def terminate(self, limit_s=20):
        start = time.time()
        self.child.send_signal(signal.SIGTERM)
        code = self.child.wait(limit_s)
        return code, time.time() - start

    def close(self):
        if self.child and self.child.poll() is None:
            self.terminate()
        shutil.rmtree(self.dir, ignore_errors=True)

    def alive(self):
        return self.child.poll() is None and self.get("/healthz").status == 200

    def request(self, method, path, body=None, headers=None):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        c.request(method, path, body, headers or {})
        r = c.getresponse()
        out = Reply(r, r.read())
        c.close()
        return out

    def get(self, path, **headers):
        return self.request("GET", path, None, {k.replace("_", "-"): v for k, v in headers.items()})

    def post(self, path, doc, **headers):
        all_headers = {"Content-Type": "application/json"}
        all_headers.update({k.replace("_", "-"): v for k, v in headers.items()})
        return self.request("POST", path, json.dumps(doc), all_headers)

    def upload(self, data, name="model"):
        return self.request("PUT", f"/v1/models/{name}", data)

    def upload_shipped(self):
        r = self.upload(shipped_tar(), "fmnist")
        assert r.status in (200, 201), (r.status, r.body)
        return r.json()["id"]

    def submit(self, model, params=None, kind="quantize", **more):
        r = self.post("/v1/jobs", {"kind": kind, "model": model, "params": QUICK if params is None else params, **more})
        assert r.status == 202, (r.status, r.body)
        return r.json()["id"]

    def job(self, job_id):
        return self.get(f"/v1/jobs/{job_id}").json()

    def wait(self, job_id, limit_s=240, until=FINAL):
        end = time.time() + limit_s
        while time.time() < end:
            job = self.job(job_id)
            if job["status"] in until:
                return job
            time.sleep(0.05)
        raise AssertionError(f"{job_id} is still {job['status']} ({job['progress']}) after {limit_s} s\n{self.read_log()}")

    def events(self, job_id, after=0):
        """All stored events, as NDJSON of a finished job."""
        r = self.get(f"/v1/jobs/{job_id}/events?after={after}", Accept="application/x-ndjson")
        assert r.status == 200, r.body
        return [json.loads(line) for line in r.body.split(b"\n") if line.strip()]

    def files(self):
        """Every file below the data directory that holds strangers' bytes."""
        out = []
        for part in ("tmp", "blobs", "models", "datasets"):
            for base, _, names in os.walk(os.path.join(self.dir, "data", part)):
                out += [os.path.join(base, n) for n in names]
        return out


def shipped_tar(change=None):
    """The shipped model as a tar; change(name, bytes) -> bytes may damage it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in sorted(os.listdir(SHIPPED)):
            with open(os.path.join(SHIPPED, name), "rb") as f:
                data = f.read()
            if change:
                data = change(name, data)
            if data is None:
                continue
            info = tarfile.TarInfo("fmnist-ddpm-unet/" + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def check_gap_free(events):
    numbers = [e["seq"] for e in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), f"gap in {numbers}"


class WebSocket:
    """Just enough of RFC 6455 for a test: masked text out, text and binary in."""

    def __init__(self, daemon):
        self.s = socket.create_connection(("127.0.0.1", daemon.port), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        self.s.sendall((f"GET /v1/ws HTTP/1.1\r\nHost: 127.0.0.1:{daemon.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: quantd.v1\r\n\r\n").encode())
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        assert b" 101 " in head.split(b"\r\n")[0], head
        self.head = head.decode()

    def _more(self):
        data = self.s.recv(65536)
        if not data:
            raise EOFError("the daemon closed the socket")
        self.buffer += data

    def _take(self, n):
        while len(self.buffer) < n:
            self._more()
        out, self.buffer = self.buffer[:n], self.buffer[n:]
        return out

    def send(self, doc):
        data = json.dumps(doc).encode()
        mask = os.urandom(4)
        head = bytes([0x81])
        head += bytes([0x80 | len(data)]) if len(data) < 126 else bytes([0x80 | 126]) + struct.pack(">H", len(data))
        self.s.sendall(head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))

    def receive(self):
        """('text', doc) | ('binary', kind, header, bytes) | ('close', code)"""
        while True:
            first, second = self._take(2)
            n = second & 127
            if n == 126:
                n = struct.unpack(">H", self._take(2))[0]
            elif n == 127:
                n = struct.unpack(">Q", self._take(8))[0]
            data = self._take(n)
            op = first & 15
            if op == 1:
                return "text", json.loads(data)
            if op == 2:
                kind, m = struct.unpack(">II", data[:8])
                return "binary", kind, json.loads(data[8:8 + m]), data[8 + m:]
            if op == 8:
                return "close", struct.unpack(">H", data[:2])[0] if len(data) >= 2 else None

    def close(self):
        self.s.close()


def run(*tests):
    """Each test gets a started daemon of its own and a name in the output."""
    for test in tests:
        d = Daemon(*getattr(test, "flags", []))
        start = time.time()
        try:
            test(d.start())
            print(f"ok   {test.__name__} ({time.time() - start:.1f} s)", flush=True)
        except BaseException:
            print(f"FAIL {test.__name__}\n{d.read_log()}", flush=True)
            raise
        finally:
            d.close()
