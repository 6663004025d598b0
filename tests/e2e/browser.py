"""Headless Chromium, driven over its debugging socket: enough to open a page, wait for something, click, and take a picture."""
import base64
import http.client
import itertools
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time


class Browser:
    def __init__(self, width=1200, height=900):
        self.profile = tempfile.mkdtemp(prefix="quantd-browser-")
        self.child = subprocess.Popen(
            [shutil.which("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
             "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
             f"--user-data-dir={self.profile}", f"--window-size={width},{height}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = os.path.join(self.profile, "DevToolsActivePort")
        end = time.time() + 60
        while not (os.path.exists(port_file) and open(port_file).read().count("\n") >= 1):
            assert time.time() < end and self.child.poll() is None, "Chromium did not start"
            time.sleep(0.1)
        port = int(open(port_file).read().split("\n")[0])
        c = http.client.HTTPConnection("127.0.0.1", port)
        c.request("GET", "/json/list")
        page = [p for p in json.loads(c.getresponse().read()) if p["type"] == "page"][0]
        self.s = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.s.sendall((f"GET /devtools/page/{page['id']} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n").encode())
        self.buffer, self.ids, self.complaints = b"", itertools.count(1), []
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self.s.recv(65536)
        self.buffer = self.buffer.split(b"\r\n\r\n", 1)[1]
        for domain in ("Page", "Runtime", "Log"):
            self.call(domain + ".enable")

    def _take(self, n):
        while len(self.buffer) < n:
            data = self.s.recv(1 << 20)
            assert data, "Chromium closed its socket"
            self.buffer += data
        out, self.buffer = self.buffer[:n], self.buffer[n:]
        return out

    def _receive(self):
        whole = b""
        while True:
            first, second = self._take(2)
            n = second & 127
            n = struct.unpack(">H", self._take(2))[0] if n == 126 else struct.unpack(">Q", self._take(8))[0] if n == 127 else n
            whole += self._take(n)
            if first & 0x80:
                return json.loads(whole)

    def call(self, method, **params):
        number = next(self.ids)
        data = json.dumps({"id": number, "method": method, "params": params}).encode()
        head = bytes([0x81]) + (bytes([0x80 | len(data)]) if len(data) < 126 else bytes([0x80 | 126]) + struct.pack(">H", len(data)))
        self.s.sendall(head + bytes(4) + data)
        while True:
            m = self._receive()
            if m.get("id") == number:
                assert "error" not in m, m
                return m["result"]
            if m.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(m["params"]["exceptionDetails"].get("exception", {}).get("description", "exception"))
            if m.get("method") == "Log.entryAdded" and m["params"]["entry"]["level"] == "error":
                self.complaints.append(m["params"]["entry"]["text"] + " " + m["params"]["entry"].get("url", ""))

    def open(self, url):
        self.call("Page.navigate", url=url)

    def run(self, script):
        """The value of a JavaScript expression."""
        r = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in r, r["exceptionDetails"]
        return r["result"].get("value")

    def wait(self, script, limit_s=60):
        end = time.time() + limit_s
        while True:
            # The page may still be on its way; an element has no value of its own.
            value = self.run(f"(() => {{ try {{ const v = {script}; return v instanceof Node ? true : v; }} catch {{ return null; }} }})()")
            if value:
                return value
            assert time.time() < end, f"waited {limit_s} s for {script}; the page says: {self.run('document.body.innerText')[:800]}"
            time.sleep(0.1)

    def picture(self, path, whole=False):
        extra = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            extra = {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}, "captureBeyondViewport": True}
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png", **extra)["data"])
        with open(path, "wb") as f:
            f.write(data)

    def close(self):
        self.child.kill()
        self.child.wait()
        shutil.rmtree(self.profile, ignore_errors=True)
