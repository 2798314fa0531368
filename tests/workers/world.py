"""A worker's surroundings for tests: real Redis, blobs in a folder, records made as the gateway makes them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from redis.asyncio import Redis

from fewbit.contract.spec import JobSpec
from store.blobs.blob_store import Blobs
from store.blobs.references import References
from store.blobs.stored_bytes import stored_bytes
from store.clients import connect, connect_async
from store.embedded import EmbeddedRedis
from store.jobs.job_store import Jobs
from store.jobs.leases import Leases
from store.models import InspectedModels, Models
from store.records import ArtifactRecord, JobRecord, ModelRecord, NewJob, events_key
from store.settings import StoreSettings
from store.tenancy.tenants import Tenant
from workers.inspection import Inspector
from workers.sandbox.fork_server import ForkServer
from workers.settings import WorkerSettings
from workers.supervisor import Supervisor

T = TypeVar("T")


def wait_until(condition: Callable[[], Any], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


class World:
    """One Redis, one store, one supervisor and one inspector on the fork server given."""

    def __init__(self, redis_server: EmbeddedRedis, folder: Path, forks: ForkServer) -> None:
        self.redis_server = redis_server
        self.scratch = folder / "scratch"
        self.scratch.mkdir(parents=True)
        self.store = StoreSettings(redis_url=redis_server.url, blobs_url=str(folder / "blobs"))
        self.blobs = Blobs.of(self.store)
        self.redis = connect(self.store)
        self.leases = Leases(self.redis, self.store)
        self.inspected = InspectedModels(self.redis, self.store)
        self.references = References(self.redis, self.blobs, self.store.lease_s)
        self.stopping = threading.Event()
        self.delivered: list[str] = []
        settings = WorkerSettings(scratch=self.scratch, threads=1, worker="tester")
        self.supervisor = Supervisor(
            self.leases,
            self.blobs,
            self.references,
            forks,
            settings,
            lambda job, _: self.delivered.append(job),
            self.stopping,
        )
        self.inspector = Inspector(
            self.inspected, self.blobs, forks, settings, 20, self.delivered.append, self.stopping
        )

    def close(self) -> None:
        self.redis.close()

    # What the gateway does

    def model(self, content: bytes = b"a model") -> str:
        async def create(redis: Redis) -> str:
            info = await self.blobs.put_stream(_once(content), 1 << 30)
            record, _ = await Models(redis, self.blobs).create_or_get(info, None)
            return record.id

        return self._run(create)

    def job(self, content: bytes = b"a model", time_limit_s: int = 60, **labels: str) -> str:
        async def create(redis: Redis) -> str:
            record = await Models(redis, self.blobs).get(model_id)
            assert record is not None
            spec = JobSpec(model=model_id, labels=labels, time_limit_s=time_limit_s)
            return await Jobs(redis, self.blobs).create(NewJob(spec, record.blob))

        model_id = self.model(content)
        return self._run(create)

    def cancel(self, job_id: str) -> None:
        self._run(lambda redis: Jobs(redis, self.blobs).request_cancel(job_id))

    def delete(self, job_id: str) -> None:
        self._run(lambda redis: Jobs(redis, self.blobs).delete(job_id))

    # What one may look at

    def record(self, job_id: str) -> JobRecord:
        record = self._run(lambda redis: Jobs(redis, self.blobs).get(job_id))
        assert record is not None
        return record

    def status(self, job_id: str) -> str:
        return self.record(job_id).status

    def error(self, job_id: str) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.record(job_id).error_json)
        return error

    def artifacts(self, job_id: str) -> tuple[ArtifactRecord, ...]:
        return self.record(job_id).artifacts

    def report(self, job_id: str) -> bytes:
        return self._run(lambda redis: Jobs(redis, self.blobs).report(job_id)) or b""

    def events(self, job_id: str) -> list[tuple[str, str]]:
        entries: Any = self.redis.xrange(events_key(job_id))
        return [(fields[b"event"].decode(), fields[b"data"].decode()) for _, fields in entries]

    def model_record(self, model_id: str) -> ModelRecord:
        record = self._run(lambda redis: Models(redis, self.blobs).get(model_id))
        assert record is not None
        return record

    def has_blob(self, content: bytes) -> bool:
        return asyncio.run(self.blobs.exists(hashlib.sha256(content).hexdigest()))

    def stored_bytes(self) -> int:
        return self._run(lambda redis: stored_bytes(redis, Tenant()))

    def blob(self, sha256: str) -> bytes:
        target = self.scratch / "fetched"
        self.blobs.fetch(sha256, target)
        content = target.read_bytes()
        target.unlink()
        return content

    # What may happen

    def in_thread(self, job_id: str) -> Callable[[], str]:
        """Run the job in a thread; the answer waits for its end."""
        ended: list[str] = []
        thread = threading.Thread(target=lambda: ended.append(self.supervisor.run(job_id)))
        thread.start()

        def join() -> str:
            thread.join(60)
            assert ended, "the supervisor did not return"
            return ended[0]

        return join

    def take_over(self, job_id: str) -> None:
        """The lease runs out, and another worker claims the job."""
        self.leases.reap(time.time() + 1000)
        assert self.leases.claim(job_id, "another") is not None

    def _run(self, use: Callable[[Redis], Coroutine[Any, Any, T]]) -> T:
        async def main() -> T:
            redis = connect_async(self.store)
            try:
                return await use(redis)
            finally:
                await redis.aclose()

        return asyncio.run(main())


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
