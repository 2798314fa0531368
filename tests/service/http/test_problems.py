"""One shape for every error, and a page for every problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from redis import Redis

from fewbit.contract.problems import PROBLEMS, Problem
from store.embedded import EmbeddedRedis
from store.settings import StoreSettings
from tests.service.gateway import A_HOST, KEY, Gateway
from tests.service.uploads import digits, job, model_file, post, ready_model, wait_for_a_key
from tests.service.worker import Worker


@dataclass
class Scene:
    """What a scenario needs."""

    http: httpx2.Client
    worker: Worker
    folder: Path
    redis: Redis
    jobs: list[str] = field(default_factory=list)

    def job(self) -> str:
        return job(self.http, self.worker)

    def canceled(self) -> str:
        posted = self.job()
        self.http.post(f"/jobs/{posted}/cancel")
        return posted

    def failed(self) -> str:
        posted = self.job()
        self.worker.fail(posted)
        return posted

    def artifact(self) -> str:
        posted = self.job()
        self.worker.succeed(posted, self.folder, pt2=b"12345")
        return f"/jobs/{posted}/artifacts/model.pt2"

    def rejected(self) -> str:
        model: str = post(self.http, "/models", model_file()).json()["id"]
        self.worker.reject(model)
        return model

    def in_progress(self) -> httpx2.Response:
        """A key whose first request has not ended."""
        key = {"Idempotency-Key": "k"}
        model = post(self.http, "/models", model_file()).json()["id"]
        with pytest.raises(httpx2.ReadTimeout):
            self.http.post("/jobs", json={"model": model}, headers=key, timeout=0.3)
        wait_for_a_key(self.redis)
        answer = self.http.post("/jobs", json={"model": model}, headers=key)
        self.worker.inspect(model)  # so that the first one ends
        return answer

    def broken(self) -> httpx2.Response:
        model = ready_model(self.http, self.worker)
        self.redis.hset(f"fewbit:model:{model}", "size", "not a number")
        return self.http.get(f"/models/{model}")


Ask = Callable[[Scene], httpx2.Response]
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
BAD_DIGEST = "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:"

ERRORS: dict[str, Ask] = {
    "malformed-request": lambda it: it.http.post("/jobs", content=b"{", headers={"Content-Type": "application/json"}),
    "upload-interrupted": lambda it: it.http.post("/models", content=b"--b\r\n", headers=FORM),
    "unauthorized": lambda it: it.http.get("/jobs", headers={"Authorization": "Bearer wrong"}),
    "not-found": lambda it: it.http.get("/jobs/job_none"),
    "method-not-allowed": lambda it: it.http.put("/jobs"),
    "not-acceptable": lambda it: it.http.get(f"/jobs/{it.job()}/report", headers={"Accept": "text/csv"}),
    "idempotency-in-progress": lambda it: it.in_progress(),
    "in-use": lambda it: it.http.delete(f"/models/{it.http.get(f'/jobs/{it.job()}').json()['spec']['model']}"),
    "job-final": lambda it: it.http.post(f"/jobs/{it.canceled()}/cancel"),
    "job-not-final": lambda it: it.http.delete(f"/jobs/{it.job()}"),
    "job-failed": lambda it: it.http.get(f"/jobs/{it.failed()}/report"),
    "job-canceled": lambda it: it.http.get(f"/jobs/{it.canceled()}/report"),
    "payload-too-large": lambda it: post(it.http, "/models", model_file(9 * 2**20)),
    "unsupported-media-type": lambda it: it.http.post("/models", content=b"x", headers={"Content-Type": "text/plain"}),
    "range-not-satisfiable": lambda it: it.http.get(it.artifact(), headers={"Range": "bytes=9-"}),
    "invalid-request": lambda it: it.http.post("/jobs", json={"model": "mdl_none"}),
    "digest-mismatch": lambda it: post(it.http, "/models", model_file(), Repr_Digest=BAD_DIGEST),
    "invalid-dataset": lambda it: post(it.http, "/datasets", b"nothing"),
    "invalid-model": lambda it: post(it.http, "/models", b"nothing"),
    "unsafe-model": lambda it: it.http.post("/jobs", json={"model": it.rejected()}),
    "service-error": lambda it: it.broken(),
    "service-unavailable": lambda it: it.http.get("/health/ready"),
}
ELSEWHERE = {"idempotency-key-reused", "model-not-ready"}  # test_idempotency; half a minute of waiting
ELSEWHERE |= {"rate-limited", "quota-exceeded", "forbidden"}  # test_quotas, test_keys
ELSEWHERE |= {"request-timeout", "uri-too-long", "misdirected-request", "headers-too-large"}  # test_hostile_requests
WITH_FIELDS = {"invalid-request", "invalid-dataset", "invalid-model", "unsafe-model"}
MEMBERS = {"type", "title", "status", "detail", "request_id"}
MORE: dict[str, set[str]] = {
    "job-failed": {"job", "error"},
    "job-canceled": {"job", "error"},
    "service-unavailable": {"parts"},
    **{slug: {"errors"} for slug in WITH_FIELDS},
}
HEADERS = {
    "unauthorized": {"WWW-Authenticate"},
    "method-not-allowed": {"Allow"},
    "idempotency-in-progress": {"Retry-After"},
    "job-not-final": {"Retry-After"},
    "range-not-satisfiable": {"Content-Range"},
    "service-unavailable": {"Retry-After"},
}


@pytest.fixture
def scene(http: httpx2.Client, worker: Worker, tmp_path: Path, redis: Redis) -> Scene:
    return Scene(http, worker, tmp_path, redis)


@pytest.mark.parametrize("slug", ERRORS)
def test_every_error_has_the_one_shape(scene: Scene, slug: str) -> None:
    answer = ERRORS[slug](scene)
    kind, body = PROBLEMS[slug], answer.json()
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (answer.status_code, body["status"]) == (kind.status, kind.status)
    assert (body["type"], body["title"]) == (f"/problems/{slug}", kind.title)
    assert body["request_id"] == answer.headers["X-Request-Id"]
    assert set(body) == MEMBERS | MORE.get(slug, set())
    assert HEADERS.get(slug, set()) <= {name for name in HEADERS.get(slug, set()) if name in answer.headers}
    assert len(Problem.model_validate(body).detail) > 10
    assert not any(told in answer.text for told in ("Traceback", "File ", str(Path.cwd()), "/tmp/", ".py"))


def test_an_answer_that_told_where_the_gateway_runs_would_be_noticed(gateway: Gateway) -> None:
    for told in (f"{gateway.folder}/blobs/sha256", f"{A_HOST}:6379", 'File "service/app.py", line 3'):
        with pytest.raises(AssertionError):
            gateway.tells_nothing(f"No such thing: {told}.")


def test_every_problem_of_a_request_has_its_scenario() -> None:
    requests = {slug for slug, kind in PROBLEMS.items() if slug not in JOBS_ONLY}
    assert requests == set(ERRORS) | ELSEWHERE


JOBS_ONLY = {
    "export-failed", "calibration-failed", "quantization-failed", "verification-failed", "out-of-memory",
    "time-limit-exceeded", "sandbox-violation", "worker-lost", "internal-error",
}  # fmt: skip


@pytest.mark.parametrize("slug", PROBLEMS)
def test_every_problem_has_its_page(gateway: Gateway, slug: str) -> None:
    with gateway.client() as anyone:
        told = anyone.get(f"/problems/{slug}").json()
        page = anyone.get(f"/problems/{slug}", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
        assert (told["type"], told["remedy"]) == (f"/problems/{slug}", PROBLEMS[slug].remedy)
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert f"<h1>{slug}</h1>" in page.text
        assert slug in anyone.get("/problems", headers={"Accept": "text/html"}).text
        assert slug in anyone.get("/problems").text


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/jobs", "GET, HEAD, POST"),
        ("PATCH", "/jobs/job_1", "DELETE, GET, HEAD"),
        ("GET", "/jobs/job_1/cancel", "POST"),
        ("HEAD", "/jobs/job_1/cancel", "POST"),
        ("DELETE", "/models", "GET, HEAD, POST"),
        ("POST", "/jobs/job_1/artifacts/a", "GET, HEAD"),
        ("POST", "/capabilities", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
def test_405_lists_every_method_of_the_path(http: httpx2.Client, method: str, path: str, allowed: str) -> None:
    answer = http.request(method, path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)


@pytest.mark.parametrize(
    "path",
    ["/nowhere", "/jobs/", "/problems/none", "/jobs/a/b", "/models/%2e%2e", "/jobs/JOB:events", "/datasets/%ff"],
)
def test_an_unknown_path_is_a_problem_too(http: httpx2.Client, worker: Worker, path: str) -> None:
    answer = http.get(path.replace("JOB", job(http, worker)))
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


def test_an_own_request_id_is_kept_if_it_is_fit_for_a_log(http: httpx2.Client) -> None:
    def id_for(given: str) -> str:
        answer = http.get("/nowhere", headers={"X-Request-Id": given})
        told: str = answer.json()["request_id"]
        assert answer.headers.get_list("X-Request-Id") == [told]
        return told

    assert id_for("build-4711.step_2") == "build-4711.step_2"
    for unfit in ("short", "a" * 65, "with space in it", "{jndi:ldap}"):
        assert id_for(unfit).startswith("req_")


def test_nothing_is_answered_without_a_key_but_what_is_open(gateway: Gateway) -> None:
    with gateway.client() as anyone:
        document = anyone.get("/openapi.json").json()
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                answer = anyone.request(
                    method,
                    path.format(
                        job_id="a", model_id="a", dataset_id="a", webhook_id="a", name="a", slug="in-use", code="a"
                    ),
                )
                assert (answer.status_code == 401) == ("security" not in operation), (method, path)
        assert anyone.get("/docs").status_code == 200
        assert anyone.get("/nowhere").status_code == 401


@pytest.mark.parametrize("header", ["", "Bearer", "Basic YTpi", f"Basic {KEY}", f"Bearer {KEY}x", KEY])
def test_what_is_no_key_is_refused(gateway: Gateway, header: str) -> None:
    with gateway.client() as anyone:
        answer = anyone.get("/jobs", headers={"Authorization": header} if header else {})
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer  {KEY}", "Bearer another"])
def test_each_key_opens(gateway: Gateway, header: str) -> None:
    with gateway.client() as anyone:
        assert anyone.get("/jobs", headers={"Authorization": header}).status_code == 200


def test_head_is_get_without_the_body(http: httpx2.Client, worker: Worker) -> None:
    for path in ("/jobs", f"/jobs/{job(http, worker)}", "/health/live", "/problems", "/nowhere", "/openapi.json"):
        whole, head = http.get(path), http.head(path)
        assert (head.status_code, head.content) == (whole.status_code, b"")
        assert head.headers["Content-Type"] == whole.headers["Content-Type"]
    stream = http.head(f"/jobs/{job(http, worker)}/events")
    assert stream.headers["Content-Type"].startswith("text/event-stream")


def test_a_redis_that_is_away_is_503_and_then_goes_on(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis") as server, Gateway(tmp_path, server.url) as gateway:
        made = post(gateway.http, "/models", model_file()).json()["id"]
        server.kill()
        away = gateway.http.get(f"/models/{made}")
        assert (away.status_code, away.json()["type"]) == (503, "/problems/service-unavailable")
        assert int(away.headers["Retry-After"]) > 0
        assert gateway.http.get("/health/live").status_code == 200
        assert gateway.http.get("/health/ready").json()["parts"]["redis"] == "missing"
        before = gateway.blob_files()
        assert post(gateway.http, "/datasets", digits()).status_code == 503
        assert [path for path in gateway.blob_files() if "incoming" in path or "reading" in path] == []
        server.start()
        assert gateway.http.get(f"/models/{made}").status_code == 200
        assert len(gateway.blob_files()) <= len(before) + 1


def test_a_gateway_stops_although_someone_watches(tmp_path: Path, redis_server: EmbeddedRedis, redis: Redis) -> None:
    with Gateway(tmp_path, redis_server.url) as gateway:
        worker = Worker(redis, StoreSettings(redis_url=redis_server.url, blobs_url=str(gateway.blobs)))
        posted = job(gateway.http, worker)
        with gateway.http.stream("GET", f"/jobs/{posted}/events") as watched:
            pieces = watched.iter_bytes()
            assert b"event: state" in next(pieces)
            gateway.process.terminate()
            assert list(pieces) == []
        assert gateway.process.wait(10) is not None


def test_a_gateway_without_keys_refuses_to_start(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, "unix:///nowhere.sock", {"FEWBIT_API_KEYS": " , ", "FEWBIT_STARTUP_S": "1"})
    with pytest.raises(AssertionError, match="Set FEWBIT_API_KEYS"):
        gateway.start()
    gateway.http.close()


def test_a_gateway_may_be_left_open_on_purpose(tmp_path: Path, redis_server: EmbeddedRedis) -> None:
    env = {"FEWBIT_API_KEYS": "", "FEWBIT_AUTH": "off"}
    with Gateway(tmp_path, redis_server.url, env) as gateway, gateway.client() as anyone:
        assert anyone.get("/jobs").status_code == 200
