"""API keys: made, shown once, scoped, rotated, revoked, expired."""

from __future__ import annotations

import time

from redis import Redis

from tests.service.gateway import Gateway
from tests.service.tenants import keys, run
from tests.service.uploads import model_file, post


def status(gateway: Gateway, key: str, path: str = "/jobs") -> int:
    with gateway.client(key) as http:
        return http.get(path).status_code


def test_a_key_is_kept_as_a_digest_only(gateway: Gateway, redis: Redis) -> None:
    key = keys(gateway, "make", "--tenant", "acme")
    assert status(gateway, key) == 200
    secret = key.rsplit("_", 1)[1].encode()
    kept = b"".join(b"".join(redis.hgetall(name).values()) for name in redis.keys("fewbit:key:*"))  # type: ignore[union-attr]
    assert key.split("_")[1].encode() in kept
    assert secret not in kept
    assert secret.decode() not in keys(gateway, "list")
    assert secret.decode() not in gateway.log


def test_a_scope_is_a_limit(gateway: Gateway) -> None:
    reader, writer, admin = (
        keys(gateway, "make", "--tenant", "acme", "--scope", scope) for scope in ("read", "write", "admin")
    )
    with gateway.client(reader) as http:
        answer = post(http, "/models", model_file())
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/forbidden")
    assert 'scope="write"' in answer.headers["WWW-Authenticate"]
    with gateway.client(writer) as http:
        assert post(http, "/models", model_file()).status_code == 201
    assert [status(gateway, key, "/audit") for key in (reader, writer, admin)] == [403, 403, 200]


def test_a_revoked_key_opens_nothing_within_two_seconds(gateway: Gateway) -> None:
    key = keys(gateway, "make")
    assert status(gateway, key) == 200
    keys(gateway, "revoke", key.split("_")[1])
    deadline = time.monotonic() + 2
    while status(gateway, key) == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert status(gateway, key) == 401


def test_a_rotated_key_works_beside_its_successor_until_its_grace_ends(gateway: Gateway) -> None:
    old = keys(gateway, "make", "--tenant", "acme", "--scope", "read")
    new = keys(gateway, "rotate", old.split("_")[1], "--grace-hours", "0.0008")  # 2.9 s
    assert (status(gateway, old), status(gateway, new)) == (200, 200)
    time.sleep(3.2)
    assert (status(gateway, old), status(gateway, new)) == (401, 200)
    assert "expired" in keys(gateway, "list", "--tenant", "acme")


def test_an_idempotency_key_outlives_a_rotation(gateway: Gateway) -> None:
    old, content = keys(gateway, "make", "--tenant", "acme"), model_file()
    new = keys(gateway, "rotate", old.split("_")[1])
    answers = []
    for key in (old, new):
        with gateway.client(key) as http:
            answers.append(post(http, "/models", content, Idempotency_Key="once"))
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()


def test_a_key_that_would_have_ended_is_not_made(gateway: Gateway) -> None:
    """Without ``--days`` a key never ends: 0 must not mean that."""
    ran = run(gateway, "make", "--days", "0")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "more than 0" in ran.stderr
    assert keys(gateway, "list") == ""
    old = keys(gateway, "make")
    assert run(gateway, "rotate", old.split("_")[1], "--days", "0").returncode == 1
    assert [status(gateway, old), len(keys(gateway, "list").splitlines())] == [200, 1]
