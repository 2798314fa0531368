"""Redis goes away and comes back: what was written is there, and a worker in the middle of a job does not notice."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from fewbit import JobSpec
from store.blobs.blob_store import BlobInfo, Blobs
from store.clients import connect, connect_async
from store.embedded import EmbeddedRedis
from store.ids import first_id, new_id
from store.jobs.job_store import Jobs
from store.jobs.leases import Leases
from store.models import Models
from store.queue import Queue
from store.records import JobRecord, NewJob
from store.settings import StoreSettings


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path / "redis") as running:
        yield running


@pytest.fixture
def here(fragile: EmbeddedRedis, tmp_path: Path) -> StoreSettings:
    return StoreSettings(redis_url=fragile.url, blobs_url=str(tmp_path / "blobs"), lease_s=20, large_model_bytes=100)


async def _new_job(settings: StoreSettings) -> str:
    blobs = Blobs.of(settings)
    async with connect_async(settings) as client:
        model, _ = await Models(client, blobs).create_or_get(BlobInfo("ab" * 32, 10), None)
        return await Jobs(client, blobs).create(NewJob(JobSpec(model=model.id), model.blob))


async def _job(settings: StoreSettings, job_id: str) -> JobRecord:
    async with connect_async(settings) as client:
        record = await Jobs(client, Blobs.of(settings)).get(job_id)
    assert record is not None
    return record


def test_a_redis_killed_in_the_middle_of_a_job_is_waited_for(fragile: EmbeddedRedis, here: StoreSettings) -> None:
    job_id = asyncio.run(_new_job(here))
    with connect(here) as client:
        leases = Leases(client, here)
        claim = leases.claim(job_id, "worker")
        assert claim is not None
        fragile.kill()
        back = threading.Timer(1.0, fragile.start)
        back.start()
        leases.progress(claim, "load", 0.5)
        assert leases.renew(claim) == "running"
        back.join()
        leases.succeed(claim, b"{}", [])
    record = asyncio.run(_job(here, job_id))
    assert (record.status, record.attempts) == ("succeeded", 1)


def test_a_redis_that_stays_away_is_given_up_in_time(fragile: EmbeddedRedis, here: StoreSettings) -> None:
    job_id = asyncio.run(_new_job(here))
    short = here.model_copy(update={"lease_s": 1.0})
    with connect(here) as client:
        leases = Leases(client, short)
        claim = leases.claim(job_id, "worker")
        assert claim is not None
        fragile.kill()
        began = time.monotonic()
        with pytest.raises(redis.ConnectionError):
            leases.renew(claim)
        assert time.monotonic() - began < 3
    fragile.start()


def test_a_folder_too_deep_for_a_socket_works_too(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / ("deep" * 30)) as server:
        assert len(str(server.socket)) < 100
        with connect(StoreSettings(redis_url=server.url)) as client:
            client.set("key", "value")
            server.stop()
            server.start()
            assert client.get("key") == b"value"


def test_a_message_holds_an_id_and_goes_to_the_queue_of_its_size(fragile: EmbeddedRedis, here: StoreSettings) -> None:
    queue = Queue(here)
    queue.deliver_job("job_small", 99)
    queue.deliver_job("job_large", 100)
    queue.deliver_inspection("mdl_1")
    with connect(here) as client:
        sent = {name: json.loads(client.lrange(name, 0, -1)[0])["headers"] for name in ("small", "large", "inspect")}
    assert {name: (message["task"], message["argsrepr"]) for name, message in sent.items()} == {
        "small": ("fewbit.run_job", "['job_small']"),
        "large": ("fewbit.run_job", "['job_large']"),
        "inspect": ("fewbit.inspect_model", "['mdl_1']"),
    }


def test_sending_after_redis_was_restarted_works_and_while_it_is_away_fails_soon(
    fragile: EmbeddedRedis, here: StoreSettings
) -> None:
    queue = Queue(here)
    queue.deliver_job("job_1", 1)
    fragile.kill()
    began = time.monotonic()
    with pytest.raises(Exception, match=r"(?i)connect|file"):
        queue.deliver_job("job_2", 1)
    assert time.monotonic() - began < 5
    fragile.start()
    queue.deliver_job("job_3", 1)


def test_ids_sort_by_time_and_are_never_equal() -> None:
    made = [new_id("job") for _ in range(1000)]
    assert len(set(made)) == 1000
    early, late = first_id("job", 1_000_000_000), first_id("job", 2_000_000_000)
    assert early < made[0] < late
    assert {len(job_id) for job_id in (*made, early, late)} == {26}
