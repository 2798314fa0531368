"""Models and idempotency keys: equal bytes, one record; equal requests, one answer."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
import redis

from fewbit.contract.problems import JobProblem
from store.blobs.blob_store import BlobInfo, Blobs
from store.clients import connect_async
from store.fleet import Announcer, Fleet
from store.idempotency import Idempotency, InProgress, Reused, Stored
from store.models import InspectedModels, Models
from store.queue import Queue
from store.settings import StoreSettings
from workers.engine.task import Inspection

T = TypeVar("T")


def told(settings: StoreSettings, story: Callable[[object], Awaitable[T]]) -> T:
    async def run() -> T:
        async with connect_async(settings) as client:
            return await story(client)

    return asyncio.run(run())


def upload(settings: StoreSettings, blobs: Blobs, sha256: str = "ab" * 32):
    return told(settings, lambda client: Models(client, blobs).create_or_get(BlobInfo(sha256, 10), "name"))


def test_equal_bytes_are_one_model(sync: redis.Redis, settings: StoreSettings, blobs: Blobs) -> None:
    first, created = upload(settings, blobs)
    again, created_again = upload(settings, blobs)
    assert (created, created_again) == (True, False)
    assert first.id == again.id


def test_a_verdict_is_given_once(inspected: InspectedModels, settings: StoreSettings, blobs: Blobs) -> None:
    record, _ = upload(settings, blobs)
    blob = inspected.inspecting(record.id)
    assert blob is not None
    assert blob.sha256 == record.sha256
    assert inspected.ready(record.id, Inspection(format="pt2", inputs=(), layers=()))
    assert not inspected.reject(record.id, JobProblem.of("invalid-model", "too late"))
    assert inspected.inspecting(record.id) is None
    model = told(settings, lambda client: Models(client, blobs).get(record.id))
    assert (model.model.status, model.model.format) == ("ready", "pt2")


def test_an_upload_that_nobody_inspects_is_overdue_once_a_while(
    inspected: InspectedModels, settings: StoreSettings, blobs: Blobs
) -> None:
    record, _ = upload(settings, blobs)
    assert inspected.overdue(time.time()) == []
    later = time.time() + settings.inspect_s + 1
    assert inspected.overdue(later) == [record.id]
    assert inspected.overdue(later) == []


def test_uploads_that_wait_for_their_turn_get_no_second_message(
    sync: redis.Redis, inspected: InspectedModels, settings: StoreSettings, blobs: Blobs
) -> None:
    queue = Queue(settings)
    records = [upload(settings, blobs, f"{number:064}")[0] for number in range(3)]
    for record in records:
        queue.deliver_inspection(record.id)
    later = time.time() + settings.inspect_s + 1
    assert inspected.overdue(later) == []
    sync.lpop("inspect")
    assert set(inspected.overdue(later)) == {record.id for record in records}


def test_an_upload_that_kills_its_workers_is_rejected_in_the_end(
    inspected: InspectedModels, settings: StoreSettings, blobs: Blobs
) -> None:
    record, _ = upload(settings, blobs)
    later = time.time()
    for _ in range(settings.max_attempts):
        assert inspected.inspecting(record.id) is not None
        later += settings.inspect_s + 1
    assert inspected.overdue(later) == []
    model = told(settings, lambda client: Models(client, blobs).get(record.id)).model
    assert (model.status, model.error.slug) == ("rejected", "worker-lost")


@pytest.mark.parametrize(("slug", "again"), [("out-of-memory", True), ("unsafe-model", False)])
def test_a_rejected_upload_is_inspected_again_only_if_the_reason_may_have_passed(
    inspected: InspectedModels, settings: StoreSettings, blobs: Blobs, slug: str, again: bool
) -> None:
    record, _ = upload(settings, blobs)
    inspected.reject(record.id, JobProblem.of(slug, "no"))
    second, due = upload(settings, blobs)
    assert (second.id, due) == (record.id, again)
    assert second.status == ("inspecting" if again else "rejected")


def test_the_same_request_gets_the_same_answer(sync: redis.Redis, settings: StoreSettings) -> None:
    async def story(client) -> Stored | None:
        keys = Idempotency(client)
        assert await keys.begin("user", "key", "POST /jobs abc") is None
        with pytest.raises(InProgress):
            await keys.begin("user", "key", "POST /jobs abc")
        with pytest.raises(Reused):
            await keys.begin("user", "key", "POST /jobs other")
        await keys.finish("user", "key", "POST /jobs abc", 202, {"location": "/jobs/1"}, b"{}")
        return await keys.begin("user", "key", "POST /jobs abc")

    assert told(settings, story) == Stored(202, {"location": "/jobs/1"}, b"{}")


def test_an_error_of_ours_is_never_kept(sync: redis.Redis, settings: StoreSettings) -> None:
    async def story(client) -> Stored | None:
        keys = Idempotency(client)
        await keys.begin("user", "key", "request")
        await keys.finish("user", "key", "request", 503, {}, b"")
        return await keys.begin("user", "key", "request")

    assert told(settings, story) is None


def test_a_worker_that_stops_announcing_itself_is_forgotten(sync: redis.Redis, settings: StoreSettings) -> None:
    Announcer(sync, ttl_s=0.2).announce("w1", {"queues": ["small"]})
    assert told(settings, lambda client: Fleet(client).workers()) == [{"name": "w1", "queues": ["small"]}]
    time.sleep(0.3)
    assert told(settings, lambda client: Fleet(client).workers()) == []
