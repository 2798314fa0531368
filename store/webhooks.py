"""Webhooks of a tenant, and their deliveries. A job's delivery is begun by ``transition.lua``, in the call that ends
it. How deliveries lie in Redis, and for how long, says ``deliveries.lua``.

Who takes a delivery that is due moves it ahead by a lease, so that a courier that dies loses nothing. Couriers go by
webhooks, each by when something of it is due: many deliveries of one never stand before the first of another.
"""

from __future__ import annotations

import json
import secrets
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from redis.asyncio import Redis

from store.ids import new_id
from store.jobs.transition import DELIVERIES
from store.records import PREFIX, flat, now_iso
from store.tenancy.tenants import DEFAULT_TENANT, Tenant, owned

DUE = f"{PREFIX}deliveries"
LEASE_MS = 60_000
SHOWN = 100  # deliveries of a webhook that are listed
PAUSES_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""After the first attempt, as Standard Webhooks advises: about three days in all."""

# ARGV 1 prefix, 2 lease in ms, 3.. tenants to pass over. Returns {webhook, delivery}, leased, or nil
_TAKE = """
local prefix, now, passed = ARGV[1], milliseconds(), {}
for i = 3, #ARGV do passed[ARGV[i]] = true end
for _, webhook in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'deliveries', '-inf', now)) do
  if not passed[redis.call('HGET', prefix .. 'webhook:' .. webhook, 'tenant') or ''] then
    local _, due = keys_of(prefix, webhook)
    local first = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, 1)[1]
    if first then redis.call('ZADD', due, now + ARGV[2], first) end
    schedule(prefix, webhook)
    if first then return {webhook, first} end
  end
end
return false
"""

# ARGV 1 prefix, 2 webhook, 3 delivery, 4 attempts, 5 status, 6 ms until the next attempt, or ""
_TRIED = """
local prefix, webhook, delivery = ARGV[1], ARGV[2], ARGV[3]
local _, due = keys_of(prefix, webhook)
if redis.call('EXISTS', prefix .. 'delivery:' .. delivery) == 1 then
  redis.call('HSET', prefix .. 'delivery:' .. delivery, 'attempts', ARGV[4], 'status', ARGV[5])
  if ARGV[6] == '' then redis.call('ZREM', due, delivery)
  else redis.call('ZADD', due, milliseconds() + ARGV[6], delivery) end
end
schedule(prefix, webhook)
"""

# ARGV 1 prefix, 2 webhook, 3 delivery
_DROP = "forget(ARGV[1], ARGV[2], {ARGV[3]}) schedule(ARGV[1], ARGV[2])"

# ARGV 1 prefix, 2 webhook, 3 delivery, 4 tenant, 5 type, 6 job, 7 now, ISO 8601
_BEGIN = "begin_delivery(unpack(ARGV))"

# ARGV 1 prefix, 2 webhook, 3 most, 4.. fields. Returns those of each delivery, newest first; nils for one that ran out
_LIST = """
local prefix, found = ARGV[1], {}
for _, each in ipairs(redis.call('ZREVRANGE', (keys_of(prefix, ARGV[2])), 0, ARGV[3] - 1)) do
  found[#found + 1] = redis.call('HMGET', prefix .. 'delivery:' .. each, unpack(ARGV, 4))
end
return found
"""

# KEYS 1 webhook, 2 index. ARGV 1 prefix, 2 id, 3 tenant
_DELETE = """
if redis.call('HGET', KEYS[1], 'tenant') ~= ARGV[3] then return 0 end
local all, due = keys_of(ARGV[1], ARGV[2])
forget(ARGV[1], ARGV[2], redis.call('ZRANGE', all, 0, -1))
redis.call('DEL', KEYS[1], all, due)
schedule(ARGV[1], ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[2])
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
        self._record = redis.register_script(owned(*WebhookRecord.FIELDS))

    async def create(self, url: str, most: int) -> WebhookRecord:
        """Raises ``TooMany``."""
        secret = "whsec_" + b64encode(secrets.token_bytes(32)).decode()
        record = WebhookRecord(new_id("whk"), url, now_iso(), secret, self._tenant.name)
        keys = [webhook_key(record.id), self._tenant.webhooks]
        if not await self._redis.register_script(_CREATE)(keys=keys, args=[record.id, most, *flat(asdict(record))]):
            raise TooMany
        return record

    async def get(self, webhook_id: str) -> WebhookRecord | None:
        fields = await self._record(keys=[webhook_key(webhook_id)], args=[self._tenant.name])
        return WebhookRecord(*_words(fields)) if fields else None

    async def every(self) -> list[WebhookRecord]:
        """Newest first."""
        ids: Any = await self._redis.zrange(self._tenant.webhooks, 0, -1, desc=True)
        found = [await self.get(each.decode()) for each in ids]
        return [each for each in found if each is not None]

    async def delete(self, webhook_id: str) -> bool:
        keys = [webhook_key(webhook_id), self._tenant.webhooks]
        return bool(await _call(self._redis, _DELETE, webhook_id, self._tenant.name, keys=keys))

    async def test(self, webhook: WebhookRecord) -> DeliveryRecord:
        """A delivery that tells of nothing but itself."""
        record = DeliveryRecord(
            new_id("dlv"), webhook.id, self._tenant.name, "webhook.test", "", now_iso(), "pending", "[]"
        )
        await _call(self._redis, _BEGIN, webhook.id, record.id, record.tenant, record.type, record.job, record.at)
        return record

    async def deliveries(self, webhook: WebhookRecord) -> list[DeliveryRecord]:
        """Newest first, at most ``SHOWN``."""
        found = await _call(self._redis, _LIST, webhook.id, SHOWN, *DeliveryRecord.FIELDS)
        return [DeliveryRecord(*_words(fields)) for fields in found if fields[0] is not None]


@dataclass(frozen=True)
class Taken:
    """A delivery that its taker has for ``LEASE_MS``: ids."""

    webhook: str
    delivery: str


class Outbox:
    """The courier's side."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def take(self, but: Iterable[str] = ()) -> Taken | None:
        """A delivery that is due, of none of the tenants ``but``."""
        taken = await _call(self._redis, _TAKE, LEASE_MS, *but)
        return Taken(*_words(taken)) if taken else None

    async def read(self, taken: Taken) -> tuple[DeliveryRecord, WebhookRecord] | None:
        fields = await cast(Any, self._redis.hmget(delivery_key(taken.delivery), DeliveryRecord.FIELDS))
        if fields[0] is None:
            return None
        delivery = DeliveryRecord(*_words(fields))
        webhook = await Webhooks(self._redis, delivery.tenant).get(delivery.webhook)
        return (delivery, webhook) if webhook else None

    async def drop(self, taken: Taken) -> None:
        await _call(self._redis, _DROP, taken.webhook, taken.delivery)

    async def tried(self, delivery: DeliveryRecord, attempt: Mapping[str, Any], delivered: bool) -> None:
        """Write down an attempt, and when the next one is due, if there is to be one."""
        attempts = [*delivery.attempts, dict(attempt)]
        again = not delivered and len(attempts) <= len(PAUSES_S)
        status = "delivered" if delivered else "pending" if again else "failed"
        pause_ms = _pause_ms(len(attempts)) if again else ""
        await _call(self._redis, _TRIED, delivery.webhook, delivery.id, json.dumps(attempts), status, pause_ms)

    async def waiting(self) -> int:
        """Deliveries that are still to be made, of everyone."""
        webhooks: Any = await self._redis.zrange(DUE, 0, -1)
        async with self._redis.pipeline(transaction=False) as pipe:
            for each in webhooks:
                pipe.zcard(f"{webhook_key(each.decode())}:due")
            return sum(await pipe.execute())


async def _call(redis: Redis, script: str, *args: str | int, keys: Sequence[str] = ()) -> Any:
    return await redis.register_script(DELIVERIES + script)(keys=keys, args=[PREFIX, *args])


def _pause_ms(attempts: int) -> int:
    """Until the next attempt; a little later each time, so that what failed together does not come back together."""
    return int(PAUSES_S[attempts - 1] * (1000 + secrets.randbelow(100)))


def webhook_key(webhook_id: str) -> str:
    return f"{PREFIX}webhook:{webhook_id}"


def delivery_key(delivery_id: str) -> str:
    return f"{PREFIX}delivery:{delivery_id}"


def _words(fields: Any) -> list[str]:
    return [(each or b"").decode() for each in fields]
