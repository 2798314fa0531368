"""Quotas: none can be passed, each says how to free some, and one tenant's are not another's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from redis import Redis

from store.embedded import EmbeddedRedis
from store.jobs.leases import Leases
from store.settings import StoreSettings
from tests.service.gateway import Gateway
from tests.service.tenants import keys
from tests.service.uploads import job, model_file, post, ready_model
from tests.service.worker import Worker

SMALL = {"FEWBIT_MAX_STORED_BYTES": "100000", "FEWBIT_MAX_QUEUED_JOBS": "3", "FEWBIT_REQUESTS_PER_MINUTE": "60"}


@pytest.fixture
def small(tmp_path: Path, redis_server: EmbeddedRedis, redis: Redis) -> Iterator[Gateway]:
    with Gateway(tmp_path, redis_server.url, SMALL) as gateway:
        yield gateway


def test_bytes_are_counted_over_uploads_that_come_together_and_given_back(small: Gateway) -> None:
    def upload(_: int) -> httpx2.Response:
        with small.client(key) as http:
            return post(http, "/models", model_file(30_000))

    key = keys(small, "make", "--tenant", "acme")
    with ThreadPoolExecutor(8) as together:
        answers = list(together.map(upload, range(8)))
    made = [answer for answer in answers if answer.status_code == 201]
    full = next(answer for answer in answers if answer.status_code == 429)
    assert len(made) == 3
    assert (full.json()["type"], full.json()["quota"]) == ("/problems/quota-exceeded", "bytes-stored")
    assert "Delete" in full.json()["detail"]
    assert len(small.blob_files()) == 3
    with small.client(key) as http:
        assert http.delete(made[0].headers["Location"]).status_code == 204
    assert upload(0).status_code == 201
    with small.client(keys(small, "make", "--tenant", "umbrella")) as http:
        assert post(http, "/models", model_file(30_000)).status_code == 201


def test_a_stream_of_unknown_length_ends_where_the_room_does(small: Gateway) -> None:
    pieces = (model_file(20_000) for _ in range(40))
    answer = small.http.post("/models", content=pieces, headers={"Content-Type": "application/octet-stream"})
    assert (answer.status_code, answer.json()["type"]) == (429, "/problems/quota-exceeded")
    assert small.blob_files() == []


def test_jobs_that_wait_are_counted(small: Gateway, redis: Redis) -> None:
    worker = Worker(redis, StoreSettings(redis_url=small.env["REDIS_URL"], blobs_url=str(small.blobs)))
    model = ready_model(small.http, worker)
    answers = [small.http.post("/jobs", json={"model": model}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
    assert (answers[3].json()["quota"], answers[3].json()["limit"]) == ("jobs-queued", 3)
    assert int(answers[3].headers["Retry-After"]) > 0
    worker.claim(answers[0].json()["id"])
    assert small.http.post("/jobs", json={"model": model}).status_code == 202


def test_a_full_queue_is_not_remembered_under_an_idempotency_key(small: Gateway, redis: Redis) -> None:
    worker = Worker(redis, StoreSettings(redis_url=small.env["REDIS_URL"], blobs_url=str(small.blobs)))
    spec, key = {"model": ready_model(small.http, worker)}, {"Idempotency-Key": "k"}
    waiting = [small.http.post("/jobs", json=spec).json()["id"] for _ in range(3)]
    full = small.http.post("/jobs", json=spec, headers=key)
    assert (full.status_code, full.headers["Retry-After"]) == (429, "5")
    small.http.post(f"/jobs/{waiting[0]}/cancel")
    first, again = (small.http.post("/jobs", json=spec, headers=key) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]


def test_requests_have_a_rate_and_every_answer_tells_what_is_left(small: Gateway) -> None:
    with small.client(keys(small, "make", "--tenant", "acme")) as http:
        first = http.get("/jobs")
        assert first.headers["RateLimit-Policy"] == '"requests";q=60;w=60'
        assert first.headers["RateLimit"].startswith('"requests";r=59;t=')
        answers = [http.get("/jobs") for _ in range(70)]
    assert 59 <= [answer.status_code for answer in answers].index(429) <= 62
    limited = next(answer for answer in answers if answer.status_code == 429)
    assert limited.json()["type"] == "/problems/rate-limited"
    assert 1 <= int(limited.headers["Retry-After"]) <= 60
    assert small.http.get("/jobs").status_code == 200  # another tenant


def leases(gateway: Gateway, redis: Redis, most: int) -> Leases:
    return Leases(redis, StoreSettings(redis_url=gateway.env["REDIS_URL"], max_running_jobs=most))


def test_a_tenant_over_its_share_waits_and_is_called_when_one_has_ended(
    gateway: Gateway, worker: Worker, redis: Redis
) -> None:
    first, second = (job(gateway.http, worker) for _ in range(2))
    some = leases(gateway, redis, most=1)
    running = some.claim(some.turn(first), "w1")
    assert running is not None
    assert running.job_id == first
    assert some.claim(some.turn(second), "w2") is None
    redis.delete("small")  # both messages have been received
    assert gateway.http.get(f"/jobs/{second}").json()["status"] == "queued"
    assert some.reap() == []
    some.succeed(running, b"{}", [])
    assert [undelivered.job_id for undelivered in some.reap()] == [second]
    assert some.claim(some.turn(second), "w2") is not None


def test_a_thousand_jobs_of_one_tenant_do_not_stand_before_the_first_of_another(
    gateway: Gateway, worker: Worker, redis: Redis
) -> None:
    with gateway.client(keys(gateway, "make", "--tenant", "acme")) as acme:
        many = [job(gateway.http, worker) for _ in range(5)]
        one = job(acme, worker)
        some = leases(gateway, redis, most=8)
        order = []
        for message in [*many, one]:  # as they lie in the queue
            claim = some.claim(some.turn(message), "w")
            assert claim is not None
            order.append(claim.job_id)
            some.succeed(claim, b"{}", [])
    assert order.index(one) <= 1
    assert sorted(order) == sorted([*many, one])
