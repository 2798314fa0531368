"""Webhooks of a tenant, and their deliveries. ``transition.lua`` begins the delivery of a job in the call that ends the
job; ``deliveries.lua`` describes how deliveries are kept in Redis, and for how long.

Taking a delivery moves its due time ahead by a lease, so a courier that dies loses nothing. Couriers choose a webhook
by when its first delivery is due: many deliveries of one webhook never stand before the first of another.
"""

from __future__ import annotations

import json
import secrets
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from redis.asyncio import Redis

from store.ids import new_id
from store.records import PREFIX, now_iso
from store.scripts.script import Script
from store.tenancy.tenants import DEFAULT_TENANT, Tenant, record_script

DUE = f"{PREFIX}deliveries"
LEASE_MS = 60_000
SHOWN = 100  # deliveries of a webhook that are listed
PAUSES_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""After the first attempt, as Standard Webhooks advises: about three days in all."""


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
        self._record = record_script(redis, *WebhookRecord.FIELDS)
        self._create = Script(redis, "webhooks/create")
        self._delete = Script(redis, "webhooks/delete")
        self._begin_delivery = Script(redis, "webhooks/begin_delivery")
        self._list_deliveries = Script(redis, "webhooks/list_deliveries", FIELDS=DeliveryRecord.FIELDS)

    async def create(self, url: str, most: int) -> WebhookRecord:
        """Raises ``TooMany``."""
        secret = "whsec_" + b64encode(secrets.token_bytes(32)).decode()
        record = WebhookRecord(new_id("whk"), url, now_iso(), secret, self._tenant.name)
        keys = [webhook_key(record.id), self._tenant.webhooks]
        if not await self._create(keys, id=record.id, most=most, fields=asdict(record)):
            raise TooMany
        return record

    async def get(self, webhook_id: str) -> WebhookRecord | None:
        fields = await self._record([webhook_key(webhook_id)], tenant=self._tenant.name)
        return WebhookRecord(*_words(fields)) if fields else None

    async def every(self) -> list[WebhookRecord]:
        """Newest first."""
        ids: Any = await self._redis.zrange(self._tenant.webhooks, 0, -1, desc=True)
        found = [await self.get(webhook_id.decode()) for webhook_id in ids]
        return [webhook for webhook in found if webhook is not None]

    async def delete(self, webhook_id: str) -> bool:
        keys = [webhook_key(webhook_id), self._tenant.webhooks]
        return bool(await self._delete(keys, prefix=PREFIX, id=webhook_id, tenant=self._tenant.name))

    async def test(self, webhook: WebhookRecord) -> DeliveryRecord:
        """A delivery that tells of nothing but itself."""
        record = DeliveryRecord(
            new_id("dlv"), webhook.id, self._tenant.name, "webhook.test", "", now_iso(), "pending", "[]"
        )
        delivery = {name: getattr(record, name) for name in ("id", "tenant", "type", "job", "at")}
        await self._begin_delivery(prefix=PREFIX, webhook=webhook.id, delivery=delivery)
        return record

    async def deliveries(self, webhook: WebhookRecord) -> list[DeliveryRecord]:
        """Newest first, at most ``SHOWN``."""
        found = await self._list_deliveries(prefix=PREFIX, webhook=webhook.id, most=SHOWN)
        return [DeliveryRecord(*_words(fields)) for fields in found if fields[0] is not None]


@dataclass(frozen=True)
class LeasedDelivery:
    """A delivery that its taker has for ``LEASE_MS``: ids."""

    webhook: str
    delivery: str


class Outbox:
    """The courier's side."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._take = Script(redis, "webhooks/take_delivery")
        self._record_attempt = Script(redis, "webhooks/record_attempt")
        self._forget = Script(redis, "webhooks/forget_delivery")

    async def take(self, pass_over: Iterable[str] = ()) -> LeasedDelivery | None:
        """A delivery that is due, of none of the tenants ``pass_over``."""
        taken = await self._take(prefix=PREFIX, lease_ms=LEASE_MS, pass_over=list(pass_over))
        return LeasedDelivery(*_words(taken)) if taken else None

    async def read(self, taken: LeasedDelivery) -> tuple[DeliveryRecord, WebhookRecord] | None:
        fields = await cast(Any, self._redis.hmget(delivery_key(taken.delivery), DeliveryRecord.FIELDS))
        if fields[0] is None:
            return None
        delivery = DeliveryRecord(*_words(fields))
        webhook = await Webhooks(self._redis, delivery.tenant).get(delivery.webhook)
        return (delivery, webhook) if webhook else None

    async def drop(self, taken: LeasedDelivery) -> None:
        await self._forget(prefix=PREFIX, webhook=taken.webhook, delivery=taken.delivery)

    async def record_attempt(self, delivery: DeliveryRecord, attempt: Mapping[str, Any], delivered: bool) -> None:
        """Record an attempt, and when the next one is due, if any."""
        attempts = [*delivery.attempts, dict(attempt)]
        again = not delivered and len(attempts) <= len(PAUSES_S)
        status = "delivered" if delivered else "pending" if again else "failed"
        await self._record_attempt(
            prefix=PREFIX,
            webhook=delivery.webhook,
            delivery=delivery.id,
            attempts=json.dumps(attempts),
            status=status,
            pause_ms=_pause_ms(len(attempts)) if again else None,
        )

    async def waiting(self) -> int:
        """Deliveries that are still to be made, of everyone."""
        webhooks: Any = await self._redis.zrange(DUE, 0, -1)
        async with self._redis.pipeline(transaction=False) as pipe:
            for webhook_id in webhooks:
                pipe.zcard(f"{webhook_key(webhook_id.decode())}:due")
            return sum(await pipe.execute())


def _pause_ms(attempts: int) -> int:
    """Until the next attempt; a little later each time, so that what failed together does not come back together."""
    return int(PAUSES_S[attempts - 1] * (1000 + secrets.randbelow(100)))


def webhook_key(webhook_id: str) -> str:
    return f"{PREFIX}webhook:{webhook_id}"


def delivery_key(delivery_id: str) -> str:
    return f"{PREFIX}delivery:{delivery_id}"


def _words(fields: Any) -> list[str]:
    return [(value or b"").decode() for value in fields]
