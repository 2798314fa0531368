"""API keys: ``fbk_<id>_<secret>``. The id finds the record; of the key itself only a SHA-256 is kept. The secret has
256 random bits, which no dictionary holds: a slow hash would protect nothing and cost every request.

A key belongs to a tenant and has a scope. ``rotate`` makes a successor; the old key stays valid for a while, so that
both work until the new one is in place everywhere. Times are seconds since the epoch.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, cast, get_args

import redis
import redis.asyncio

from store.records import PREFIX, now_iso
from store.tenancy.audit import stream_entry
from store.tenancy.tenants import TENANT

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""A scope includes those before it."""

KEYS = f"{PREFIX}keys"
OPERATOR = "operator"
"""Who made, rotated or revoked a key, in the audit log: whoever may talk to Redis."""
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID, _SECRET = 12, 43  # 71 and 256 bits
_KEY = re.compile(rb"fbk_([0-9A-Za-z]{12})_[0-9A-Za-z]{43}\Z")


@dataclass(frozen=True)
class KeyRecord:
    """A key as stored. ``family`` is the id of the first key of a line of successors; 0 is "never"."""

    id: str
    digest: str
    tenant: str
    scope: Scope
    name: str
    family: str
    created_at: float
    expires_at: float
    revoked_at: float

    FIELDS = ("id", "digest", "tenant", "scope", "name", "family", "created_at", "expires_at", "revoked_at")

    @classmethod
    def of(cls, fields: list[bytes | None]) -> KeyRecord | None:
        if fields[0] is None:
            return None
        words = [(value or b"").decode() for value in fields]
        identifier, digest, tenant, scope, name, family = words[:6]
        times = [float(value or 0) for value in words[6:]]
        return cls(identifier, digest, tenant, cast(Scope, scope), name, family, *times)

    def opens(self, key: bytes, now: float) -> bool:
        """Whether ``key`` is this one, and still valid."""
        same = hmac.compare_digest(sha256(key).hexdigest(), self.digest)
        return same and self.state(now) == "active"

    def state(self, now: float) -> Literal["active", "expired", "revoked"]:
        if self.revoked_at:
            return "revoked"
        return "expired" if self.expires_at and self.expires_at <= now else "active"


def key_id(key: bytes) -> str | None:
    """The id a key carries; ``None`` for what was not made here."""
    found = _KEY.match(key)
    return found[1].decode() if found else None


class KnownKeys:
    """The gateway's side."""

    def __init__(self, redis: redis.asyncio.Redis) -> None:
        self._redis = redis

    async def find(self, identifier: str) -> KeyRecord | None:
        fields = await self._redis.hmget(record_key(identifier), KeyRecord.FIELDS)
        return KeyRecord.of(cast("list[bytes | None]", fields))

    async def any(self) -> bool:
        return bool(await self._redis.exists(KEYS))


class UnknownKey(Exception):
    """There is no key with this id, or it is no longer valid."""


class KeyRing:
    """The operator's side."""

    def __init__(self, redis: redis.Redis) -> None:
        self._redis = redis

    def make(self, tenant: str, scope: Scope, name: str = "", days: float | None = None, family: str = "") -> str:
        """A new key: the only time that all of it is seen. It ends after ``days``, or never. Raises ``ValueError`` for
        what cannot name a tenant, and for a key that would have ended at once."""
        if not TENANT.match(tenant):
            raise ValueError(f"A tenant is named with 1 to 39 of a-z, 0-9 and -, not {tenant!r}.")
        if days is not None and not days > 0:
            raise ValueError(f"A key lasts for more than 0 days, not {days:g}; without a number of days it never ends.")
        identifier, secret = _chance(_ID), _chance(_SECRET)
        key, now = f"fbk_{identifier}_{secret}", time.time()
        expires = now + days * 86_400 if days is not None else 0.0
        digest = sha256(key.encode()).hexdigest()
        record = KeyRecord(identifier, digest, tenant, scope, name, family or identifier, now, expires, 0.0)
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(record_key(identifier), mapping={field: getattr(record, field) for field in KeyRecord.FIELDS})
            pipe.sadd(KEYS, identifier)
            _tell(pipe, "make_key", record)
            pipe.execute()
        return key

    def list(self, tenant: str | None = None) -> Iterator[KeyRecord]:
        """Every key, the oldest first."""
        identifiers = [key_id.decode() for key_id in cast("set[bytes]", self._redis.smembers(KEYS))]
        records = [record for key_id in identifiers if (record := self._find(key_id)) is not None]
        wanted = [key for key in records if tenant in (None, key.tenant)]
        yield from sorted(wanted, key=lambda key: key.created_at)

    def revoke(self, identifier: str) -> KeyRecord:
        """End a key now. Raises ``UnknownKey``."""
        record = self._known(identifier)
        self._change("revoke_key", record, revoked_at=time.time())
        return record

    def rotate(self, identifier: str, grace_hours: float = 24, days: float | None = None) -> str:
        """A successor of equal tenant, scope and name. The old key ends with its grace, or earlier if it would have
        anyway. Raises ``UnknownKey``."""
        old, now = self._known(identifier), time.time()
        if old.state(now) != "active":
            raise UnknownKey(f"{identifier} is {old.state(now)}.")
        key = self.make(old.tenant, old.scope, old.name, days, old.family)
        ends = now + grace_hours * 3600
        self._change("rotate_key", old, expires_at=min(ends, old.expires_at or ends))
        return key

    def _change(self, action: str, record: KeyRecord, **fields: float) -> None:
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(record_key(record.id), mapping={name: str(value) for name, value in fields.items()})
            _tell(pipe, action, record)
            pipe.execute()

    def _known(self, identifier: str) -> KeyRecord:
        record = self._find(identifier)
        if record is None:
            raise UnknownKey(f"There is no key {identifier}.")
        return record

    def _find(self, identifier: str) -> KeyRecord | None:
        return KeyRecord.of(cast("list[bytes | None]", self._redis.hmget(record_key(identifier), KeyRecord.FIELDS)))


def _tell(pipe: redis.client.Pipeline, action: str, record: KeyRecord) -> None:
    """In the audit log of the key's tenant, in the transaction that does it."""
    entry = {"at": now_iso(), "key": OPERATOR, "action": action, "object": record.id, "outcome": "200"}
    pipe.xadd(**stream_entry(record.tenant, entry))


def record_key(identifier: str) -> str:
    return f"{PREFIX}key:{identifier}"


def _chance(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
