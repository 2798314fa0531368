"""Delivers webhooks: signed (Standard Webhooks 1.0), to public addresses, without following anyone elsewhere.

Every gateway runs one. They share the outbox in Redis: each delivery is leased to one of them, and a lease that runs
out is another's. A delivery may therefore arrive twice, with the same ``webhook-id``.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from base64 import b64decode, b64encode
from hashlib import sha256

import httpx2
import structlog
from redis.exceptions import RedisError

from fewbit.version import VERSION
from service.webhooks.addresses import Target, Unreachable, resolved
from store.records import now_iso
from store.webhooks import DeliveryRecord, Outbox, WebhookRecord

log = structlog.get_logger("fewbit.webhooks")
LOOK_EVERY_S = 0.5
ATTEMPT_S = 20.0
LONGEST_ANSWER = 64 * 1024


class Courier:
    """``run`` it until it is canceled."""

    def __init__(self, outbox: Outbox, allow_private: bool) -> None:
        self._outbox = outbox
        self._allow_private = allow_private

    async def run(self) -> None:
        while True:
            try:
                if not await self.deliver_one():
                    await asyncio.sleep(LOOK_EVERY_S)
            except (RedisError, OSError) as error:  # what is due stays due
                log.warning("outbox is away", error=type(error).__name__)
                await asyncio.sleep(LOOK_EVERY_S * 4)

    async def deliver_one(self) -> bool:
        """Whether there was anything to do."""
        delivery_id = await self._outbox.take()
        if delivery_id is None:
            return False
        found = await self._outbox.read(delivery_id)
        if found is None:  # deleted meanwhile
            await self._outbox.drop(delivery_id)
            return True
        delivery, webhook = found
        started = time.monotonic()
        status, error = await self._attempt(delivery, webhook)
        told = {"at": now_iso(), "status": status, "error": error, "ms": round((time.monotonic() - started) * 1000)}
        delivered = status is not None and 200 <= status < 300
        log.info("webhook", delivery=delivery.id, webhook=webhook.id, status=status, error=error)
        await self._outbox.tried(delivery, told, delivered)
        return True

    async def _attempt(self, delivery: DeliveryRecord, webhook: WebhookRecord) -> tuple[int | None, str | None]:
        """The answer's status, or why there is none."""
        try:
            async with asyncio.timeout(ATTEMPT_S):
                target = await resolved(webhook.url, self._allow_private)
                return await _post(target, payload(delivery), delivery.id, webhook.secret), None
        except Unreachable as error:
            return None, str(error)
        except TimeoutError:
            return None, f"No answer within {ATTEMPT_S:g} s."
        except (httpx2.HTTPError, OSError) as error:
            return None, f"No answer: {type(error).__name__}."


async def _post(target: Target, body: bytes, delivery_id: str, secret: str) -> int:
    headers = {
        "Host": target.host,
        "Content-Type": "application/json",
        "User-Agent": f"Fewbit/{VERSION}",
        **signed(delivery_id, body, secret, int(time.time())),
    }
    extensions = {"sni_hostname": target.name}  # whose certificate it must be; the address is only where to knock
    timeout = httpx2.Timeout(10.0, connect=5.0)
    async with (
        httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=timeout) as http,
        http.stream("POST", target.url, content=body, headers=headers, extensions=extensions) as answer,
    ):
        await _bounded(answer)
        return answer.status_code


async def _bounded(answer: httpx2.Response) -> None:
    """Of what the other side says, nothing is kept, and not much of it is read."""
    size = 0
    async for chunk in answer.aiter_raw():
        size += len(chunk)
        if size > LONGEST_ANSWER:
            return


def payload(delivery: DeliveryRecord) -> bytes:
    """What happened to what; the rest is for the API to tell to whoever has a key."""
    data = {"job": delivery.job, "status": delivery.type.removeprefix("job.")} if delivery.job else {}
    return json.dumps({"type": delivery.type, "timestamp": delivery.at, "data": data}).encode()


def signed(message_id: str, body: bytes, secret: str, timestamp: int) -> dict[str, str]:
    """The three headers: HMAC-SHA256 over id, time and body."""
    key = b64decode(secret.removeprefix("whsec_"))
    signature = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{b64encode(signature).decode()}",
    }
