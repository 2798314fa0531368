"""Idempotency-Key: created once, however often it is sent."""

from __future__ import annotations

from threading import Thread

import httpx2
from redis import Redis

from tests.service.gateway import Gateway
from tests.service.uploads import digits, model_file, post, ready_model, wait_for_a_key
from tests.service.worker import Worker


def test_the_same_request_gets_the_same_answer(http: httpx2.Client, worker: Worker) -> None:
    spec, key = {"model": ready_model(http, worker)}, {"Idempotency-Key": "k1"}
    first, second = (http.post("/jobs", json=spec, headers=key) for _ in range(2))
    assert first.status_code == second.status_code == 202
    assert (first.json(), first.headers["Location"]) == (second.json(), second.headers["Location"])
    assert first.headers["Content-Type"] == second.headers["Content-Type"]
    assert len(http.get("/jobs").json()["jobs"]) == 1


def test_uploads_are_told_apart_by_content(http: httpx2.Client) -> None:
    for path, one, other in (("/models", model_file(), model_file()), ("/datasets", digits(), digits())):
        first, again = (post(http, path, one, Idempotency_Key=path) for _ in range(2))
        assert (first.status_code, again.status_code, first.json()) == (201, 201, again.json())
        reused = post(http, path, other, Idempotency_Key=path)
        assert (reused.status_code, reused.json()["type"]) == (422, "/problems/idempotency-key-reused")
        renamed = post(http, f"{path}?name=x", one, Idempotency_Key=path)
        assert renamed.json()["type"] == "/problems/idempotency-key-reused"


def test_a_refused_reuse_leaves_no_bytes(gateway: Gateway) -> None:
    post(gateway.http, "/models", model_file(), Idempotency_Key="k")
    before = gateway.blob_files()
    assert post(gateway.http, "/models", model_file(), Idempotency_Key="k").status_code == 422
    assert gateway.blob_files() == before


def test_another_body_is_refused(http: httpx2.Client, worker: Worker) -> None:
    model, key = ready_model(http, worker), {"Idempotency-Key": "k2"}
    http.post("/jobs", json={"model": model}, headers=key)
    answer = http.post("/jobs", json={"model": model, "seed": 1}, headers=key)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/idempotency-key-reused")


def test_a_refusal_is_kept_too(http: httpx2.Client, worker: Worker) -> None:
    key = {"Idempotency-Key": "k3"}
    first, second = (http.post("/jobs", json={"model": "mdl_x"}, headers=key) for _ in range(2))
    assert first.status_code == second.status_code == 422
    assert first.json() == second.json()
    assert first.headers["X-Request-Id"] != second.headers["X-Request-Id"]


def test_a_request_still_running_is_409(gateway: Gateway, worker: Worker, redis: Redis) -> None:
    model = post(gateway.http, "/models", model_file()).json()["id"]
    spec, key = {"model": model}, {"Idempotency-Key": "k4"}
    answers: list[httpx2.Response] = []

    def first() -> None:
        with gateway.client("a-key-for-tests") as http:
            answers.append(http.post("/jobs", json=spec, headers=key))

    thread = Thread(target=first)
    thread.start()  # waits for the inspection
    wait_for_a_key(redis)
    early = gateway.http.post("/jobs", json=spec, headers=key)
    assert (early.status_code, early.json()["type"]) == (409, "/problems/idempotency-in-progress")
    assert int(early.headers["Retry-After"]) > 0
    worker.inspect(model)
    thread.join()
    assert answers[0].status_code == 202
    assert gateway.http.post("/jobs", json=spec, headers=key).json() == answers[0].json()


def test_a_5xx_is_never_kept(http: httpx2.Client, worker: Worker, redis: Redis) -> None:
    spec, key = {"model": ready_model(http, worker)}, {"Idempotency-Key": "k5"}
    record = f"fewbit:model:{spec['model']}"
    inputs = redis.hget(record, "layers")
    assert inputs is not None
    redis.hset(record, "layers", "not JSON")
    broken = http.post("/jobs", json=spec | {"layers": [{"match": "*"}]}, headers=key)
    assert (broken.status_code, broken.json()["type"]) == (500, "/problems/service-error")
    redis.hset(record, "layers", inputs)
    assert http.post("/jobs", json=spec | {"layers": [{"match": "*"}]}, headers=key).status_code == 202


def test_keys_of_different_users_do_not_meet(gateway: Gateway, worker: Worker) -> None:
    spec, key = {"model": ready_model(gateway.http, worker)}, {"Idempotency-Key": "k6"}
    mine = gateway.http.post("/jobs", json=spec, headers=key)
    with gateway.client("another") as http:
        theirs = http.post("/jobs", json=spec, headers=key)
    assert mine.json()["id"] != theirs.json()["id"]


def test_a_key_has_a_length(http: httpx2.Client) -> None:
    answer = http.post("/jobs", json={"model": "m"}, headers={"Idempotency-Key": "k" * 256})
    assert answer.json()["errors"][0]["pointer"] == "/header/idempotency-key"


def test_prefer_wait_counts_for_a_repeated_request_too(http: httpx2.Client, worker: Worker) -> None:
    spec, headers = {"model": ready_model(http, worker)}, {"Idempotency-Key": "k7", "Prefer": "wait=1"}
    first = http.post("/jobs", json=spec, headers=headers)
    assert first.status_code == 202
    worker.fail(first.json()["id"])
    again = http.post("/jobs", json=spec, headers=headers)
    assert (again.status_code, again.json()["id"], again.json()["status"]) == (200, first.json()["id"], "failed")
