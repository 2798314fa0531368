"""The thread that talks to Redis while a job runs: it renews the lease, relays progress, and notices a cancel.

It is a thread because Redis may be away for a while. Meanwhile the child goes on computing, and the watcher must go on
reading its pipes and keeping its deadline.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from types import TracebackType
from typing import Any, Self

import structlog

from store.jobs.leases import Claim, Leases, LostLease

log = structlog.get_logger()

_POLL_S = 0.25  # a cancel is noticed after this time; a poll is one small read


class Canceled(Exception):
    """Someone asked for the job to be canceled."""


class Heartbeat:
    """``with Heartbeat(leases, claim) as heartbeat``: the lease is kept until the end of the block, and everything
    relayed is in Redis by then, unless the lease is lost."""

    def __init__(self, leases: Leases, claim: Claim) -> None:
        self._leases = leases
        self._claim = claim
        self._ended = threading.Event()
        self._wake_up = threading.Event()
        self._error: Exception | None = None
        self._progress: tuple[str, float] | None = None
        self._logs: deque[str] = deque(maxlen=100)
        self._renew_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"heartbeat {claim.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._wake_up.set()
        self._thread.join()

    def relay(self, kind: str, value: Any) -> None:
        """Pass a child's message on to Redis, soon: of progress only the latest, of logs the last hundred."""
        if kind == "progress":
            self._progress = value
        else:
            self._logs.append(value)
        self._wake_up.set()

    def check(self) -> None:
        """Raises ``Canceled`` or ``LostLease`` as soon as the thread knows of it."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                self._beat()
                self._wake_up.wait(_POLL_S)
                self._wake_up.clear()
            self._write_messages()
        except Exception as error:
            if not isinstance(error, (Canceled, LostLease)):
                log.exception("heartbeat failed")
                error = LostLease(str(error))
            self._error = error

    def _beat(self) -> None:
        self._write_messages()
        if self._status() == "canceling":
            raise Canceled

    def _status(self) -> str:
        """Renew the lease when that is due, read it otherwise: a renewal is a write that Redis syncs to disk."""
        now = time.monotonic()
        if now < self._renew_at:
            return self._leases.look(self._claim)
        self._renew_at = now + self._leases.heartbeat_s
        return self._leases.renew(self._claim)

    def _write_messages(self) -> None:
        progress, self._progress = self._progress, None
        if progress is not None:
            self._leases.progress(self._claim, *progress)
        while self._logs:
            self._leases.log(self._claim, self._logs.popleft())
