"""Timing the stages of a job, and passing on their progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, float], None]
"""Called with the stage's name, and the share of it that is done, 0 to 1."""


class Stopwatch:
    """``with stopwatch.time("load") as advance:`` adds the block's time to ``seconds["load"]``; ``advance`` takes the
    share done."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, stage: str) -> Iterator[Callable[[float], None]]:
        self.progress(stage, 0.0)
        started = time.perf_counter()
        yield lambda share: self.progress(stage, share)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
