"""A job's life: cancelled in time, killed and picked up again, put back by a clean shutdown."""
import time

from daemon import FINAL, QUICK, check_gap_free, run

LONG = {**QUICK, "steps": 200, "calibration_samples": 32, "pairs": 16}


def reach_running(d, job):
    d.wait(job, 60, ("running",) + FINAL)
    end = time.time() + 60
    while time.time() < end and d.job(job)["progress"]["phase"] in ("queued", None, ""):
        time.sleep(0.05)


def cancel_running_queued_and_done(d):
    model = d.upload_shipped()
    running = d.submit(model, LONG)
    queued = d.submit(model, QUICK)
    reach_running(d, running)
    r = d.post(f"/v1/jobs/{queued}/cancel", {})
    assert r.status == 200 and r.json() == {"canceled": True, "status": "canceled"}, (r.status, r.body)
    start = time.time()
    r = d.post(f"/v1/jobs/{running}/cancel", {})
    assert r.status == 202 and r.json()["cancel_requested_at"], (r.status, r.body)
    job = d.wait(running, 30)
    took = time.time() - start
    assert job["status"] == "canceled", job
    assert took < 2.0 * TIME_FACTOR, f"cancel took {took:.1f} s"
    events = d.events(running)
    check_gap_free(events)
    assert events[-1]["type"] == "end" and events[-2]["data"]["status"] == "canceled"
    assert d.post(f"/v1/jobs/{running}/cancel", {}).json()["canceled"] is False
    # The daemon goes on with the next one.
    assert d.wait(d.submit(model, QUICK))["status"] == "succeeded"


def canceled_and_tried_again(d):
    job = d.submit(d.upload_shipped(), LONG | {"steps": 20, "pairs": 2})
    reach_running(d, job)
    assert d.post(f"/v1/jobs/{job}/retry", {}).status == 409
    d.post(f"/v1/jobs/{job}/cancel", {})
    first = d.wait(job, 30)
    r = d.post(f"/v1/jobs/{job}/retry", {})
    assert r.status == 202 and r.headers["Location"] == "/v1/jobs/" + r.json()["id"], (r.status, r.body)
    second = r.json()
    assert second["retry_of"] == job and second["params"] == first["params"], second
    assert d.post(f"/v1/jobs/{job}/retry", {}).json()["id"] == second["id"], "the same one while it is unfinished"
    assert d.wait(second["id"])["status"] == "succeeded"
    assert d.job(job) == first, "a final state never changes"


def reports_within_a_second(d):
    job = d.submit(d.upload_shipped(), LONG)
    reach_running(d, job)
    time.sleep(6)
    d.post(f"/v1/jobs/{job}/cancel", {})
    d.wait(job, 30)
    from datetime import datetime
    times = [datetime.fromisoformat(e["ts"].replace("Z", "+00:00")).timestamp() for e in d.events(job)]
    worst = max(b - a for a, b in zip(times, times[1:]))
    assert worst < 1.3 * TIME_FACTOR, f"silent for {worst:.2f} s"


def kill_nine_and_restart(d):
    model = d.upload_shipped()
    first, second = d.submit(model, LONG | {"steps": 40, "pairs": 40}), d.submit(model, QUICK)
    reach_running(d, first)
    end = time.time() + 60
    while not d.get(f"/v1/jobs/{first}/samples").json()["data"]:  # so late that it has drawn something
        assert time.time() < end and d.job(first)["status"] == "running"
        time.sleep(0.02)
    d.kill()
    d.start()
    one, two = d.wait(first), d.wait(second)
    assert one["status"] == "succeeded" and one["attempt"] == 2, one
    assert two["status"] == "succeeded"
    events = d.events(first)
    check_gap_free(events)
    assert events[0]["seq"] == 1 and [e["type"] for e in events].count("end") == 1
    attempts = d.get(f"/v1/jobs/{first}/attempts").json()["data"]
    assert len(attempts) == 2, attempts
    pictures = d.get(f"/v1/jobs/{first}/samples").json()["data"]
    assert sorted(p["index"] for p in pictures) == list(range(40)), "each picture once, although some were drawn twice"
    # Nothing of the dead attempt is left behind, and the result is published once.
    names = [a["name"] for a in d.get(f"/v1/jobs/{first}/artifacts").json()["data"]]
    assert len(names) == len(set(names)), names


def sigterm_puts_the_job_back(d):
    job = d.submit(d.upload_shipped(), LONG | {"steps": 40, "pairs": 4})
    reach_running(d, job)
    code, took = d.terminate()
    assert code == 0, f"exit code {code}\n{d.read_log()}"
    assert took < 5 * TIME_FACTOR, f"SIGTERM took {took:.1f} s"
    d.start()
    final = d.wait(job)
    assert final["status"] == "succeeded", final
    check_gap_free(d.events(job))


if __name__ == "__main__":
    import os
    TIME_FACTOR = float(os.environ.get("QUANTD_TIME_FACTOR", "1"))
    run(cancel_running_queued_and_done, canceled_and_tried_again, reports_within_a_second, kill_nine_and_restart, sigterm_puts_the_job_back)
