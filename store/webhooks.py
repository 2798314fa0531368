"""Webhooks of a tenant, and their deliveries. A job's delivery is made by ``transition.lua``, in the call that ends it.

A delivery waits in one sorted set, by the time it is due; who takes it moves it ahead by a lease, so that a courier
that dies loses nothing. With a webhook go its deliveries.
"""

from __future__ import annotations

import json
import secrets
import time
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from store.ids import new_id
from store.records import PREFIX, now_iso
from store.tenants import DEFAULT_TENANT, OWNED, Tenant

DUE = f"{PREFIX}deliveries"
LEASE_MS = 60_000
KEPT = 100  # deliveries remembered for each webhook
PAUSES_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""After the first attempt, as Standard Webhooks advises: about three days in all."""

# KEYS 1 due. ARGV 1 lease in ms. Returns the delivery that has been due the longest, leased, or nil
_TAKE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local first = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1)[1]
if first then redis.call('ZADD', KEYS[1], now + ARGV[1], first) end
return first
"""

# KEYS 1 webhook, 2 index, 3 its deliveries, 4 due. ARGV 1 id, 2 tenant, 3 prefix of deliveries
_DELETE = """
if redis.call('HGET', KEYS[1], 'tenant') ~= ARGV[2] then return 0 end
for _, each in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  redis.call('ZREM', KEYS[4], each)
  redis.call('DEL', ARGV[3] .. each)
end
redis.call('DEL', KEYS[1], KEYS[3])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
"""

# KEYS 1 webhook, 2 index. ARGV 1 id, 2 most, 3.. fields. 0 when the tenant has as many as may
_CREATE = """
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[2]) then return 0 end
for i = 3, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('ZADD', KEYS[2], 0, ARGV[1])
return 1
"""


class TooMany(Exception):
    """The tenant has as many webhooks as may."""


@dataclass(frozen=True)
class WebhookRecord:
    id: str
    url: str
    created_at: str
    secret: str
    tenant: str

    FIELDS = ("id", "url", "created_at", "secret", "tenant")


@dataclass(frozen=True)
class DeliveryRecord:
    """``attempts`` is JSON; ``job`` is empty for a test."""

    id: str
    webhook: str
    tenant: str
    type: str
    job: str
    at: str
    status: str
    attempts_json: str

    FIELDS = ("id", "webhook", "tenant", "type", "job", "at", "status", "attempts")

    @property
    def attempts(self) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", json.loads(self.attempts_json))


class Webhooks:
    """The gateway's side, one tenant's."""

    def __init__(self, redis: Redis, tenant: str = DEFAULT_TENANT) -> None:
        self._redis = redis
        self._tenant = Tenant(tenant)
        self._owned = redis.register_script(OWNED)

    async def create(self, url: str, most: int) -> WebhookRecord:
        """Raises ``TooMany``."""
        secret = "whsec_" + b64encode(secrets.token_bytes(32)).decode()
        record = WebhookRecord(new_id("whk"), url, now_iso(), secret, self._tenant.name)
        fields = [part for name in WebhookRecord.FIELDS for part in (name, getattr(record, name))]
        keys = [webhook_key(record.id), self._tenant.webhooks]
        if not await self._redis.register_script(_CREATE)(keys=keys, args=[record.id, most, *fields]):
            raise TooMany
        return record

    async def get(self, webhook_id: str) -> WebhookRecord | None:
        fields = await self._owned(keys=[webhook_key(webhook_id)], args=[self._tenant.name, *WebhookRecord.FIELDS])
        return WebhookRecord(*_words(fields)) if fields else None

    async def every(self) -> list[WebhookRecord]:
        """Newest first."""
        ids: Any = await self._redis.zrange(self._tenant.webhooks, 0, -1, desc=True)
        found = [await self.get(each.decode()) for each in ids]
        return [each for each in found if each is not None]

    async def delete(self, webhook_id: str) -> bool:
        keys = [webhook_key(webhook_id), self._tenant.webhooks, deliveries_key(webhook_id), DUE]
        args = [webhook_id, self._tenant.name, delivery_key("")]
        return bool(await self._redis.register_script(_DELETE)(keys=keys, args=args))

    async def test(self, webhook: WebhookRecord) -> DeliveryRecord:
        """A delivery that tells of nothing but itself."""
        record = DeliveryRecord(
            new_id("dlv"), webhook.id, self._tenant.name, "webhook.test", "", now_iso(), "pending", "[]"
        )
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(delivery_key(record.id), mapping=cast("dict[Any, Any]", _fields(record)))
            pipe.zadd(deliveries_key(webhook.id), {record.id: 0})
            pipe.zadd(DUE, {record.id: int(time.time() * 1000)})
            await pipe.execute()
        return record

    async def deliveries(self, webhook: WebhookRecord) -> list[DeliveryRecord]:
        """Newest first."""
        ids: Any = await self._redis.zrange(deliveries_key(webhook.id), 0, KEPT - 1, desc=True)
        found = [await read_delivery(self._redis, each.decode()) for each in ids]
        return [each for each in found if each is not None]


class Outbox:
    """The courier's side."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._take = redis.register_script(_TAKE)

    async def take(self) -> str | None:
        """A delivery that is due, for ``LEASE_MS``."""
        taken = await self._take(keys=[DUE], args=[LEASE_MS])
        return taken.decode() if taken else None

    async def read(self, delivery_id: str) -> tuple[DeliveryRecord, WebhookRecord] | None:
        delivery = await read_delivery(self._redis, delivery_id)
        webhook = await Webhooks(self._redis, delivery.tenant).get(delivery.webhook) if delivery else None
        return (delivery, webhook) if delivery and webhook else None

    async def drop(self, delivery_id: str) -> None:
        await self._redis.zrem(DUE, delivery_id)

    async def tried(self, delivery: DeliveryRecord, attempt: Mapping[str, Any], delivered: bool) -> None:
        """Write down an attempt, and when the next one is due, if there is to be one."""
        attempts = [*delivery.attempts, dict(attempt)]
        again = not delivered and len(attempts) <= len(PAUSES_S)
        status = "delivered" if delivered else "pending" if again else "failed"
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(delivery_key(delivery.id), mapping={"attempts": json.dumps(attempts), "status": status})
            if again:
                jitter = 1 + secrets.randbelow(100) / 1000
                due = int((time.time() + PAUSES_S[len(attempts) - 1] * jitter) * 1000)
                pipe.zadd(DUE, {delivery.id: due}, xx=True)
            else:
                pipe.zrem(DUE, delivery.id)
            await pipe.execute()


async def read_delivery(redis: Redis, delivery_id: str) -> DeliveryRecord | None:
    fields = await cast(Any, redis.hmget(delivery_key(delivery_id), DeliveryRecord.FIELDS))
    return DeliveryRecord(*_words(fields)) if fields[0] is not None else None


def webhook_key(webhook_id: str) -> str:
    return f"{PREFIX}webhook:{webhook_id}"


def deliveries_key(webhook_id: str) -> str:
    return f"{PREFIX}webhook:{webhook_id}:deliveries"


def delivery_key(delivery_id: str) -> str:
    return f"{PREFIX}delivery:{delivery_id}"


def _fields(record: DeliveryRecord) -> dict[str, str]:
    names = {"attempts": "attempts_json"}
    return {name: getattr(record, names.get(name, name)) for name in DeliveryRecord.FIELDS}


def _words(fields: Any) -> list[str]:
    return [(each or b"").decode() for each in fields]
