"""Deliveries are kept for a while and not for ever, and one webhook's never stand before another's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis import Redis

from store.clients import connect_async
from store.settings import StoreSettings
from store.webhooks import SHOWN, Outbox, WebhookRecord, Webhooks

KEPT = 1000  # as deliveries.lua has it, and docs/keys-and-tenants.md tells
WEEK_MS = 7 * 24 * 3600 * 1000
Scenario = Callable[[Webhooks, Outbox], Awaitable[Any]]
Played = Callable[[Scenario], Any]


@pytest.fixture
def played(redis: Redis, store_settings: StoreSettings) -> Played:
    """Runs a scenario in an event loop of its own, for the tenant `acme`."""

    def run(scenario: Scenario) -> Any:
        async def whole() -> Any:
            client = connect_async(store_settings)
            try:
                return await scenario(Webhooks(client, "acme"), Outbox(client))
            finally:
                await client.aclose()

        return asyncio.run(whole())

    return run


async def told(webhooks: Webhooks, count: int) -> WebhookRecord:
    webhook = await webhooks.create("https://hooks.example/", most=50)
    for _ in range(count):
        await webhooks.test(webhook)
    return webhook


def names(redis: Redis, kind: str) -> set[str]:
    return {key.decode() for key in redis.keys(f"fewbit:{kind}:*")}  # type: ignore[union-attr]


def test_the_oldest_deliveries_make_room_for_new_ones(redis: Redis, played: Played) -> None:
    async def scenario(webhooks: Webhooks, outbox: Outbox) -> tuple[str, str, int]:
        webhook = await told(webhooks, 0)
        first = await webhooks.test(webhook)
        for _ in range(KEPT + 20):
            last = await webhooks.test(webhook)
        listed = await webhooks.deliveries(webhook)
        assert (listed[0].id, len(listed)) == (last.id, SHOWN)
        return first.id, last.id, await outbox.waiting()

    first, last, waiting = played(scenario)
    kept = names(redis, "delivery")
    assert len(kept) == waiting == KEPT
    assert f"fewbit:delivery:{last}" in kept
    assert f"fewbit:delivery:{first}" not in kept


def test_a_delivery_is_forgotten_after_a_week_and_nothing_of_it_stays(redis: Redis, played: Played) -> None:
    async def scenario(webhooks: Webhooks, outbox: Outbox) -> None:
        webhook = await told(webhooks, 3)
        index, due = (f"fewbit:webhook:{webhook.id}:{kind}" for kind in ("deliveries", "due"))
        for name in (*names(redis, "delivery"), index, due):
            assert WEEK_MS - 60_000 < int(redis.pttl(name)) <= WEEK_MS
        for member in names(redis, "delivery"):
            redis.zincrby(
                index, -1000 * (WEEK_MS + 1), member.removeprefix("fewbit:delivery:")
            )  # they began a week ago
        fresh = await webhooks.test(webhook)
        assert [delivery.id for delivery in await webhooks.deliveries(webhook)] == [fresh.id]
        assert await outbox.waiting() == 1

    played(scenario)
    assert len(names(redis, "delivery")) == 1


def test_one_whose_record_ran_out_while_it_waited_is_dropped(redis: Redis, played: Played) -> None:
    async def scenario(webhooks: Webhooks, outbox: Outbox) -> None:
        webhook = await told(webhooks, 1)
        redis.delete(*names(redis, "delivery"))
        taken = await outbox.take()
        assert taken is not None
        assert await outbox.read(taken) is None
        await outbox.drop(taken)
        assert await outbox.take() is None
        assert await webhooks.deliveries(webhook) == []

    played(scenario)
    assert redis.zcard("fewbit:deliveries") == 0


def test_a_taken_delivery_is_nobody_elses_until_its_lease_ends(played: Played) -> None:
    async def scenario(webhooks: Webhooks, outbox: Outbox) -> None:
        await told(webhooks, 2)
        first, second, third = [await outbox.take() for _ in range(3)]
        assert first is not None
        assert second is not None
        assert first.delivery != second.delivery
        assert third is None

    played(scenario)


def test_a_delivery_that_ended_is_not_due_and_one_that_failed_is_later(played: Played) -> None:
    async def scenario(webhooks: Webhooks, outbox: Outbox) -> None:
        webhook = await told(webhooks, 2)
        for delivered in (True, False):
            taken = await outbox.take()
            assert taken is not None
            found = await outbox.read(taken)
            assert found is not None
            await outbox.record_attempt(found[0], {"status": 204 if delivered else 500}, delivered)
        assert await outbox.take() is None
        assert await outbox.waiting() == 1
        assert {delivery.status for delivery in await webhooks.deliveries(webhook)} == {"delivered", "pending"}

    played(scenario)


def test_an_attempt_whose_webhook_was_deleted_meanwhile_writes_nothing(redis: Redis, played: Played) -> None:
    async def scenario(webhooks: Webhooks, outbox: Outbox) -> None:
        webhook = await told(webhooks, 1)
        taken = await outbox.take()
        found = await outbox.read(taken) if taken else None
        assert found is not None
        assert await webhooks.delete(webhook.id)
        await outbox.record_attempt(found[0], {"status": 500}, False)

    played(scenario)
    assert redis.keys("*deliver*") + redis.keys("*webhook*") == []


def test_a_tenant_that_is_passed_over_keeps_nobody_waiting(played: Played) -> None:
    async def scenario(webhooks: Webhooks, outbox: Outbox) -> None:
        await told(webhooks, 50)
        other = Webhooks(webhooks._redis, "umbrella")
        webhook = await told(other, 1)
        taken = await outbox.take(pass_over=["acme"])
        assert taken is not None
        assert taken.webhook == webhook.id
        assert await outbox.take(pass_over=["acme"]) is None
        assert await outbox.take() is not None

    played(scenario)
