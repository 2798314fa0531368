"""Jobs, as the gateway sees them: make, read, list, follow, cancel, delete."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from fewbit.contract.resources import FINAL
from store.blobs.blob_store import Blobs
from store.blobs.references import drop_references
from store.ids import first_id, new_id
from store.jobs.batched_reads import BatchedReads
from store.jobs.transition import TRANSITION, Move, Outcome
from store.records import JobRecord, NewJob, dataset_key, events_key, job_key, model_key
from store.scripts.script import Script
from store.tenancy.tenants import DEFAULT_TENANT, Tenant, record_script
from store.uploads import newest_ids

_WALK = 200  # records read per round trip while a page is filled
_FROM_THE_START = "0"


class Missing(Exception):
    """A new job names an upload that is not there (any more): its id is ``upload_id``."""

    def __init__(self, upload_id: str) -> None:
        super().__init__(upload_id)
        self.upload_id = upload_id


class QueueFull(Exception):
    """As many jobs of the tenant wait as may: ``limit``."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


@dataclass(frozen=True)
class EventRecord:
    """One entry of a job's stream; ``data`` is JSON, ``id`` what ``Last-Event-ID`` takes."""

    id: str
    event: str
    data: bytes
    at: str

    def json(self) -> bytes:
        """``fewbit.contract.resources.Event``."""
        head = f'{{"id":"{self.id}","event":"{self.event}","at":"{self.at}","data":'
        return head.encode() + self.data + b"}"


class Jobs:
    """The gateway's side, one tenant's. ``most_queued``: how many of its jobs may wait at a time."""

    def __init__(
        self, redis: Redis, blobs: Blobs, tenant: str = DEFAULT_TENANT, most_queued: int | None = None
    ) -> None:
        self._redis = redis
        self._blobs = blobs
        self._tenant = Tenant(tenant)
        self._most_queued = most_queued
        self._transition = Script(redis, TRANSITION)
        self._record = BatchedReads(redis, record_script(redis, *JobRecord.FIELDS))
        self._report = record_script(redis, "report")

    async def create(self, new: NewJob) -> str:
        """The id of a new queued job; its message is the caller's to send. Raises ``Missing`` and ``QueueFull``."""
        job_id = new_id("job")
        needs = [model_key(new.model.id), *(dataset_key(ref.id) for ref in new.datasets)]
        move = Move(job_id, {"none": "queued"}, must_exist=needs, fields=new.fields(), most=self._most_queued)
        outcome = await self._move(move)
        if outcome.status == "full":
            raise QueueFull(self._most_queued or 0)
        if not outcome.moved:
            raise Missing(outcome.status.rsplit(":", 1)[-1])
        return job_id

    async def get(self, job_id: str) -> JobRecord | None:
        """One round trip."""
        fields = await self._record(job_key(job_id), tenant=self._tenant.name)
        return JobRecord.of(fields) if fields else None

    async def page(
        self,
        limit: int,
        after: str | None = None,
        status: str | None = None,
        model: str | None = None,
        label: tuple[str, str] | None = None,
        created_after: float | None = None,
    ) -> list[JobRecord]:
        """Newest first, at most ``limit``, those older than the job ``after``; every filter given must hold.
        ``created_after`` is in seconds since the epoch."""
        filters = _Filters(self._tenant, status, model, label)
        index = await self._smallest(filters.indexes())
        lowest = "-" if created_after is None else f"[{first_id('job', created_after)}"
        found: list[JobRecord] = []
        while len(found) < limit:
            ids = await newest_ids(self._redis, index, _WALK, after, lowest)
            records = await self._read(ids)
            found += [record for record in records if record is not None and filters.take(record)]
            if len(ids) < _WALK:
                break
            after = ids[-1]
        return found[:limit]

    async def request_cancel(self, job_id: str) -> Outcome:
        """A queued job is canceled at once, a running one asked to stop. Not moved: it has ended, or is ``none``."""
        moves = {"queued": "canceled", "running": "canceling", "canceling": "canceling"}
        return await self._move(Move(job_id, moves, tenant=self._tenant.name))

    async def delete(self, job_id: str) -> Outcome:
        """Forget a job that has ended: record, events, report, artifacts. Not moved: it has not, or is ``none``."""
        outcome = await self._move(Move(job_id, dict.fromkeys(sorted(FINAL), "none"), tenant=self._tenant.name))
        if outcome.moved:
            hashes = {artifact["sha256"] for artifact in json.loads(outcome.artifacts_json)}
            await drop_references(self._redis, self._blobs, self._tenant, job_id, sorted(hashes))
        return outcome

    async def report(self, job_id: str) -> bytes | None:
        """The report's JSON, once the job has succeeded."""
        fields = await self._report([job_key(job_id)], tenant=self._tenant.name)
        packed = fields[0] if fields else None
        return None if packed is None else await asyncio.to_thread(zlib.decompress, packed)

    async def events(
        self, job_id: str, after: str = _FROM_THE_START, count: int = 500, block_ms: int | None = None
    ) -> list[EventRecord]:
        """The next ``count`` events after the id ``after``; waits ``block_ms`` for one if there are none yet. Of a job
        that ``get`` has found: a stream does not know whose it is."""
        reply: Any = await self._redis.xread({events_key(job_id): after}, count=count, block=block_ms)
        if not reply:
            return []
        entries = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
        if entries and isinstance(entries[0], list):  # RESP3 puts one more list around a stream's entries
            entries = entries[0]
        return [_event(entry_id, fields) for entry_id, fields in entries]

    async def wait_final(self, job_id: str, seconds: float) -> JobRecord | None:
        """The job once it has ended, or as it is after ``seconds``; ``None``: no such job. Sleeps on its events."""
        deadline = asyncio.get_running_loop().time() + seconds
        if await self.get(job_id) is None:  # not there, or not ours: nothing of it is looked at
            return None
        seen = await self._last_event(job_id)
        while True:
            record = await self.get(job_id)
            left_ms = int((deadline - asyncio.get_running_loop().time()) * 1000)
            if record is None or record.final or left_ms <= 0:
                return record
            news = await self.events(job_id, seen, block_ms=left_ms)
            seen = news[-1].id if news else seen

    async def _last_event(self, job_id: str) -> str:
        newest = await cast(Awaitable[list[tuple[bytes, Any]]], self._redis.xrevrange(events_key(job_id), count=1))
        return newest[0][0].decode() if newest else _FROM_THE_START

    async def _move(self, move: Move) -> Outcome:
        return Outcome.of(await self._transition(move.keys, move.report, **move.arguments))

    async def _smallest(self, indexes: list[str]) -> str:
        """The index with the fewest ids: the others are checked record by record."""
        if len(indexes) == 1:
            return indexes[0]
        async with self._redis.pipeline(transaction=False) as pipe:
            for index in indexes:
                pipe.zcard(index)
            sizes = await pipe.execute()
        return min(zip(sizes, indexes, strict=True))[1]

    async def _read(self, ids: list[str]) -> list[JobRecord | None]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hmget(job_key(job_id), JobRecord.FIELDS)
            return [JobRecord.of(fields) for fields in await pipe.execute()]


@dataclass(frozen=True)
class _Filters:
    tenant: Tenant
    status: str | None
    model: str | None
    label: tuple[str, str] | None

    def indexes(self) -> list[str]:
        return [
            *([self.tenant.jobs_by_status(self.status)] if self.status else []),
            *([self.tenant.jobs_using(self.model)] if self.model else []),
            *([self.tenant.jobs_by_label(*self.label)] if self.label else []),
        ] or [self.tenant.jobs]

    def take(self, job: JobRecord) -> bool:
        return (
            (self.status is None or job.status == self.status)
            and (self.model is None or job.model_id == self.model)
            and (self.label is None or job.labels.get(self.label[0]) == self.label[1])
        )


def _event(entry_id: bytes, fields: dict[bytes, bytes]) -> EventRecord:
    return EventRecord(entry_id.decode(), fields[b"event"].decode(), fields[b"data"], fields[b"at"].decode())
