"""Delivers webhooks: signed (Standard Webhooks 1.0), to public addresses, without following redirects.

Every gateway runs one. They share the outbox in Redis: a delivery is leased to one of them, and after the lease to
another. A delivery may therefore arrive twice, with the same ``webhook-id``. Many are under way at a time, but few of
one tenant, so a slow receiver delays nobody else.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from base64 import b64decode, b64encode
from collections import Counter
from contextlib import suppress
from hashlib import sha256

import httpx2
import structlog
from redis.exceptions import RedisError

from fewbit.version import VERSION
from service.webhooks.addresses import Unreachable
from service.webhooks.posting import Posting
from store.records import now_iso
from store.webhooks import DeliveryRecord, Outbox, WebhookRecord

log = structlog.get_logger("fewbit.webhooks")
LOOK_EVERY_S = 0.5
ATTEMPT_S = 20.0
AT_ONCE, OF_A_TENANT = 32, 4


class Courier:
    """``run`` it until it is canceled."""

    def __init__(self, outbox: Outbox, post: Posting) -> None:
        self._outbox = outbox
        self._post = post
        self._under_way: Counter[str] = Counter()
        self._one_has_ended = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._one_has_ended.clear()
                if not (self._under_way.total() < AT_ONCE and await self._begin_one(tasks)):
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_EVERY_S):
                            await self._one_has_ended.wait()

    async def _begin_one(self, tasks: asyncio.TaskGroup) -> bool:
        """Whether there was anything to do."""
        try:
            taken = await self._outbox.take(tenant for tenant, count in self._under_way.items() if count >= OF_A_TENANT)
            found = await self._outbox.read(taken) if taken else None
            if taken and not found:  # its webhook was deleted meanwhile, or it is too old
                await self._outbox.drop(taken)
        except (RedisError, OSError) as error:  # what is due stays due
            log.warning("outbox is away", error=type(error).__name__)
            return False
        if found:
            self._under_way[found[0].tenant] += 1
            tasks.create_task(self._deliver(*found))
        return taken is not None

    async def _deliver(self, delivery: DeliveryRecord, webhook: WebhookRecord) -> None:
        started = time.monotonic()
        try:
            status, error = await self._attempt(delivery, webhook)
            told = {"at": now_iso(), "status": status, "error": error, "ms": round((time.monotonic() - started) * 1000)}
            log.info("webhook", delivery=delivery.id, webhook=webhook.id, status=status, error=error)
            await self._outbox.record_attempt(delivery, told, status is not None and 200 <= status < 300)
        except Exception as error:  # the outbox is away: the others go on; the lease ends and it is tried again
            log.error("webhook not delivered", delivery=delivery.id, exc_info=error)
        finally:
            self._under_way -= Counter([delivery.tenant])
            self._one_has_ended.set()

    async def _attempt(self, delivery: DeliveryRecord, webhook: WebhookRecord) -> tuple[int | None, str | None]:
        """The answer's status, or why there is none."""
        try:
            body = payload(delivery)
            headers = {
                "Content-Type": "application/json",
                "User-Agent": f"Fewbit/{VERSION}",
                **signature_headers(delivery.id, body, webhook.secret, int(time.time())),
            }
            async with asyncio.timeout(ATTEMPT_S):
                return await self._post(webhook.url, body, headers), None
        except Unreachable as error:
            return None, str(error)
        except TimeoutError:
            return None, f"No answer within {ATTEMPT_S:g} s."
        except (httpx2.HTTPError, OSError) as error:
            return None, f"No answer: {type(error).__name__}."
        except Exception as error:  # an unforeseen error counts as an attempt, so that it is not repeated forever
            log.error("webhook not sent", delivery=delivery.id, exc_info=error)
            return None, "Not sent, by a fault of this service."


def payload(delivery: DeliveryRecord) -> bytes:
    """What happened to which job; the rest is for the API to tell to those who have a key."""
    data = {"job": delivery.job, "status": delivery.type.removeprefix("job.")} if delivery.job else {}
    return json.dumps({"type": delivery.type, "timestamp": delivery.at, "data": data}).encode()


def signature_headers(message_id: str, body: bytes, secret: str, timestamp: int) -> dict[str, str]:
    """The three headers: HMAC-SHA256 over id, time and body."""
    key = b64decode(secret.removeprefix("whsec_"))
    signature = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{b64encode(signature).decode()}",
    }
