"""What the endpoints work with: the store's parts, made once when the gateway starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

from redis.asyncio import Redis
from starlette.requests import HTTPConnection

from service.settings import ServiceSettings
from service.shutdown import Stopping
from store.blobs.blobs import Blobs
from store.clients import connect_async
from store.datasets import Datasets
from store.fleet import Fleet
from store.idempotency import Idempotency
from store.jobs.jobs import Jobs
from store.models import Models
from store.queue import Queue
from store.settings import StoreSettings
from store.tenancy.api_keys import KnownKeys
from store.tenancy.rates import Rates
from store.tenancy.tenants import DEFAULT_TENANT
from store.webhooks import Webhooks

MANY_WATCHERS = 4096


@dataclass(frozen=True)
class Parts:
    """``watched_jobs`` is ``jobs`` on connections of its own: each watcher holds one while it waits for events, and
    must not take those of requests that are answered at once. Everything that knows tenants is of ``tenant``."""

    settings: ServiceSettings
    store: StoreSettings
    tenant: str
    redis: Redis
    watching: Redis
    blobs: Blobs
    models: Models
    datasets: Datasets
    webhooks: Webhooks
    jobs: Jobs
    watched_jobs: Jobs
    fleet: Fleet
    idempotency: Idempotency
    queue: Queue
    stopping: Stopping
    keys: KnownKeys
    rates: Rates

    @classmethod
    def open(cls, settings: ServiceSettings, store: StoreSettings) -> Self:
        redis, watching = connect_async(store), connect_async(store, MANY_WATCHERS)
        blobs = Blobs.of(store)
        return cls(
            settings=settings,
            store=store,
            tenant=DEFAULT_TENANT,
            redis=redis,
            watching=watching,
            blobs=blobs,
            models=Models(redis, blobs),
            datasets=Datasets(redis, blobs),
            webhooks=Webhooks(redis),
            jobs=Jobs(redis, blobs),
            watched_jobs=Jobs(watching, blobs),
            fleet=Fleet(redis),
            idempotency=Idempotency(redis),
            queue=Queue(store),
            stopping=Stopping(),
            keys=KnownKeys(redis),
            rates=Rates(redis, settings.requests_per_minute),
        )

    def of(self, tenant: str) -> Parts:
        """The same for one tenant: none of its stores finds anything of another."""
        blobs, most = self.blobs.within(tenant), self.settings.max_queued_jobs
        return replace(
            self,
            tenant=tenant,
            blobs=blobs,
            models=Models(self.redis, blobs, tenant),
            datasets=Datasets(self.redis, blobs, tenant),
            webhooks=Webhooks(self.redis, tenant),
            jobs=Jobs(self.redis, blobs, tenant, most),
            watched_jobs=Jobs(self.watching, blobs, tenant),
        )

    async def close(self) -> None:
        await self.redis.aclose()
        await self.watching.aclose()


def parts_of(request: HTTPConnection) -> Parts:
    """The caller's: nothing of another tenant can be reached through them."""
    parts: Parts = request.scope["app"].state.parts_of_tenant(request.scope["caller"].tenant)
    return parts


def whole_service(request: HTTPConnection) -> Parts:
    """What is nobody's: for health."""
    parts: Parts = request.scope["app"].state.parts
    return parts


def by_tenant(parts: Parts) -> Callable[[str], Parts]:
    """``parts.of``, made once for each of the tenants that come often."""
    return lru_cache(maxsize=1000)(parts.of)
