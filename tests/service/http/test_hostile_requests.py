"""Requests that mean harm: each ends as the right problem, at once, and the gateway goes on."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from fewbit.contract.problems import PROBLEMS
from store.embedded import EmbeddedRedis
from tests.service.gateway import KEY, Gateway
from tests.service.uploads import codes, digits, job, model_file, post, ready_model
from tests.service.worker import Worker

HEAD = f"Host: x\r\nAuthorization: Bearer {KEY}\r\n"


def raw(gateway: Gateway, request: bytes, seconds: float = 10) -> tuple[int, dict[str, str], bytes]:
    """What comes back for these very bytes, until the other side hangs up or falls silent."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=seconds) as line:
        line.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer) < _announced(answer):
            piece = line.recv(65536)
            if not piece:
                break
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, body


def _announced(answer: bytes) -> int:
    head, _, _ = answer.partition(b"\r\n\r\n")
    length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    return len(head) + 4 + (int(length[0].split(b":")[1]) if length else 0)


RAW: dict[str, tuple[str, str]] = {
    "a header flood": ("headers-too-large", f"GET /jobs HTTP/1.1\r\n{HEAD}" + "X-A: b\r\n" * 500 + "\r\n"),
    "a giant header": ("headers-too-large", f"GET /jobs HTTP/1.1\r\n{HEAD}X-A: {'b' * 100_000}\r\n\r\n"),
    "a header that never ends": ("headers-too-large", f"GET /jobs HTTP/1.1\r\n{HEAD}X-A: " + "b" * 400_000),
    "a giant target": ("uri-too-long", f"GET /{'a' * 9000} HTTP/1.1\r\n{HEAD}\r\n"),
    "a long query": ("uri-too-long", f"GET /jobs?label={'a' * 5000} HTTP/1.1\r\n{HEAD}\r\n"),
    "a long path": ("uri-too-long", f"GET /jobs/{'a' * 2000} HTTP/1.1\r\n{HEAD}\r\n"),
    "two lengths of one body": (
        "malformed-request",
        f"POST /jobs HTTP/1.1\r\n{HEAD}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "two Content-Lengths": (
        "malformed-request",
        f"POST /jobs HTTP/1.1\r\n{HEAD}Content-Length: 4\r\nContent-Length: 5\r\n\r\n{{}}",
    ),
    "a coding after chunked": (
        "malformed-request",
        f"POST /jobs HTTP/1.1\r\n{HEAD}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ),
    "a negative length": ("malformed-request", f"POST /jobs HTTP/1.1\r\n{HEAD}Content-Length: -1\r\n\r\n"),
    "a chunk size that is none": (
        "malformed-request",
        f"POST /models HTTP/1.1\r\n{HEAD}Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ),
    "a folded header": ("malformed-request", f"GET /jobs HTTP/1.1\r\n{HEAD}X-A: b\r\n c\r\n\r\n"),
    "a space before the colon": ("malformed-request", f"GET /jobs HTTP/1.1\r\n{HEAD}Content-Length : 3\r\n\r\nabc"),
    "no HTTP at all": ("malformed-request", "\x16\x03\x01 hello\r\n\r\n"),
    "no Host": ("malformed-request", f"GET /jobs HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n\r\n"),
    "two Hosts": ("malformed-request", f"GET /jobs HTTP/1.1\r\n{HEAD}Host: y\r\n\r\n"),
    "a Host with markup": ("malformed-request", "GET /jobs HTTP/1.1\r\nHost: <script>\r\n\r\n"),
    "a claim of 4 GB": (
        "payload-too-large",
        f"POST /models HTTP/1.1\r\n{HEAD}Content-Type: application/octet-stream\r\nContent-Length: 4294967296\r\n\r\n",
    ),
    "a length beyond 64 bits": (
        "malformed-request",
        f"POST /models HTTP/1.1\r\n{HEAD}Content-Length: {'9' * 30}\r\n\r\n",
    ),
    "a path with a line break": ("malformed-request", f"GET /jobs/%0d%0aX:y HTTP/1.1\r\n{HEAD}\r\n"),
    "a path with a null": ("malformed-request", f"GET /jobs/a%00b HTTP/1.1\r\n{HEAD}\r\n"),
    "dots out of an artifact": ("not-found", f"GET /jobs/job_a/artifacts/../../../etc/passwd HTTP/1.1\r\n{HEAD}\r\n"),
    "dots in disguise": ("not-found", f"GET /jobs/job_a/artifacts/..%2f..%2fetc%2fpasswd HTTP/1.1\r\n{HEAD}\r\n"),
    "another method by header": (
        "method-not-allowed",
        f"POST /capabilities HTTP/1.1\r\n{HEAD}X-HTTP-Method-Override: GET\r\nContent-Length: 0\r\n\r\n",
    ),
    "TRACE": ("method-not-allowed", f"TRACE /jobs HTTP/1.1\r\n{HEAD}\r\n"),
}


@pytest.mark.parametrize("name", RAW)
def test_a_hostile_request_ends_as_its_problem(gateway: Gateway, name: str) -> None:
    slug, request = RAW[name]
    status, headers, body = raw(gateway, request.encode("latin-1"))
    problem = json.loads(body)
    gateway.tells_nothing(f"{headers} {body.decode()}")
    assert (problem["type"], status) == (f"/problems/{slug}", PROBLEMS[slug].status)
    assert headers["content-type"] == "application/problem+json"
    assert headers["x-request-id"] == problem["request_id"]
    assert headers["x-content-type-options"] == "nosniff"
    assert gateway.http.get("/health/live").status_code == 200


JSON = {"Content-Type": "application/json"}
BODIES = {
    "deep arrays": b"[" * 100_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "a little too deep": b'{"layers":' + b"[" * 40 + b"]" * 40 + b"}",
    "a key twice": b'{"model": "a", "model": "b"}',
    "NaN": b'{"seed": NaN}',
    "an integer of a million digits": b'{"seed": ' + b"9" * 900_000 + b"}",
    "an integer of 65 bits": b'{"seed": 36893488147419103232}',
    "half a surrogate pair": b'{"model": "\\ud800"}',
    "half a pair in a key": b'{"\\udfff": 1}',
    "bytes that are no UTF-8": b'{"model": "\xff\xfe"}',
    "UTF-16": '{"model": "a"}'.encode("utf-16"),
    "nothing": b"",
    "an array": b"[]",
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", ["/jobs", "/webhooks"])
def test_json_that_means_harm_is_malformed(http: httpx2.Client, path: str, name: str) -> None:
    started = time.monotonic()
    answer = http.post(path, content=BODIES[name], headers=JSON)
    expected = (400, 413) if len(BODIES[name]) > 16_384 and path == "/webhooks" else (400,)
    assert answer.status_code in expected, answer.text[:300]
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert time.monotonic() - started < 3


PART = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n'
MARKUP = "<script>alert(1)</script>"
Ask = Callable[[httpx2.Client, Worker], httpx2.Response]


def cursor(of: bytes) -> str:
    return base64.urlsafe_b64encode(of).decode()


ASKED: dict[str, tuple[int, Ask]] = {
    "a digest that is none": (400, lambda http, _: post(http, "/models", model_file(), Repr_Digest="sha-256=:AAAA:")),
    "an idempotency key of a kilobyte": (
        422, lambda http, _: http.post("/jobs", json={"model": "mdl_a"}, headers={"Idempotency-Key": "k" * 1024})),
    "a cursor of another list": (
        422, lambda http, _: http.get("/jobs", params={"cursor": cursor(b"mdl_abc")})),
    "a cursor with Redis in it": (
        422, lambda http, _: http.get("/jobs", params={"cursor": cursor(b"job_a\r\nFLUSHALL")})),
    "an event id of 400 digits": (
        422, lambda http, worker: http.get(f"/jobs/{job(http, worker)}/events", headers={"Last-Event-ID": "9" * 400})),
    "labels that break lines": (
        202, lambda http, worker: http.post(
            "/jobs", json={"model": ready_model(http, worker), "labels": {"a\r\nb": MARKUP}})),
    "a page of minus one": (422, lambda http, _: http.get("/jobs?limit=-1")),
    "a page of everything": (422, lambda http, _: http.get("/models?limit=1000000")),
    "a form without a boundary": (
        400, lambda http, _: http.post("/models", content=b"x", headers={"Content-Type": "multipart/form-data"})),
    "a form of ten thousand parts": (
        400, lambda http, _: http.post("/models", content=PART * 10_000 + b"--b--\r\n",
            headers={"Content-Type": "multipart/form-data; boundary=b"})),
    "a part with a header of a megabyte": (
        400, lambda http, _: http.post("/models", content=b"--b\r\nX: " + b"a" * 2**20 + b"\r\n\r\n\r\n--b--\r\n",
             headers={"Content-Type": "multipart/form-data; boundary=b"})),
    "a body for an encoding": (
        422, lambda http, _: post(http, "/models", b"\x00" * 100, Content_Encoding="gzip")),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_a_request_that_means_harm_ends_as_it_should(http: httpx2.Client, worker: Worker, name: str) -> None:
    status, ask = ASKED[name]
    answer = ask(http, worker)
    assert answer.status_code == status, answer.text[:300]
    assert answer.status_code < 400 or answer.headers["Content-Type"] == "application/problem+json"


TOO_LARGE = ("18446744073709551616-0", "99999999999999999999", "1-99999999999999999999")
TEXTS = (
    *TOO_LARGE, "18446744073709551615-18446744073709551615", "0-0", "00-000", "0", "-", "+", "$", ">", "*", "(1-1",
    "[a", "1-1-1", "-1", "job_a:events", "whk_a:deliveries", "mdl_a", "mdl_", "{a}", "%s", "a\r\nFLUSHALL", "a\x00b",
    "\u0661-0", "\u00b2", "nan", "inf", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "x" * 3000,
)  # fmt: skip
Send = Callable[[httpx2.Client, str, str], httpx2.Response]


def in_query(path: str, *names: str) -> Send:
    return lambda http, text, _: http.get(path, params=[(name, text + "=" * (name == "label")) for name in names])


def in_body(**spec: object) -> Send:
    return lambda http, text, known: http.post("/jobs", json={"model": known} | _filled(spec, text))


def _filled(value: dict[str, object], text: str) -> dict[str, object]:
    return {name: _filled(inner, text) if isinstance(inner, dict) else text for name, inner in value.items()}


def in_header(path: str, name: str) -> Send:
    return lambda http, text, _: http.get(path, headers={name: text.replace("\r\n", "").replace("\0", "").encode()})


PLACES: dict[str, Send] = {
    "jobs by model": in_query("/jobs", "model"),
    "jobs by label": in_query("/jobs", "label"),
    "jobs since": in_query("/jobs", "created_after"),
    "jobs from": in_query("/jobs", "cursor"),
    "models from": in_query("/models", "cursor"),
    "datasets from": in_query("/datasets", "cursor"),
    "the log from": in_query("/audit", "cursor"),
    "jobs compared": lambda http, text, _: http.get("/compare", params=[("job", text), ("job", text + "a")]),
    "a job's model": in_body(model=""),
    "a job's calibration": in_body(calibration={"dataset": ""}),
    "a job's evaluation": in_body(evaluation={"dataset": ""}),
    "a job's webhook": in_body(webhook=""),
    "a job's labels": lambda http, text, known: http.post("/jobs", json={"model": known, "labels": {text: text}}),
    "a key of its own": lambda http, text, known: http.post(
        "/jobs", json={"model": known}, headers={"Idempotency-Key": text.replace("\r\n", "").replace("\0", "").encode()}
    ),
    "a key": in_header("/jobs", "Authorization"),
    "a request id": in_header("/jobs", "X-Request-Id"),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_text_is_more_than_text_to_redis(http: httpx2.Client, worker: Worker, place: str) -> None:
    known = ready_model(http, worker)
    encoded = [cursor(hostile.encode()) for hostile in TEXTS] if "cursor" in place or "from" in place else []
    for text in (*TEXTS, *encoded):
        answer = PLACES[place](http, text, known)
        assert answer.status_code < 500, (text, answer.text[:300])


@pytest.mark.parametrize("last_id", [*TOO_LARGE, "\u00b2-0"])
def test_an_event_id_of_more_than_64_bits_is_none(http: httpx2.Client, worker: Worker, last_id: str) -> None:
    headers = {"Last-Event-ID": last_id.encode(), "Accept": b"application/json"}
    answer = http.get(f"/jobs/{job(http, worker)}/events", headers=headers)
    assert codes(answer) == {("/header/last-event-id", "unknown-event")}
    largest = http.get(
        f"/jobs/{job(http, worker)}/events", headers=headers | {"Last-Event-ID": f"{2**64 - 1}-0".encode()}
    )
    assert largest.json()["events"] == []


@pytest.mark.parametrize("given", ["0-0", "000-0", *TOO_LARGE])
def test_a_cursor_the_log_cannot_have_given_out_is_none(http: httpx2.Client, given: str) -> None:
    assert codes(http.get("/audit", params={"cursor": given})) == {("/query/cursor", "unknown-cursor")}


def test_what_lies_beside_a_webhook_is_no_webhook(http: httpx2.Client, worker: Worker) -> None:
    webhook = http.post("/webhooks", json={"url": "http://127.0.0.1:9999/"}).json()["id"]
    http.post(f"/webhooks/{webhook}/test")
    model = ready_model(http, worker)
    for beside in ("deliveries", "due"):
        answer = http.post("/jobs", json={"model": model, "webhook": f"{webhook}:{beside}"})
        assert codes(answer) == {("/webhook", "unknown-webhook")}
    assert http.post("/jobs", json={"model": model, "webhook": webhook}).status_code == 202


@pytest.mark.parametrize(
    "asked", ["bytes=0-0," * 1000 + "0-0", f"bytes={'9' * 20}-", "bytes=-" + "9" * 500, "bytes=0-\u0663"]
)
def test_a_range_that_means_harm_is_passed_over_or_416(
    http: httpx2.Client, worker: Worker, tmp_path: Path, asked: str
) -> None:
    posted = job(http, worker)
    worker.succeed(posted, tmp_path, pt2=b"12345")
    answer = http.get(f"/jobs/{posted}/artifacts/model.pt2", headers={"Range": asked.encode()})
    assert (answer.status_code, answer.content) == (200, b"12345") or answer.status_code == 416


def test_a_name_is_text_wherever_it_shows(http: httpx2.Client) -> None:
    named = post(http, "/models?name=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E%0d%0aX:%20y", model_file())
    assert named.json()["name"] == "<img src=x onerror=alert(1)>X: y"
    assert "X" not in named.headers
    assert named.headers["Content-Type"] == "application/json"
    page = http.get(f"/problems/{MARKUP}", headers={"Accept": "text/html"})
    assert page.headers["Content-Type"] == "application/problem+json"


def test_equal_requests_with_one_key_make_one_thing_however_many_come_together(http: httpx2.Client) -> None:
    data = digits()
    answers = [post(http, "/datasets", data, Idempotency_Key="k" * 255) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1


@pytest.mark.parametrize(
    "path", ["/jobs", "/jobs/job_a", "/nowhere", "/health/live", "/problems/in-use", "/openapi.json"]
)
def test_every_answer_has_strict_headers(gateway: Gateway, path: str) -> None:
    for accept in ("application/json", "text/html"):
        headers = gateway.http.get(path, headers={"Accept": f"{accept}, */*;q=0.1"}).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert "Server" not in headers


def test_what_has_a_version_may_be_kept_by_its_reader_only(http: httpx2.Client, worker: Worker) -> None:
    assert http.get(f"/jobs/{job(http, worker)}").headers["Cache-Control"] == "private, no-cache"


def test_a_body_that_stops_coming_is_408_and_leaves_nothing(tmp_path: Path, redis_server: EmbeddedRedis) -> None:
    with Gateway(tmp_path, redis_server.url, {"FEWBIT_IDLE_S": "1", "FEWBIT_HOSTS": "127.0.0.1, x"}) as gateway:
        kind = "Content-Type: application/octet-stream\r\nContent-Length: 1000\r\n"
        start = f"POST /models HTTP/1.1\r\n{HEAD}{kind}\r\nPK\x03\x04"
        status, headers, body = raw(gateway, start.encode())
        assert (status, json.loads(body)["type"]) == (408, "/problems/request-timeout")
        assert headers["connection"] == "close"
        assert gateway.blob_files() == []
        other = gateway.http.get("/jobs", headers={"Host": "rebound.example"})
        assert (other.status_code, other.json()["type"]) == (421, "/problems/misdirected-request")


def test_headers_that_drip_are_cut_off(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as line:
        started = time.monotonic()
        line.sendall(b"GET /jobs HTTP/1.1\r\n")
        while time.monotonic() - started < 14:
            time.sleep(2)
            line.sendall(b"X: y\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started < 20
