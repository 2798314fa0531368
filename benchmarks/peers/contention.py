"""How much of the machine others used meanwhile: what tells a slow peer from a busy neighbour."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
IDLE_FIELDS = (3, 4)  # idle and iowait of the first line of /proc/stat, see proc(5)
COUNTED_FIELDS = 8  # user to steal; the guest fields after them are in user and nice already


@dataclass(frozen=True)
class Clock:
    """Seconds of CPU time so far: of the whole machine with what its host took, and of this process."""

    wall: float
    machine: float
    mine: float

    @classmethod
    def now(cls) -> Clock:
        ticks = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1 : COUNTED_FIELDS + 1]))
        busy = sum(ticks) - sum(ticks[index] for index in IDLE_FIELDS)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(time.perf_counter(), busy * TICK_S, usage.ru_utime + usage.ru_stime)

    def others(self, later: Clock) -> float:
        """Cores that others kept busy between the two, 0 on a quiet machine."""
        foreign = (later.machine - self.machine) - (later.mine - self.mine)
        return max(0.0, foreign / (later.wall - self.wall))
