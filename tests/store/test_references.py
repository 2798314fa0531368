"""Bytes that are deleted while equal ones arrive."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest
import redis
from redis.asyncio import Redis

from store.blobs.blob_store import BlobInfo, Blobs
from store.blobs.references import References, drop_references, holding
from store.blobs.stored_bytes import stored_bytes
from store.clients import connect_async
from store.models import Models
from store.records import DELETING
from store.settings import StoreSettings
from store.tenancy.tenants import Tenant

CONTENT = b"the same bytes" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Slow(Blobs):
    """Deletes when told to."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.began, self.go_on = asyncio.Event(), asyncio.Event()

    async def delete(self, sha256: str) -> None:
        self.began.set()
        await self.go_on.wait()
        await super().delete(sha256)


async def once() -> AsyncIterator[bytes]:
    yield CONTENT


async def upload(client: Redis, blobs: Blobs) -> str:
    """As the gateway does it."""
    async with holding(client, blobs, Tenant(), "upload:1") as hold:
        info = await blobs.put_stream(once(), len(CONTENT), hold=hold)
        return (await Models(client, blobs).create_or_get(info, None))[0].id


@pytest.mark.usefixtures("sync")
def test_equal_bytes_that_arrive_while_they_are_being_deleted_are_kept(settings: StoreSettings) -> None:
    async def story() -> tuple[bool, int]:
        blobs = Slow(settings.blobs_url)
        async with connect_async(settings) as client:
            first = await upload(client, blobs)
            deleting = asyncio.create_task(Models(client, blobs).delete(first))
            await blobs.began.wait()
            again = asyncio.create_task(upload(client, blobs))
            await asyncio.sleep(0.2)
            blobs.go_on.set()
            assert await deleting == "deleted"
            assert await again != first
            return await blobs.exists(SHA256), await stored_bytes(client, Tenant())

    assert asyncio.run(story()) == (True, len(CONTENT))


@pytest.mark.usefixtures("sync")
def test_bytes_are_held_before_they_are_in_place(settings: StoreSettings, blobs: Blobs) -> None:
    async def story() -> BlobInfo:
        async with connect_async(settings) as client, holding(client, blobs, Tenant(), "upload:1") as hold:

            async def held(info: BlobInfo) -> None:
                await hold(info)
                assert not await blobs.exists(info.sha256)
                await drop_references(client, blobs, Tenant(), "another upload", [info.sha256])

            info = await blobs.put_stream(once(), len(CONTENT), hold=held)
            assert await blobs.exists(info.sha256)
        return info

    assert not asyncio.run(blobs.exists(asyncio.run(story()).sha256))


def test_an_upload_that_ends_before_it_is_in_place_leaves_nothing(blobs: Blobs) -> None:
    async def refused(_: BlobInfo) -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        asyncio.run(blobs.put_stream(once(), len(CONTENT), hold=refused))
    assert blobs.folder is not None
    assert [path for path in blobs.folder.rglob("*") if path.is_file()] == []


def test_what_a_process_died_over_deleting_is_deleted_by_the_next_sweep(
    sync: redis.Redis, settings: StoreSettings, blobs: Blobs
) -> None:
    async def dies() -> None:
        async with connect_async(settings) as client:
            slow = Slow(settings.blobs_url)
            model = await upload(client, slow)
            deleting = asyncio.create_task(Models(client, slow).delete(model))
            await slow.began.wait()
            deleting.cancel()

    asyncio.run(dies())
    references = References(sync, blobs, 1)
    references.sweep()
    assert asyncio.run(blobs.exists(SHA256))  # it may still be at it
    sync.zadd(DELETING, {f"default:{SHA256}": 1})
    references.sweep()
    assert not asyncio.run(blobs.exists(SHA256))
    assert sync.zcard(DELETING) == 0
