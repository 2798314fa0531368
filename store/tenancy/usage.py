"""How much of everything a tenant has, for metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast, get_args

from redis.asyncio import Redis

from fewbit.contract.resources import JobStatus
from store.tenancy.api_keys import KEYS, KeyRecord, record_key
from store.tenancy.tenants import DEFAULT_TENANT, Tenant


@dataclass(frozen=True)
class Usage:
    jobs: dict[str, int]
    models: int
    datasets: int
    bytes: int


async def usage(redis: Redis, tenant: Tenant) -> Usage:
    """One round trip."""
    statuses = get_args(JobStatus)
    async with redis.pipeline(transaction=False) as pipe:
        for status in statuses:
            pipe.zcard(tenant.jobs_by_status(status))
        pipe.zcard(tenant.models)
        pipe.zcard(tenant.datasets)
        pipe.hget(tenant.stored, "total")
        *jobs, models, datasets, stored = await pipe.execute()
    return Usage(dict(zip(statuses, jobs, strict=True)), models, datasets, int(stored or 0))


async def tenants(redis: Redis) -> list[str]:
    """Every tenant that has, or had, a key."""
    identifiers = sorted(key_id.decode() for key_id in await cast(Any, redis.smembers(KEYS)))
    async with redis.pipeline(transaction=False) as pipe:
        for key_id in identifiers:
            pipe.hmget(record_key(key_id), KeyRecord.FIELDS)
        records = [KeyRecord.of(fields) for fields in await pipe.execute()]
    return sorted({DEFAULT_TENANT, *(key.tenant for key in records if key is not None)})
