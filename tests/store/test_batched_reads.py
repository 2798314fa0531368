"""Reads that come together go to Redis together, and none of them notices."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from redis.exceptions import RedisError

from store.clients import connect_async
from store.embedded import EmbeddedRedis
from store.jobs.batched_reads import BatchedReads
from store.settings import StoreSettings
from store.tenancy.tenants import record_script

KEYS = [f"fewbit:thing:{number}" for number in range(50)]


def played(server: EmbeddedRedis, scenario: Callable[[BatchedReads], Awaitable[None]]) -> None:
    """On fifty things, every other of them of `acme`."""

    async def whole() -> None:
        client = connect_async(StoreSettings(redis_url=server.url))
        try:
            for number, key in enumerate(KEYS):
                fields = {"tenant": "umbrella" if number % 2 else "acme", "id": key}
                await client.hset(key, mapping=fields)  # type: ignore[arg-type]
            await scenario(BatchedReads(client, record_script(client, "id")))
        finally:
            await client.aclose()

    asyncio.run(whole())


def expected(key: str) -> list[bytes] | None:
    return None if KEYS.index(key) % 2 else [key.encode()]


async def read(reads: BatchedReads) -> None:
    found = await asyncio.gather(*(reads(key, tenant="acme") for key in KEYS))
    assert found == [expected(key) for key in KEYS]


def test_each_gets_its_own_and_nothing_of_another(redis_server: EmbeddedRedis) -> None:
    async def scenario(reads: BatchedReads) -> None:
        for _ in range(5):
            await read(reads)
            assert await reads(KEYS[0], tenant="acme") == expected(KEYS[0])
        assert await reads("fewbit:thing:none", tenant="acme") is None

    played(redis_server, scenario)


def test_fifty_at_a_time_are_two_calls(tmp_path: Path) -> None:
    async def scenario(reads: BatchedReads) -> None:
        await read(reads)
        before = await packets(reads)
        await read(reads)
        assert await packets(reads) - before < 10

    async def packets(reads: BatchedReads) -> int:
        return int((await reads._redis.info("stats"))["total_reads_processed"])

    with EmbeddedRedis(tmp_path / "redis") as server:
        played(server, scenario)


def test_a_redis_that_forgot_the_script_is_told_it_again(redis_server: EmbeddedRedis) -> None:
    async def scenario(reads: BatchedReads) -> None:
        await read(reads)
        first = asyncio.ensure_future(reads(KEYS[0], tenant="acme"))
        await asyncio.sleep(0)
        others = [asyncio.ensure_future(reads(key, tenant="acme")) for key in KEYS[1:]]
        await first
        await reads._redis.script_flush()
        assert await asyncio.gather(*others) == [expected(key) for key in KEYS[1:]]
        await reads._redis.script_flush()
        await read(reads)

    played(redis_server, scenario)


def test_one_that_leaves_takes_nobody_along(redis_server: EmbeddedRedis) -> None:
    async def scenario(reads: BatchedReads) -> None:
        for leaving in (0, 1, 7):
            tasks = [asyncio.ensure_future(reads(key, tenant="acme")) for key in KEYS]
            await asyncio.sleep(0)
            tasks[leaving].cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert [reply for number, reply in enumerate(found) if number != leaving] == [
                expected(key) for number, key in enumerate(KEYS) if number != leaving
            ]
        await read(reads)

    played(redis_server, scenario)


def test_an_outage_is_everyones_and_ends(tmp_path: Path) -> None:
    async def scenario(reads: BatchedReads) -> None:
        await read(reads)
        server.stop()
        found = await asyncio.gather(*(reads(key, tenant="acme") for key in KEYS), return_exceptions=True)
        assert all(isinstance(error, RedisError) for error in found)
        server.start()
        with suppress(RedisError):  # the first may still meet the old connection
            await reads(KEYS[0], tenant="acme")
        assert await reads("fewbit:thing:none", tenant="acme") is None

    server = EmbeddedRedis(tmp_path / "redis")
    with server:
        played(server, scenario)
