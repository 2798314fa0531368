"""Webhooks: signed, told once a job ends, never sent to where they should not go."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis

from service.shutdown import cancel_and_wait
from service.webhooks.addresses import Unreachable, check_url, is_public
from service.webhooks.courier import OF_A_TENANT, Courier
from service.webhooks.posting import Posting
from store.clients import connect_async
from store.embedded import EmbeddedRedis
from store.settings import StoreSettings
from store.webhooks import Outbox
from tests.service.gateway import Gateway
from tests.service.tenants import keys
from tests.service.uploads import codes, job
from tests.service.webhooks.receiver import Receiver
from tests.service.worker import Worker


@pytest.fixture
def receiver(request: pytest.FixtureRequest) -> Iterator[Receiver]:
    receiver = Receiver(*getattr(request, "param", (204,)))
    yield receiver
    receiver.close()


def webhook(http: httpx2.Client, url: str) -> dict[str, Any]:
    answer = http.post("/webhooks", json={"url": url})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def deliveries(http: httpx2.Client, made: dict[str, Any], status: str) -> list[dict[str, Any]]:
    """Once the newest has this status."""
    deadline = time.monotonic() + 10
    while True:
        told: list[dict[str, Any]] = http.get(f"/webhooks/{made['id']}/deliveries").json()["deliveries"]
        if told and told[0]["status"] == status:
            return told
        assert time.monotonic() < deadline, told
        time.sleep(0.02)


def due_now(redis: Redis, made: dict[str, Any], delivery: str) -> None:
    redis.zadd(f"fewbit:webhook:{made['id']}:due", {delivery: 0})
    redis.zadd("fewbit:deliveries", {made["id"]: 0})


def test_the_end_of_a_job_is_told_and_signed(
    http: httpx2.Client, worker: Worker, receiver: Receiver, tmp_path: Path
) -> None:
    made = webhook(http, receiver.url + "/hook")
    posted = job(http, worker, webhook=made["id"])
    worker.succeed(posted, tmp_path)
    receiver.wait(1)
    headers, body = receiver.received[0]
    told = json.loads(body)
    assert (told["type"], told["data"]) == ("job.succeeded", {"job": posted, "status": "succeeded"})
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = hmac.new(b64decode(made["secret"].removeprefix("whsec_")), signed, sha256).digest()
    assert headers["webhook-signature"] == f"v1,{b64encode(expected).decode()}"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    assert deliveries(http, made, "delivered")[0]["attempts"][0]["status"] == 204
    assert made["secret"] not in http.get("/webhooks").text + http.get(f"/webhooks/{made['id']}").text


def test_a_failed_and_a_canceled_job_are_told_too(http: httpx2.Client, worker: Worker, receiver: Receiver) -> None:
    made = webhook(http, receiver.url)
    worker.fail(job(http, worker, webhook=made["id"]))
    http.post(f"/jobs/{job(http, worker, webhook=made['id'])}/cancel")
    receiver.wait(2)
    assert {json.loads(body)["type"] for _, body in receiver.received} == {"job.failed", "job.canceled"}


@pytest.mark.parametrize("receiver", [(500, 302, 204)], indirect=True)
def test_what_is_not_taken_is_sent_again_later_and_never_elsewhere(
    http: httpx2.Client, receiver: Receiver, redis: Redis
) -> None:
    made = webhook(http, receiver.url + "/hook")
    delivery = http.post(f"/webhooks/{made['id']}/test").json()["id"]
    for attempt in (1, 2):
        receiver.wait(attempt)
        while len(deliveries(http, made, "pending")[0]["attempts"]) < attempt:
            time.sleep(0.02)
        due_ms = redis.zscore(f"fewbit:webhook:{made['id']}:due", delivery)
        assert due_ms is not None
        assert float(due_ms) / 1000 > time.time() + 2  # with back-off, which the test does not wait for
        due_now(redis, made, delivery)
    told = deliveries(http, made, "delivered")[0]
    assert [attempt["status"] for attempt in told["attempts"]] == [500, 302, 204]
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1
    assert len(receiver.received) == 3  # none to /elsewhere


@pytest.mark.parametrize("port", [0, 1, 22, 65536, 99999])
def test_a_port_nobody_can_be_reached_at_is_refused(http: httpx2.Client, port: int) -> None:
    answer = http.post("/webhooks", json={"url": f"https://1.1.1.1:{port}/x"})
    assert codes(answer) == {("/url", "unreachable-url")}
    assert "from 1024 to 65535" in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("url", "https://1.1.1.1:99999/x", "from 1024 to 65535"), ("secret", "whsec_a", "a fault of this service")],
)
def test_what_cannot_be_sent_is_an_attempt_that_failed_and_is_made_with_back_off(
    http: httpx2.Client, receiver: Receiver, redis: Redis, field: str, value: str, words: str
) -> None:
    made = webhook(http, receiver.url)
    redis.hset(f"fewbit:webhook:{made['id']}", field, value)
    delivery = http.post(f"/webhooks/{made['id']}/test").json()["id"]
    deadline = time.monotonic() + 20
    for attempt in range(1, 11):
        while len(attempts := deliveries(http, made, "pending" if attempt < 10 else "failed")[0]["attempts"]) < attempt:
            assert time.monotonic() < deadline, attempts
            time.sleep(0.02)
        assert attempts[-1]["status"] is None
        assert words in attempts[-1]["error"]
        if attempt < 10:
            due_now(redis, made, delivery)
    assert redis.zcard(f"fewbit:webhook:{made['id']}:due") == 0
    assert receiver.received == []


def test_a_deleted_webhook_is_told_nothing(
    http: httpx2.Client, worker: Worker, receiver: Receiver, redis: Redis
) -> None:
    made = webhook(http, receiver.url)
    posted = job(http, worker, webhook=made["id"])
    assert http.delete(f"/webhooks/{made['id']}").status_code == 204
    worker.fail(posted)
    time.sleep(1)
    assert receiver.received == []
    assert redis.zcard("fewbit:deliveries") == 0


def test_a_delivery_outlives_its_gateway(tmp_path: Path) -> None:
    receiver = Receiver(204)
    with EmbeddedRedis(tmp_path / "redis") as server:
        gateway = Gateway(tmp_path, server.url, {"FEWBIT_WEBHOOK_ALLOW_PRIVATE": "true"})
        with gateway:
            made = webhook(gateway.http, receiver.url)
            gateway.process.kill()  # before anyone tells
            gateway.process.wait(10)
            with Redis.from_url(server.url) as redis:
                redis.hset("fewbit:delivery:dlv_1", mapping={
                    "id": "dlv_1", "webhook": made["id"], "tenant": "default", "type": "webhook.test", "job": "",
                    "at": "2026-01-01T00:00:00.000Z", "status": "pending", "attempts": "[]",
                })  # fmt: skip
                due_now(redis, made, "dlv_1")
            gateway.start()
            receiver.wait(1)
    receiver.close()


def test_without_the_setting_nothing_private_is_told_anything(
    tmp_path: Path, redis_server: EmbeddedRedis, redis: Redis
) -> None:
    with Gateway(tmp_path, redis_server.url) as gateway:
        for url in (
            "https://127.0.0.1/",
            "https://localhost/",
            "https://[::ffff:10.0.0.1]/",
            "https://0x7f.1/",
            "https://2130706433/",
        ):
            answer = gateway.http.post("/webhooks", json={"url": url})
            assert codes(answer) == {("/url", "unreachable-url")}, url


def test_a_courier_stops_when_it_is_asked_to(redis: Redis, store_settings: StoreSettings) -> None:
    """Whatever it is in the middle of: with Python 3.11 one cancellation in three was lost in a call to Redis."""

    async def scenario() -> None:
        client, post = connect_async(store_settings), Posting(allow_private=True)
        for turn in range(60):
            courier = asyncio.create_task(Courier(Outbox(client), post).run())
            await asyncio.sleep(turn / 20_000)
            async with asyncio.timeout(5):
                await cancel_and_wait(courier)
        await client.aclose()

    asyncio.run(scenario())


PRIVATE = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.1.1", "192.0.0.1",
    "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:8.8.8.8", "64:ff9b::a00:1",
    "64:ff9b:1::1", "fc00::1", "fd12::1", "fe80::1", "fec0::1", "ff02::1", "2001:db8::1", "2002:a00:1::",
    "2001::1", "::8.8.8.8",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_none(address: str) -> None:
    assert not is_public(ip_address(address))
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(Unreachable):
        check_url(f"https://{host}/", allow_private=False)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450::1"])
def test_a_public_address_is_one(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    ["http://example.com/", "https://user:pass@example.com/", "https://example.com:22/", "ftp://example.com/", "https:///x",
     "https://example.com:65536/", "https://example.com:0/", "https://example.com/#x", "https://exa mple.com/",
     "//example.com", "https://example.com/" + "a" * 2048],
)  # fmt: skip
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(Unreachable):
        check_url(url, allow_private=False)


def test_a_receiver_that_takes_its_time_keeps_no_other_tenant_waiting(gateway: Gateway, receiver: Receiver) -> None:
    slow = Receiver(204, pause_s=3)
    acme, umbrella = (gateway.client(keys(gateway, "make", "--tenant", tenant)) for tenant in ("acme", "umbrella"))
    with acme, umbrella:
        tarpit, quick = webhook(acme, slow.url), webhook(umbrella, receiver.url)
        for _ in range(40):
            acme.post(f"/webhooks/{tarpit['id']}/test")
        slow.wait(OF_A_TENANT)
        started = time.monotonic()
        umbrella.post(f"/webhooks/{quick['id']}/test")
        receiver.wait(1)
        assert time.monotonic() - started < 2
        assert len(slow.received) == OF_A_TENANT
        acme.delete(f"/webhooks/{tarpit['id']}")
    slow.close()
