"""Latency: the float program and the artifacts in turn, in one process, so that a drifting clock hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fewbit.report import ArtifactLatency, Latency, Percentiles

WARM_UP = 1  # the artifacts are warm from their verification
LEAST_ROUNDS, MOST_ROUNDS = 3, 60
BUDGET_S = 0.5


def measure_latency(
    before: Callable[[], Any], artifacts: dict[str, Callable[[], Any]], threads: int, batch: int
) -> Latency:
    """Rounds of one call each, until the budget is spent. ``speedup`` is the median over rounds of float/artifact."""
    everyone = {"": before, **artifacts}
    for call in everyone.values():
        for _ in range(WARM_UP):
            call()
    times: dict[str, list[float]] = {name: [] for name in everyone}
    deadline = time.perf_counter() + BUDGET_S
    while len(times[""]) < LEAST_ROUNDS or (time.perf_counter() < deadline and len(times[""]) < MOST_ROUNDS):
        for name, call in everyone.items():
            started = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - started) * 1e3)
    return Latency(
        threads=threads,
        batch=batch,
        before_ms=_percentiles(times[""]),
        artifacts={name: _artifact(times[name], times[""]) for name in artifacts},
    )


def _artifact(times: list[float], before: list[float]) -> ArtifactLatency:
    speedup = float(np.median(np.array(before) / np.array(times)))
    return ArtifactLatency(**_percentiles(times).model_dump(), speedup=round(speedup, 3))


def _percentiles(times: list[float]) -> Percentiles:
    fastest, p50, p95 = (round(float(each), 4) for each in np.percentile(times, (0, 50, 95)))
    return Percentiles(min=fastest, p50=p50, p95=p95)
