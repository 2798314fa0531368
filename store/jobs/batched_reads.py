"""Reads that arrive at the same time share one pipeline: two thirds of what a read costs a gateway are for the call and
not for its record (95 us alone, 34 us among eight in a pipeline)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from store.scripts.script import Script


@dataclass(frozen=True)
class _Read:
    key: str
    arguments: bytes
    answer: asyncio.Future[Any]


class BatchedReads:
    """Calls of a script with one key. A call goes out at once. Those that come while it is under way go out in one
    pipeline when it is back, so that nobody waits for more than two."""

    def __init__(self, redis: Redis, script: Script) -> None:
        self._redis = redis
        self._script = script
        self._waiting: list[_Read] = []
        self._batches: asyncio.Task[None] | None = None
        self._is_single_under_way = False

    async def __call__(self, key: str, **arguments: str) -> Any:
        """What the script returns. Raises what Redis does."""
        if self._is_single_under_way or self._batches:
            return await self._wait_for_batch(key, arguments)
        self._is_single_under_way = True
        try:
            return await self._script([key], **arguments)
        finally:
            self._is_single_under_way = False
            if self._waiting:
                self._batches = asyncio.create_task(self._send_batches())

    def _wait_for_batch(self, key: str, arguments: dict[str, str]) -> asyncio.Future[Any]:
        read = _Read(key, self._script.encode(arguments), asyncio.get_running_loop().create_future())
        self._waiting.append(read)
        return read.answer

    async def _send_batches(self) -> None:
        try:
            while self._waiting:
                reads, self._waiting = self._waiting, []
                for read, reply in zip(reads, await self._replies(reads), strict=True):
                    _settle(read.answer, reply)
        finally:
            self._batches = None

    async def _replies(self, reads: list[_Read], *, may_load: bool = True) -> list[Any]:
        """One for each read; where Redis raised an exception, that."""
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for read in reads:
                    pipe.evalsha(self._script.sha, 1, read.key, read.arguments)
                replies = await pipe.execute(raise_on_error=False)
            if may_load and any(isinstance(reply, NoScriptError) for reply in replies):  # Redis was restarted
                await self._redis.script_load(self._script.text)
                return await self._replies(reads, may_load=False)
        except Exception as error:
            return [error] * len(reads)
        return replies


def _settle(answer: asyncio.Future[Any], reply: Any) -> None:
    if answer.done():  # the caller was canceled
        return
    if isinstance(reply, Exception):
        answer.set_exception(reply)
    else:
        answer.set_result(reply)
