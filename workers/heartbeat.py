"""The thread that talks to Redis while a job runs: renews the lease, relays progress, brings news of a cancel.

It is a thread because Redis may be away for a while: the watcher must go on reading the child's pipes and its clock
meanwhile, and the child goes on computing.
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

_LOOK_EVERY_S = 0.25  # how long a cancel may go unseen; one small read


class Canceled(Exception):
    """Someone asked for the job to be canceled."""


class Heartbeat:
    """``with Heartbeat(leases, claim) as heartbeat``: the lease is kept until the end of the block, and all that was
    relayed is in Redis by then, unless the lease is lost."""

    def __init__(self, leases: Leases, claim: Claim) -> None:
        self._leases = leases
        self._claim = claim
        self._ending = threading.Event()
        self._news = threading.Event()
        self._bad_news: Exception | None = None
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
        self._ending.set()
        self._news.set()
        self._thread.join()

    def hear(self, kind: str, value: Any) -> None:
        """What the child said. Of progress only the latest counts, of logs the last hundred."""
        if kind == "progress":
            self._progress = value
        else:
            self._logs.append(value)
        self._news.set()

    def check(self) -> None:
        """Raises ``Canceled`` or ``LostLease`` once that is known."""
        if self._bad_news is not None:
            raise self._bad_news

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                self._beat()
                self._news.wait(_LOOK_EVERY_S)
                self._news.clear()
            self._relay()
        except Exception as error:
            if not isinstance(error, (Canceled, LostLease)):
                log.exception("heartbeat failed")
                error = LostLease(str(error))
            self._bad_news = error

    def _beat(self) -> None:
        self._relay()
        if self._status() == "canceling":
            raise Canceled

    def _status(self) -> str:
        """Renewing writes, to a file that is synced: only when it is time."""
        now = time.monotonic()
        if now < self._renew_at:
            return self._leases.look(self._claim)
        self._renew_at = now + self._leases.heartbeat_s
        return self._leases.renew(self._claim)

    def _relay(self) -> None:
        progress, self._progress = self._progress, None
        if progress is not None:
            self._leases.progress(self._claim, *progress)
        while self._logs:
            self._leases.log(self._claim, self._logs.popleft())
