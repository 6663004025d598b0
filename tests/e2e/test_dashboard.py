"""The dashboard in a real browser: upload, submit from the form, watch pairs arrive, download, cancel, reconnect. Skipped without Chromium.

With QUANTD_PICTURES=DIR the pages are kept there as PNG."""
import os
import re
import shutil
import sys

from daemon import QUICK, run

if not shutil.which("chromium"):
    print("skipped: chromium is not installed (deploy/install-deps --dashboard)")
    sys.exit(77)
from browser import Browser

PICTURES = os.environ.get("QUANTD_PICTURES")


def keep(b, name):
    if PICTURES:
        b.picture(os.path.join(PICTURES, name + ".png"), whole=True)


def check_noise(b):
    """The noise map can be read with keys and with a pointer; both trajectories are drawn."""
    def press(key):
        b.run(f"document.querySelector('.noise-map').dispatchEvent(new KeyboardEvent('keydown', {{ key: '{key}' }}))")
        return b.run("document.querySelector('.readout').textContent")

    b.wait("document.querySelectorAll('.plots .curve-1').length == 4")  # a line of the legend and a curve, twice
    first, below = press("ArrowDown"), press("ArrowDown")
    assert re.match(r".+, t \d+: (-?[\d.]+ dB|no noise)$", first) and below.split(",")[0] != first.split(",")[0], (first, below)
    right = press("ArrowRight")
    assert right.split(",")[0] == below.split(",")[0] and right.split(":")[0] != below.split(":")[0], (below, right)
    b.run("document.querySelector('.noise-map').scrollIntoView()")
    x, y = b.run("(r => [r.right - 18, r.bottom - 8])(document.querySelector('.noise-map').getBoundingClientRect())")
    b.run(f"document.querySelector('.noise-map').dispatchEvent(new PointerEvent('pointermove', {{ clientX: {x}, clientY: {y} }}))")
    last = b.run("document.querySelector('.readout').textContent")
    assert last.startswith("conv_out, t ") and last != right, last
    b.run("scrollTo(0, 0)")


def submit_to_finished_pairs(d):
    model = d.upload_shipped()
    b = Browser()
    try:
        url = f"http://127.0.0.1:{d.port}/"
        b.open(url)
        b.wait("document.body.innerText.includes('No jobs yet')")
        b.wait("/ready|busy/.test(document.getElementById('daemon').innerText)")
        b.open(url + f"#/new?model={model}")
        b.wait("document.querySelector('form button.primary')?.disabled === false")
        for name, value in QUICK.items():
            if name == "method":
                b.run(f"(e => {{ e.value = '{value}'; e.dispatchEvent(new Event('change')); }})(document.getElementById('method'))")
            else:
                b.run(f"document.getElementById('p-{name}').value = '{value}'")
        keep(b, "new-job")

        # A refusal is shown where it belongs.
        b.run("document.querySelector('form').noValidate = true; document.getElementById('p-steps').value = '0'")
        b.run("document.querySelector('form button.primary').click()")
        b.wait("document.querySelector('form .problem')?.innerText.includes('steps')")
        assert b.run("document.getElementById('p-steps').getAttribute('aria-invalid')") == "true"
        b.complaints.clear()  # the browser logs the 422 itself

        b.run(f"document.getElementById('p-steps').value = '{QUICK['steps']}'")
        b.run("document.querySelector('form button.primary').click()")
        job = b.wait("/job_\\w+/.exec(location.hash)?.[0]")
        b.wait("document.querySelector('progress.big')?.value > 0")
        b.wait(f"document.querySelectorAll('.gallery img').length == {QUICK['pairs']}", 240)
        b.wait("document.querySelector('.pill.succeeded')", 60)
        b.wait("document.querySelectorAll('.layers tbody tr').length > 20 && document.querySelector('.chart .curve')")
        assert b.run("[...document.querySelectorAll('.gallery img')].every(i => i.complete && i.naturalWidth > i.naturalHeight)")
        assert b.run("document.querySelectorAll('.figure').length") == 4
        check_noise(b)
        links = b.run("[...document.querySelectorAll('a[download]')].map(a => a.getAttribute('href'))")
        assert len(links) == 4 and all(d.get(link).status == 200 for link in links), links
        keep(b, "job")

        # The report is a page of its own, with its styles; a sandbox keeps it apart.
        report = b.run("[...document.querySelectorAll('a.button')].find(a => a.innerText === 'Open the report').href")
        b.open(report)
        b.wait("document.querySelector('#noise-map rect')")
        assert b.run("getComputedStyle(document.querySelector('.figures')).display") == "grid"
        assert b.run("document.querySelector('img').naturalWidth") > 28 and b.run("origin") == "null"
        keep(b, "report")

        # The same page opened later shows the same.
        b.open("about:blank")
        b.open(url + "#/jobs/" + job)
        b.wait(f"document.querySelectorAll('.gallery img').length == {QUICK['pairs']}")
        b.open(url + "#/models")
        b.wait("document.querySelectorAll('tbody')[0].children.length == 2")
        keep(b, "models")
        assert b.complaints == [], b.complaints
    finally:
        b.close()


def cancel_and_reconnect(d):
    model = d.upload_shipped()
    b = Browser(600, 900)
    try:
        job = d.submit(model, QUICK | {"steps": 300, "calibration_samples": 32})
        b.open(f"http://127.0.0.1:{d.port}/")
        b.wait("document.querySelector('.pill.running') && document.querySelector('tbody progress').value > 0")
        keep(b, "jobs-phone")
        # The daemon goes and comes back on the same port: the page follows without being told.
        port = d.port
        d.terminate()
        b.wait("document.getElementById('daemon').innerText.includes('down')")
        d.flags = ["--listen", f"127.0.0.1:{port}"]
        d.start()
        b.wait("/ready|busy/.test(document.getElementById('daemon').innerText)", 30)
        b.wait("document.querySelector('.pill.running')", 30)
        b.run("[...document.querySelectorAll('tbody button')].find(x => x.innerText === 'Cancel').click()")
        b.wait("document.querySelector('.pill.canceled')", 20)
        assert d.job(job)["status"] == "canceled"
        b.run("[...document.querySelectorAll('tbody button')].find(x => x.innerText === 'Try again').click()")
        b.wait("document.querySelector('.pill.running')", 30)
        again = d.get("/v1/jobs?limit=1").json()["data"][0]
        assert again["retry_of"] == job, again
        d.post(f"/v1/jobs/{again['id']}/cancel", {})
        b.open(f"http://127.0.0.1:{d.port}/#/jobs/{again['id']}")
        b.wait("document.querySelector('.pill.canceled')", 20)
        b.wait(f"document.querySelector('a[href=\"#/jobs/{job}\"]') && ![...document.querySelectorAll('button')].find(x => x.innerText === 'Try again').hidden")
    finally:
        b.close()


if __name__ == "__main__":
    run(submit_to_finished_pairs, cancel_and_reconnect)
