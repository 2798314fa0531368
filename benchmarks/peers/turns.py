"""Latency of several peers in turn, so that a drifting clock hits all alike.

Before a turn the process idles and calls the peer once untimed. Measured without that on two cores: ONNX Runtime's
threads still spin after its call and take a core from whoever comes next, so float torch read 97 ms instead of 55.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.peers.contention import Clock

THREADS = 2
IDLE_S = 0.02
CALLS = 3
LEAST_ROUNDS, MOST_ROUNDS = 3, 20
BUDGET_S = 8.0
QUIET_CORES = 0.1  # a lone run on an idle machine reads below 0.05


@dataclass(frozen=True)
class Turns:
    """Milliseconds a call: the median over turns of each turn's fastest call, and the fastest of all.
    ``others``: cores that other processes kept busy meanwhile."""

    p50: float
    fastest: float
    others: float

    @property
    def noisy(self) -> bool:
        """Whether the cores were not ours alone: the number is then an upper bound."""
        return self.others > QUIET_CORES


def take_turns(calls: Mapping[str, Callable[[], object]]) -> dict[str, Turns]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    clock = Clock.now()
    deadline = time.perf_counter() + BUDGET_S
    for done in range(MOST_ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() > deadline:
            break
        for name, call in calls.items():
            times[name].append(_turn(call))
    others = clock.others(Clock.now())
    return {name: Turns(float(np.median(turn_times)), min(turn_times), others) for name, turn_times in times.items()}


def _turn(call: Callable[[], object]) -> float:
    time.sleep(IDLE_S)
    call()
    return min(_milliseconds(call) for _ in range(CALLS))


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3
