"""What the endpoints work with: the store's parts, made once when the gateway starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from redis.asyncio import Redis
from starlette.requests import HTTPConnection

from service.settings import ServiceSettings
from service.stopping import Stopping
from store.blobs import Blobs
from store.clients import connect_async
from store.datasets import Datasets
from store.fleet import Fleet
from store.idempotency import Idempotency
from store.jobs import Jobs
from store.models import Models
from store.queue import Queue
from store.settings import StoreSettings

MANY_WATCHERS = 4096


@dataclass(frozen=True)
class Parts:
    """``watched_jobs`` is ``jobs`` on connections of its own: each watcher holds one while it waits for events, and
    must not take those of requests that are answered at once."""

    settings: ServiceSettings
    store: StoreSettings
    redis: Redis
    watching: Redis
    blobs: Blobs
    models: Models
    datasets: Datasets
    jobs: Jobs
    watched_jobs: Jobs
    fleet: Fleet
    idempotency: Idempotency
    queue: Queue
    stopping: Stopping

    @classmethod
    def open(cls, settings: ServiceSettings, store: StoreSettings) -> Self:
        redis, watching = connect_async(store), connect_async(store, MANY_WATCHERS)
        blobs = Blobs.of(store)
        return cls(
            settings=settings,
            store=store,
            redis=redis,
            watching=watching,
            blobs=blobs,
            models=Models(redis, blobs),
            datasets=Datasets(redis, blobs),
            jobs=Jobs(redis, blobs),
            watched_jobs=Jobs(watching, blobs),
            fleet=Fleet(redis),
            idempotency=Idempotency(redis),
            queue=Queue(store),
            stopping=Stopping(),
        )

    async def close(self) -> None:
        await self.redis.aclose()
        await self.watching.aclose()


def parts_of(request: HTTPConnection) -> Parts:
    parts: Parts = request.scope["app"].state.parts
    return parts
