"""The audit log: who did what, what was refused, what was done to keys; and no way to fill it without a key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis

from store.embedded import EmbeddedRedis
from tests.service.gateway import Gateway
from tests.service.tenants import keys
from tests.service.uploads import model_file, post

UNKNOWN = f"fbk_{'0' * 12}_{'0' * 43}"


def entries(http: httpx2.Client, **wanted: Any) -> list[dict[str, Any]]:
    """Newest first."""
    listed: list[dict[str, Any]] = http.get("/audit?limit=200").json()["entries"]
    return [entry for entry in listed if all(entry[name] == value for name, value in wanted.items())]


def asked(gateway: Gateway, key: str | None, path: str = "/jobs", times: int = 1) -> list[int]:
    with gateway.client(key) as http:
        return [http.get(path).status_code for _ in range(times)]


@pytest.fixture
def acme(gateway: Gateway) -> Iterator[httpx2.Client]:
    with gateway.client(keys(gateway, "make", "--tenant", "acme", "--scope", "admin")) as http:
        yield http


def test_the_log_of_who_did_what_has_no_secrets_and_no_bodies(gateway: Gateway) -> None:
    admin, content = keys(gateway, "make", "--tenant", "acme", "--scope", "admin"), model_file() + b"the-body-itself"
    with gateway.client(admin) as http:
        made = post(http, "/models?name=secret-name", content)
        told = http.get("/audit")
        line = told.json()["entries"][0]
        assert (line["action"], line["object"], line["outcome"]) == ("upload_model", made.headers["Location"], 201)
        assert (line["key"], line["client"]) == (admin.split("_")[1], "127.0.0.1")
        assert line["request_id"] == made.headers["X-Request-Id"]
        assert http.get("/audit?limit=1").json()["next"] is not None
    for text in (told.text, gateway.log):
        assert not any(secret in text for secret in (admin, admin.rsplit("_", 1)[1], "the-body-itself", "secret-name"))
    assert made.headers["X-Request-Id"] in gateway.log


def test_what_is_done_to_a_key_is_in_the_log_of_its_tenant(gateway: Gateway, acme: httpx2.Client) -> None:
    old = keys(gateway, "make", "--tenant", "acme").split("_")[1]
    new = keys(gateway, "rotate", old)
    keys(gateway, "revoke", new.split("_")[1])
    told = [(entry["action"], entry["object"]) for entry in entries(acme, key="operator")]
    successor = new.split("_")[1]
    assert told[:4] == [
        ("revoke_key", successor), ("rotate_key", old), ("make_key", successor), ("make_key", old),
    ]  # fmt: skip
    assert new.rsplit("_", 1)[1] not in acme.get("/audit").text
    assert entries(gateway.http, key="operator") == []  # it is not the operator's own tenant


def test_a_key_that_opens_nothing_is_told_to_whom_it_belonged(gateway: Gateway, acme: httpx2.Client) -> None:
    key = keys(gateway, "make", "--tenant", "acme")
    identifier = key.split("_")[1]
    keys(gateway, "revoke", identifier)
    assert asked(gateway, key, "/models/mdl_x") == [401]
    (line,) = entries(acme, outcome=401)
    assert (line["key"], line["object"], line["client"]) == (identifier, "/models/mdl_x", "127.0.0.1")
    text = acme.get("/audit").text + gateway.log
    assert key not in text
    assert key.rsplit("_", 1)[1] not in text


@pytest.fixture
def fresh(tmp_path: Path, redis_server: EmbeddedRedis, redis: Redis) -> Iterator[Gateway]:
    """One that has refused nobody yet, and lets 60 requests a minute through."""
    with Gateway(tmp_path, redis_server.url, {"FEWBIT_REQUESTS_PER_MINUTE": "60"}) as gateway:
        yield gateway


def test_a_key_of_nobody_and_none_at_all_are_told_to_the_operator(fresh: Gateway, redis: Redis) -> None:
    keys(fresh, "make", "--tenant", "acme")
    before = redis.xlen("fewbit:tenant:acme:audit")
    assert asked(fresh, UNKNOWN) + asked(fresh, None) == [401, 401]
    assert [entry["key"] for entry in entries(fresh.http, outcome=401)] == ["none", "unknown"]
    assert UNKNOWN not in fresh.http.get("/audit").text + fresh.log
    assert redis.xlen("fewbit:tenant:acme:audit") == before


def test_who_has_no_key_cannot_fill_the_log_or_redis(fresh: Gateway, redis: Redis) -> None:
    known = keys(fresh, "make", "--tenant", "acme")
    forged = known.rsplit("_", 1)[0] + "_" + "0" * 43
    assert set(asked(fresh, UNKNOWN) + asked(fresh, None) + asked(fresh, forged)) == {401}
    before = redis.dbsize(), redis.xlen("fewbit:tenant:default:audit"), redis.xlen("fewbit:tenant:acme:audit")
    for key in (UNKNOWN, None, forged):
        asked(fresh, key, times=400)
    made_up = [f"fbk_{number:012}_{'a' * 43}" for number in range(400)]
    assert {status for key in made_up for status in asked(fresh, key)} == {401}
    after = redis.dbsize(), redis.xlen("fewbit:tenant:default:audit"), redis.xlen("fewbit:tenant:acme:audit")
    assert after == (before[0], before[1] + 2 + 2, before[2] + 2)  # the 10th and the 100th of each kind
    told = [(entry["key"], entry["times"]) for entry in entries(fresh.http, outcome=401)]
    assert sorted(told) == [(key, count) for key in ("none", "unknown") for count in (1, 10, 100)]


def test_a_tenant_over_its_rate_is_in_its_log_now_and_then(fresh: Gateway, redis: Redis) -> None:
    key = keys(fresh, "make", "--tenant", "acme", "--scope", "admin")
    assert asked(fresh, key, times=190).count(429) >= 120
    stored: Any = redis.xrange("fewbit:tenant:acme:audit")
    lines = [entry for _, entry in stored if entry[b"outcome"] == b"429"]
    assert [int(line[b"times"]) for line in lines] == [1, 10, 100]
    assert {line[b"key"].decode() for line in lines} == {key.split("_")[1]}


def test_refusals_for_want_of_a_scope_count_as_requests(fresh: Gateway, redis: Redis) -> None:
    reader = keys(fresh, "make", "--tenant", "acme", "--scope", "read")
    with fresh.client(reader) as http:
        answers = [http.post("/jobs", json={}).status_code for _ in range(80)]
    assert answers[0] == 403
    assert answers[-1] == 429
    assert redis.xlen("fewbit:tenant:acme:audit") < 70


def test_a_change_that_was_refused_is_in_the_log_and_tells_what_is_left(acme: httpx2.Client) -> None:
    for method, path, body in (("DELETE", "/models/mdl_none", None), ("POST", "/jobs", {"model": "mdl_none"})):
        answer = acme.request(method, path, json=body)
        assert "RateLimit" in answer.headers
        line = entries(acme)[0]
        assert (line["outcome"], line["request_id"]) == (answer.status_code, answer.headers["X-Request-Id"])
    assert entries(acme, action="delete_model", object="/models/mdl_none", outcome=404) != []
