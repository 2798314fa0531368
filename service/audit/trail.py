"""Writes the audit log: every request that changes something or downloads a result, however it ended, and those refused
for want of a key, a scope or a free allowance. The entry is written before the answer is sent."""

from __future__ import annotations

from http import HTTPStatus
from typing import Protocol

import structlog
from redis.exceptions import RedisError
from starlette.types import Message, Scope, Send

from service.context import ServiceContext
from store.records import now_iso
from store.tenancy.audit import stream_entry

log = structlog.get_logger("fewbit.audit")
TAKEN_AWAY = ("download_artifact", "get_report", "get_audit")
LONGEST_OBJECT = 200


class Named(Protocol):
    """What is known of the caller (``service.keys.authentication.Caller``)."""

    @property
    def tenant(self) -> str: ...
    @property
    def key(self) -> str: ...


class Trail:
    """The entries of one request."""

    def __init__(self, context: ServiceContext, scope: Scope, caller: Named) -> None:
        self._context = context
        self._scope = scope
        self._caller = caller

    def watch(self, send: Send) -> Send:
        """``send``, but the entry is written first."""

        async def written(message: Message) -> None:
            if message["type"] == "http.response.start" and self._matters(message["status"]):
                await self._write(message["status"], _location(message) or self._scope["path"])
            await send(message)

        return written

    async def refused(self, status: int, times: int) -> None:
        """For a request that reached no endpoint; ``times`` within the hour (``Tally``)."""
        await self._write(status, self._scope["path"], times)

    @property
    def _action(self) -> str:
        route = self._scope.get("route")
        return str(getattr(route, "operation_id", None) or self._scope["method"])

    def _matters(self, status: int) -> bool:
        return status == HTTPStatus.FORBIDDEN or self._scope["method"] != "GET" or self._action in TAKEN_AWAY

    async def _write(self, status: int, what: str, times: int = 1) -> None:
        client = self._scope.get("client")
        entry = {
            "at": now_iso(),
            "key": self._caller.key,
            "action": self._action,
            "object": "".join(character if character.isprintable() else "?" for character in what[:LONGEST_OBJECT]),
            "outcome": str(status),
            "request_id": self._scope["request_id"],
            "client": client[0] if client else "",
            "times": str(times),
        }
        log.info("audit", tenant=self._caller.tenant, **entry)
        try:
            await self._context.redis.xadd(**stream_entry(self._caller.tenant, entry))
        except (RedisError, OSError) as error:  # the log line above exists; the answer must not depend on this entry
            log.warning("audit entry not stored", request_id=entry["request_id"], error=type(error).__name__)


def _location(message: Message) -> str | None:
    found = next((value for name, value in message["headers"] if name.lower() == b"location"), None)
    return found.decode("latin-1") if found else None
