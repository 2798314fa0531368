"""When to try again: exponential back-off with jitter, for as long as patience lasts."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field


@dataclass
class Retry:
    """Counts from the first failure. ``sleep`` waits before the next attempt, or says that patience has run out."""

    patience: float
    _attempt: int = field(default=0, init=False)
    _deadline: float | None = field(default=None, init=False)

    @property
    def fresh(self) -> bool:
        """Whether nothing has been tried again yet."""
        return self._attempt == 0

    def sleep(self, at_least: float | None = None) -> bool:
        """Full jitter (AWS architecture blog, 2015) up to 8 s; ``at_least`` is what ``Retry-After`` asked for."""
        now = time.monotonic()
        self._deadline = self._deadline or now + self.patience
        pause = max(at_least or 0.0, random.uniform(0.05, min(8.0, 0.2 * 2**self._attempt)))  # noqa: S311
        if now + pause > self._deadline:
            return False
        self._attempt += 1
        time.sleep(pause)
        return True
