"""Requests a minute: counted over all gateways, exactly for who asks now and then, ahead for who is in a hurry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from redis import Redis

from store.clients import connect_async
from store.embedded import EmbeddedRedis
from store.settings import StoreSettings
from store.tenancy.rates import AHEAD_S, MOST_AHEAD, Allowance, Rates


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[StoreSettings]:
    """Of a Redis that nobody else asks anything of."""
    with EmbeddedRedis(tmp_path / "redis") as server:
        yield StoreSettings(redis_url=server.url, blobs_url=str(tmp_path / "blobs"))


@pytest.fixture
def own(settings: StoreSettings) -> Iterator[Redis]:
    with Redis.from_url(settings.redis_url) as client:
        yield client


def played(settings: StoreSettings, limit: int, scenario: Callable[[Rates, Rates], Awaitable[None]]) -> None:
    """With the rates of two gateways."""

    async def whole() -> None:
        clients = [connect_async(settings) for _ in range(2)]
        try:
            await scenario(*(Rates(client, limit) for client in clients))
        finally:
            for client in clients:
                await client.aclose()

    asyncio.run(whole())


def calls(redis: Redis) -> int:
    """Scripts that Redis has run."""
    stats = redis.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])


async def taken(rates: Rates, count: int) -> list[Allowance]:
    return [await rates.take("acme") for _ in range(count)]


def test_as_many_pass_as_may_over_two_gateways_that_ask_together(own: Redis, settings: StoreSettings) -> None:
    async def scenario(one: Rates, other: Rates) -> None:
        answers = await asyncio.gather(*(rates.take("acme") for rates in (one, other) * 900))
        granted = sum(answer.granted for answer in answers)
        assert 1200 <= granted + lost(one) + lost(other) <= 1200 + 20 * 3  # twenty more with each second it takes
        assert lost(one) + lost(other) <= 2 * 2  # 1200 a minute: at most two ahead at each

    played(settings, 1200, scenario)


def lost(rates: Rates) -> int:
    return sum(ahead.count for ahead in rates._ahead.values())


def test_who_is_in_a_hurry_asks_redis_once_in_a_while(own: Redis, settings: StoreSettings) -> None:
    async def scenario(one: Rates, other: Rates) -> None:
        before = calls(own)
        answers = await taken(one, 2000)
        assert all(answer.granted for answer in answers)
        assert calls(own) - before < 2000 / MOST_AHEAD + 10 * 3
        left = [answer.left for answer in answers]  # one fewer each time, but for what comes back
        assert left[0] == 599_999
        assert all(before - after <= 1 for before, after in pairwise(left))

    played(settings, 600_000, scenario)


def test_who_asks_now_and_then_is_counted_exactly(own: Redis, settings: StoreSettings) -> None:
    async def scenario(one: Rates, other: Rates) -> None:
        await one.take("another")  # Redis learns the script
        for rates in (one, other, one):
            before = calls(own)
            allowance = await rates.take("acme")
            assert (allowance.granted, calls(own) - before) == (True, 1)
            assert allowance.left == 5999  # what was taken a second ago has come back
            await asyncio.sleep(AHEAD_S + 0.05)

    played(settings, 6000, scenario)


def test_a_low_limit_is_asked_for_every_time(own: Redis, settings: StoreSettings) -> None:
    async def scenario(one: Rates, other: Rates) -> None:
        answers = await taken(one, 6) + await taken(other, 6)
        assert [answer.granted for answer in answers] == [True] * 10 + [False] * 2
        assert [answer.left for answer in answers[:10]] == list(range(9, -1, -1))

    played(settings, 10, scenario)
