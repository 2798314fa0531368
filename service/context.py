"""What endpoints work with: settings and the stores, opened once when the gateway starts, as one tenant sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

from redis.asyncio import Redis
from starlette.requests import HTTPConnection

from service.settings import ServiceSettings
from service.shutdown import Stopping
from store.blobs.blob_store import Blobs
from store.clients import connect_async
from store.datasets import Datasets
from store.fleet import Fleet
from store.idempotency import Idempotency
from store.jobs.job_store import Jobs
from store.models import Models
from store.queue import Queue
from store.settings import StoreSettings
from store.tenancy.api_keys import KnownKeys
from store.tenancy.rates import Rates
from store.tenancy.tenants import DEFAULT_TENANT
from store.webhooks import Webhooks

MANY_WATCHERS = 4096


@dataclass(frozen=True)
class ServiceContext:
    """``watched_jobs`` is ``jobs`` on separate connections: a watcher blocks one while it waits for events, and must
    not take those of requests that are answered at once. Whatever knows tenants belongs to ``tenant``."""

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

    def for_tenant(self, tenant: str) -> ServiceContext:
        """The same for one tenant: its stores find nothing of another tenant."""
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


def context_of(request: HTTPConnection) -> ServiceContext:
    """The context of the caller's tenant: nothing of another tenant can be reached through it."""
    context: ServiceContext = request.scope["app"].state.context_of_tenant(request.scope["caller"].tenant)
    return context


def service_context(request: HTTPConnection) -> ServiceContext:
    """The context of the whole service, for what asks on nobody's behalf: health checks."""
    context: ServiceContext = request.scope["app"].state.context
    return context


def context_by_tenant(context: ServiceContext) -> Callable[[str], ServiceContext]:
    """``context.for_tenant``, cached for the tenants that come often."""
    return lru_cache(maxsize=1000)(context.for_tenant)
