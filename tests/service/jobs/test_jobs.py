"""A job's life over HTTP, the worker's part played by hand."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread, Timer

import httpx2
import pytest
from redis import Redis

from fewbit.contract.problems import JobProblem
from fewbit.contract.resources import Event, Job
from tests.service.gateway import Gateway
from tests.service.uploads import codes, job, ready_model
from tests.service.worker import Worker, report


def test_a_posted_job_is_queued_and_its_message_sent(http: httpx2.Client, worker: Worker, redis: Redis) -> None:
    answer = http.post("/jobs", json={"model": ready_model(http, worker)})
    posted = Job.model_validate(answer.json())
    assert (answer.status_code, posted.status, posted.attempts) == (202, "queued", 0)
    assert answer.headers["Location"] == f"/jobs/{posted.id}"
    assert int(answer.headers["Retry-After"]) > 0
    assert redis.llen("small") == 1
    assert http.get(answer.headers["Location"]).json() == answer.json()


def test_an_unchanged_job_is_304_until_its_revision_moves(http: httpx2.Client, worker: Worker) -> None:
    queued = job(http, worker)
    etag = http.get(f"/jobs/{queued}").headers["ETag"]
    assert etag.startswith('W/"')
    unchanged = http.get(f"/jobs/{queued}", headers={"If-None-Match": f'"x", {etag}'})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["ETag"]) == (304, b"", etag)
    worker.claim(queued)
    changed = http.get(f"/jobs/{queued}", headers={"If-None-Match": etag})
    assert (changed.status_code, changed.json()["status"]) == (200, "running")
    assert changed.headers["ETag"] != etag


def test_retry_after_ends_with_the_job(http: httpx2.Client, worker: Worker, tmp_path: Path) -> None:
    posted = job(http, worker)
    assert "Retry-After" in http.get(f"/jobs/{posted}").headers
    worker.succeed(posted, tmp_path)
    assert "Retry-After" not in http.get(f"/jobs/{posted}").headers


def test_prefer_wait_answers_when_the_job_ends(http: httpx2.Client, worker: Worker, tmp_path: Path) -> None:
    posted = job(http, worker)
    timer = Timer(0.4, worker.succeed, [posted, tmp_path])
    timer.start()
    started = time.monotonic()
    answer = http.get(f"/jobs/{posted}", headers={"Prefer": "respond-async, wait=20"})
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert 0.3 < time.monotonic() - started < 10
    timer.join()


def test_prefer_wait_gives_up_in_time(http: httpx2.Client, worker: Worker) -> None:
    model, started = ready_model(http, worker), time.monotonic()
    answer = http.post("/jobs", json={"model": model}, headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert 0.9 < time.monotonic() - started < 5


def test_a_posted_job_that_ends_in_time_is_200(
    http: httpx2.Client, worker: Worker, redis: Redis, tmp_path: Path
) -> None:
    model = ready_model(http, worker)

    def work() -> None:
        while not (waiting := redis.zrange("fewbit:waiting", 0, -1)):
            time.sleep(0.02)
        worker.succeed(waiting[0].decode(), tmp_path)

    thread = Thread(target=work)
    thread.start()
    answer = http.post("/jobs", json={"model": model}, headers={"Prefer": "wait=20"})
    thread.join()
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.headers["Location"].endswith(answer.json()["id"])


def test_the_report_is_202_until_it_is_there(http: httpx2.Client, worker: Worker, tmp_path: Path) -> None:
    posted = job(http, worker)
    early = http.get(f"/jobs/{posted}/report")
    assert (early.status_code, early.json()) == (202, {"status": "queued", "progress": None})
    assert int(early.headers["Retry-After"]) > 0
    claim = worker.claim(posted)
    worker.leases.progress(claim, "quantize", 0.5)
    assert http.get(f"/jobs/{posted}/report").json() == {
        "status": "running",
        "progress": {"stage": "quantize", "fraction": 0.5},
    }
    worker.leases.requeue(claim)
    worker.succeed(posted, tmp_path)
    done = http.get(f"/jobs/{posted}/report", headers={"Accept": "application/json"})
    assert (done.status_code, done.json()) == (200, report(posted))


def test_a_failed_job_has_no_report_but_a_reason(http: httpx2.Client, worker: Worker) -> None:
    posted = job(http, worker)
    worker.fail(posted, "out-of-memory", "It needed 9 GiB.")
    answer = http.get(f"/jobs/{posted}/report")
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/job-failed")
    assert answer.json()["error"] == JobProblem.of("out-of-memory", "It needed 9 GiB.").model_dump()
    assert http.get(f"/jobs/{posted}").json()["error"] == answer.json()["error"] == answer.json()["job"]["error"]


def test_a_canceled_job_has_no_report(http: httpx2.Client, worker: Worker) -> None:
    posted = job(http, worker)
    http.post(f"/jobs/{posted}/cancel")
    answer = http.get(f"/jobs/{posted}/report")
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/job-canceled")
    assert answer.json()["error"] is None


def test_a_queued_job_is_canceled_at_once(http: httpx2.Client, worker: Worker) -> None:
    posted = job(http, worker)
    answer = http.post(f"/jobs/{posted}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    again = http.post(f"/jobs/{posted}/cancel")
    assert (again.status_code, again.json()["type"]) == (409, "/problems/job-final")
    assert worker.leases.claim(posted, "late") is None


def test_a_running_job_is_canceled_by_its_worker(http: httpx2.Client, worker: Worker) -> None:
    posted = job(http, worker)
    claim = worker.claim(posted)
    for _ in range(2):  # asking again changes nothing
        answer = http.post(f"/jobs/{posted}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "canceling")
    assert worker.leases.renew(claim) == "canceling"
    worker.leases.cancel(claim)
    assert http.get(f"/jobs/{posted}").json()["status"] == "canceled"


def test_only_a_job_that_has_ended_can_be_deleted(gateway: Gateway, worker: Worker, tmp_path: Path) -> None:
    http, posted = gateway.http, job(gateway.http, worker)
    before = gateway.blob_files()
    refused = http.delete(f"/jobs/{posted}")
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/job-not-final")
    worker.succeed(posted, tmp_path, torchscript=b"an artifact")
    assert len(gateway.blob_files()) == len(before) + 1
    assert http.delete(f"/jobs/{posted}").status_code == 204
    assert gateway.blob_files() == before
    for path in ("", "/report", "/events", "/artifacts", "/artifacts/model.torchscript"):
        assert http.get(f"/jobs/{posted}{path}").status_code == 404
    assert http.delete(f"/jobs/{posted}").status_code == 404


def test_jobs_are_listed_newest_first_over_all_pages(http: httpx2.Client, worker: Worker) -> None:
    made = [job(http, worker) for _ in range(5)]
    seen, following = [], "/jobs?limit=2&status=queued"
    while following:
        page = http.get(following)
        seen += [job["id"] for job in page.json()["jobs"]]
        following = page.links.get("next", {}).get("url")
    assert seen == made[::-1]


def test_filters_hold_together(http: httpx2.Client, worker: Worker) -> None:
    model = ready_model(http, worker)
    first = job(http, worker, labels={"team": "search"})
    moment = datetime.now(UTC)
    time.sleep(0.01)
    second = job(http, worker, model=model, labels={"team": "search", "a/b": "c=d & e"})
    http.post(f"/jobs/{first}/cancel")

    def found(**filters: str) -> list[str]:
        answer = http.get("/jobs", params=filters)
        assert answer.status_code == 200, answer.text
        return [job["id"] for job in answer.json()["jobs"]]

    assert found(label="team=search") == [second, first]
    assert found(label="a/b=c=d & e") == [second]
    assert found(label="team=search", status="queued") == [second]
    assert found(model=model) == [second]
    assert found(status="running") == []
    assert found(created_after=moment.isoformat()) == [second]
    assert found(created_after=moment.replace(tzinfo=None).isoformat(), label="team=search") == [second]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("status=done", "/query/status"),
        ("limit=0", "/query/limit"),
        ("limit=many", "/query/limit"),
        ("label=team", "/query/label"),
        ("created_after=yesterday", "/query/created_after"),
        ("cursor=bWRsX2FiYw", "/query/cursor"),
    ],
)
def test_a_filter_that_cannot_be_read_is_named(http: httpx2.Client, query: str, pointer: str) -> None:
    answer = http.get(f"/jobs?{query}")
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-request")
    assert {where for where, _ in codes(answer)} == {pointer}


def test_events_are_streamed_as_they_happen(http: httpx2.Client, worker: Worker, tmp_path: Path) -> None:
    posted = job(http, worker)

    def work() -> None:
        claim = worker.claim(posted)
        worker.leases.progress(claim, "load", 0.25)
        worker.leases.log(claim, "two lines\nin one message")
        worker.leases.fail(claim, JobProblem.of("export-failed", "It would not."))

    timer = Timer(0.3, work)
    timer.start()
    seen = events_of(http, posted)
    timer.join()
    assert [event.event for event in seen] == ["state", "state", "progress", "log", "state", "done"]
    assert [event.data["status"] for event in seen if event.event == "state"] == ["queued", "running", "failed"]
    assert seen[2].data["fraction"] == 0.25
    assert seen[3].data["message"] == "two lines\nin one message"
    assert seen[-1].data["error"]["type"] == "/problems/export-failed"


def test_a_stream_goes_on_behind_the_last_event_seen(http: httpx2.Client, worker: Worker, tmp_path: Path) -> None:
    posted = job(http, worker)
    worker.succeed(posted, tmp_path)
    every = events_of(http, posted)
    assert events_of(http, posted, every[1].id) == every[2:]
    page = http.get(f"/jobs/{posted}/events", headers={"Accept": "application/json", "Last-Event-ID": every[0].id})
    assert [event["id"] for event in page.json()["events"]] == [event.id for event in every[1:]]
    assert page.json()["next"] == every[-1].id


def test_a_last_event_id_that_is_none_is_refused(http: httpx2.Client, worker: Worker) -> None:
    answer = http.get(f"/jobs/{job(http, worker)}/events", headers={"Last-Event-ID": "$"})
    assert codes(answer) == {("/header/last-event-id", "unknown-event")}


def test_many_watchers_do_not_starve_the_rest(http: httpx2.Client, gateway: Gateway, worker: Worker) -> None:
    """More streams than the gateway has connections for everything else."""
    posted = job(http, worker)
    limits = httpx2.Limits(max_connections=None)
    headers = {"Authorization": http.headers["Authorization"]}
    with httpx2.Client(base_url=gateway.url, headers=headers, limits=limits, trust_env=False, timeout=60) as many:
        open_streams = []
        for _ in range(150):
            stream = many.stream("GET", f"/jobs/{posted}/events")
            open_streams.append((stream, stream.__enter__()))
        started = time.monotonic()
        assert http.get(f"/jobs/{posted}").status_code == 200
        assert time.monotonic() - started < 5
        http.post(f"/jobs/{posted}/cancel")
        for stream, answer in open_streams:
            assert "event: done" in answer.read().decode()
            stream.__exit__(None, None, None)


def events_of(http: httpx2.Client, job_id: str, last_id: str = "") -> list[Event]:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    with http.sse(f"/jobs/{job_id}/events", headers=headers) as source:
        assert source.response.headers["Content-Type"].startswith("text/event-stream")
        found = [(event.id, event.event, event.json()) for event in source]
    return [Event(id=id_, event=event, data=data, at=data["at"]) for id_, event, data in found]
