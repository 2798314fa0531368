"""The client on a network that drops, delays and lies. What the service really answers is tested in tests/e2e."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from fewbit import JobSpec
from fewbit.client import Client
from fewbit.contract.resources import Event
from fewbit.contract.spec import Evaluation
from fewbit.errors import FewbitError
from tests.fewbit.example import report as example_report
from tests.fewbit.scripted import Answer, Scripted, as_json, problem

DROPPED = Answer(cut=0)
MODEL = {
    "id": "mdl_1", "format": "pt2", "size": 4, "sha256": "ab" * 32, "status": "ready",
    "created_at": "2026-01-01T00:00:00Z",
}  # fmt: skip
JOB: dict[str, Any] = {
    "id": "job_1", "status": "queued", "spec": {"model": "mdl_1"}, "revision": 1, "created_at": "2026-01-01T00:00:00Z",
}  # fmt: skip
DONE = JOB | {"status": "succeeded"}


def artifact(content: bytes) -> Answer:
    sha256 = hashlib.sha256(content).hexdigest()
    listed = {"name": "model.ts.pt", "kind": "torchscript", "size": len(content), "sha256": sha256}
    return as_json(
        {"artifacts": [listed | {"media_type": "application/zip", "url": "/jobs/job_1/artifacts/model.ts.pt"}]}
    )


def events(*sent: tuple[str, str, dict[str, Any]], cut: int | None = None) -> Answer:
    at = {"at": "2026-01-01T00:00:00Z"}
    lines = [f"id: {id_}\nevent: {event}\ndata: {json.dumps(at | data)}\n\n" for id_, event, data in sent]
    return Answer(200, "".join(lines).encode(), {"Content-Type": "text/event-stream"}, cut)


def test_an_upload_announces_its_digest_and_length(server: Scripted, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(b"PK\x03\x04" * 1000)
    server.plays(as_json(MODEL, 201))
    seen: list[tuple[int, int]] = []
    assert client.upload_model(path, progress=lambda sent, size: seen.append((sent, size))).id == "mdl_1"
    (request,) = server.received
    digest = base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
    assert request.body == path.read_bytes()
    assert request.path == "/models?name=m.pt2"
    assert request.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert request.headers["content-length"] == "4000"
    assert request.headers["authorization"] == "Bearer secret"
    assert seen == [(4000, 4000)]


def test_an_upload_whose_connection_drops_is_sent_again_whole_under_the_same_key(
    server: Scripted, client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(b"PK\x03\x04")
    server.plays(DROPPED, problem("service-unavailable", 503), as_json(MODEL, 201))
    client.upload_model(path)
    assert [request.body for request in server.received] == [b"PK\x03\x04"] * 3
    assert len({request.headers["idempotency-key"] for request in server.received}) == 1


def test_each_job_gets_a_key_of_its_own(server: Scripted, client: Client) -> None:
    server.plays(as_json(JOB, 202), as_json(JOB, 202))
    client.create_job({"model": "mdl_1"})
    client.create_job({"model": "mdl_1"})
    assert len({request.headers["idempotency-key"] for request in server.received}) == 2


def test_a_spec_is_sent_without_defaults(server: Scripted, client: Client) -> None:
    server.plays(as_json(JOB, 202))
    client.create_job(JobSpec(model="mdl_1", evaluation=Evaluation(dataset="dst_1")))
    assert json.loads(server.received[0].body) == {"model": "mdl_1", "evaluation": {"dataset": "dst_1"}}


def test_the_client_waits_for_an_inspection(server: Scripted, client: Client) -> None:
    server.plays(problem("model-not-ready", 409, Retry_After="0"), as_json(JOB, 202))
    assert client.create_job({"model": "mdl_1"}).id == "job_1"


def test_retry_after_is_respected_until_patience_runs_out(server: Scripted, tmp_path: Path) -> None:
    server.plays(problem("service-unavailable", 503, Retry_After="60"))
    with Client(server.url, "secret", patience=1) as client, pytest.raises(FewbitError) as raised:
        client.job("job_1")
    assert raised.value.slug == "service-unavailable"
    assert len(server.received) == 1


def test_cancel_is_not_repeated_without_an_answer(server: Scripted, client: Client) -> None:
    server.plays(DROPPED)
    with pytest.raises(FewbitError):
        client.cancel("job_1")
    assert len(server.received) == 1


def test_a_refused_spec_says_what_where_and_what_to_do(server: Scripted, client: Client) -> None:
    wrong = {"pointer": "/layers/0/match", "code": "no-match", "message": "'encodr.*' matches no layer"}
    server.plays(problem("invalid-request", 422, "The spec cannot work.", errors=(wrong,)))
    with pytest.raises(FewbitError) as raised:
        client.create_job({"model": "mdl_1"})
    text = str(raised.value)
    assert "at /layers/0/match: 'encodr.*' matches no layer (no-match)" in text
    assert "POST /jobs (request req_1)" in text
    assert "What to do: `errors` names each field" in text


def test_an_unreachable_service_is_named_by_its_address() -> None:
    with Client("http://127.0.0.1:9", "secret", patience=0) as client, pytest.raises(FewbitError) as raised:
        client.capabilities()
    assert "http://127.0.0.1:9 does not answer" in str(raised.value)


def test_an_answer_that_is_not_from_fewbit_is_shown_as_it_is(server: Scripted, client: Client) -> None:
    server.plays(Answer(404, b"<h1>nginx</h1>", {"Content-Type": "text/html"}))
    with pytest.raises(FewbitError, match="nginx"):
        client.job("job_1")


def test_waiting_survives_a_dropped_stream_and_shows_each_event_once(server: Scripted, client: Client) -> None:
    server.plays(
        events(("1-0", "state", {"status": "running"}), ("2-0", "progress", {"stage": "load", "fraction": 0.1})),
        as_json(JOB | {"status": "running"}),
        DROPPED,
        events(("3-0", "done", {"status": "succeeded"})),
        as_json(DONE),
    )
    seen: list[Event] = []
    assert client.wait("job_1", seen.append).status == "succeeded"
    assert [(event.id, event.event) for event in seen] == [("1-0", "state"), ("2-0", "progress"), ("3-0", "done")]
    streams = [request for request in server.received if request.path == "/jobs/job_1/events"]
    assert [request.headers.get("last-event-id") for request in streams] == [None, "2-0", "2-0"]


def test_waiting_ends_when_the_stream_closes_after_the_job_has_ended(server: Scripted, client: Client) -> None:
    server.plays(events(), as_json(DONE))
    assert client.wait("job_1").status == "succeeded"


def test_the_client_waits_for_a_report(server: Scripted, client: Client) -> None:
    report = example_report()
    server.plays(
        as_json({"status": "running", "progress": None}, 202, Retry_After="0"),
        Answer(200, report.model_dump_json().encode(), {"Content-Type": "application/json"}),
    )
    assert client.report("job_1") == report


def test_a_failed_job_is_raised_as_the_problem_it_failed_with(server: Scripted, client: Client) -> None:
    error = {"type": "/problems/out-of-memory", "title": "Too little", "detail": "needed 9 GB", "retryable": True}
    body = {"type": "/problems/job-failed", "title": "t", "status": 409, "detail": "", "request_id": "r"}
    server.plays(as_json(body | {"job": JOB | {"status": "failed", "error": error}}, 409))
    with pytest.raises(FewbitError) as raised:
        client.report("job_1")
    assert raised.value.slug == "out-of-memory"
    assert "smaller evaluation.batch_size" in str(raised.value)


def test_an_interrupted_download_resumes_where_it_stopped(server: Scripted, client: Client, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40
    rest = Answer(206, content[1000:], {"Content-Range": f"bytes 1000-{len(content) - 1}/{len(content)}"})
    server.plays(artifact(content), Answer(200, content, cut=1000), rest)
    path = client.download("job_1", "model.ts.pt", tmp_path / "model.ts.pt")
    assert path.read_bytes() == content
    assert server.received[2].headers["range"] == "bytes=1000-"
    assert server.received[2].headers["if-range"] == f'"sha256-{hashlib.sha256(content).hexdigest()}"'
    assert list(tmp_path.iterdir()) == [path]


def test_a_download_with_other_bytes_than_announced_is_not_kept(
    server: Scripted, client: Client, tmp_path: Path
) -> None:
    server.plays(artifact(b"right"), Answer(200, b"wrong"))
    with pytest.raises(FewbitError, match="does not have the bytes that the service announced"):
        client.download("job_1", "model.ts.pt", tmp_path / "model.ts.pt")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_artifact_is_downloaded_too(server: Scripted, client: Client, tmp_path: Path) -> None:
    server.plays(artifact(b""), Answer(200, b""))
    assert client.download("job_1", "model.ts.pt", tmp_path / "m").read_bytes() == b""


def test_lists_follow_their_pages(server: Scripted, client: Client) -> None:
    following = '</models?cursor=abc>; rel="next"'
    server.plays(as_json({"models": [MODEL]}, Link=following), as_json({"models": [MODEL | {"id": "mdl_2"}]}))
    assert [model.id for model in client.models()] == ["mdl_1", "mdl_2"]
    assert server.received[1].path == "/models?cursor=abc"


def test_a_rejected_model_is_raised_as_its_problem(server: Scripted, client: Client) -> None:
    error = {"type": "/problems/unsafe-model", "title": "Code", "detail": "os.system in data.pkl", "retryable": False}
    server.plays(as_json(MODEL | {"status": "inspecting"}), as_json(MODEL | {"status": "rejected", "error": error}))
    with pytest.raises(FewbitError, match=r"os\.system"):
        client.inspected("mdl_1")
