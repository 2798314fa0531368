"""Who did what: one stream for each tenant, appended to and never changed, of bounded length.

An entry holds ids, a status and an address; never a key, a query or a body.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from store.tenancy.tenants import Tenant

FIELDS = ("at", "key", "action", "object", "outcome", "request_id", "client", "times")
LONGEST = 100_000


@dataclass(frozen=True)
class AuditEntry:
    """``id`` is the stream's, and sorts by time."""

    id: str
    fields: Mapping[str, str]


def stream_entry(tenant: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """What ``xadd`` takes: of either client, and in a pipeline too."""
    entry = {**dict.fromkeys(FIELDS, ""), "times": "1", **fields}
    return {"name": Tenant(tenant).audit, "fields": entry, "maxlen": LONGEST, "approximate": True}


async def page(redis: Redis, tenant: str, limit: int, before: str | None) -> list[AuditEntry]:
    """Newest first, those older than the entry ``before``."""
    highest = f"({before}" if before else "+"
    found: Any = await redis.xrevrange(Tenant(tenant).audit, highest, "-", count=limit)
    return [_entry(*entry) for entry in found]


def _entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> AuditEntry:
    return AuditEntry(entry_id.decode(), {name.decode(): value.decode() for name, value in fields.items()})
