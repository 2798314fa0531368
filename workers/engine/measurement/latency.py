"""Latency: the float program and the artifacts in turn, in one process, so that a drifting clock hits both alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from fewbit.contract.report import ArtifactLatency, Latency, Percentiles

LEAST_ROUNDS, MOST_ROUNDS = 3, 60
BUDGET_S = 0.5  # for all artifacts together


@dataclass(frozen=True)
class Race:
    """Milliseconds of each call, round by round."""

    before: tuple[float, ...]
    after: tuple[float, ...]


def race(before: Callable[[], Any], after: Mapping[str, Callable[[], Any]], share: float = 1.0) -> dict[str, Race]:
    """Call all in turn, float first, until ``share`` of the budget is spent."""
    calls = (before, *after.values())
    before()  # the artifacts are warm from their verification
    rounds: list[tuple[float, ...]] = []
    deadline = time.perf_counter() + BUDGET_S * share
    while len(rounds) < LEAST_ROUNDS or (time.perf_counter() < deadline and len(rounds) < MOST_ROUNDS):
        rounds.append(tuple(map(_time_ms, calls)))
    float_times, *artifact_times = zip(*rounds, strict=True)
    return {name: Race(float_times, times) for name, times in zip(after, artifact_times, strict=True)}


def summarize_races(races: Mapping[str, Race], threads: int, batch: int) -> Latency:
    """``speedup`` is the median over rounds of float/artifact."""
    return Latency(
        threads=threads,
        batch=batch,
        before_ms=_percentiles(tuple(chain.from_iterable(race.before for race in races.values()))),
        artifacts={name: _artifact_latency(race) for name, race in races.items()},
    )


def _time_ms(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def _artifact_latency(race: Race) -> ArtifactLatency:
    speedup = float(np.median(np.array(race.before) / np.array(race.after)))
    return ArtifactLatency(**_percentiles(race.after).model_dump(), speedup=round(speedup, 3))


def _percentiles(times: tuple[float, ...]) -> Percentiles:
    fastest, p50, p95 = (round(float(value), 4) for value in np.percentile(times, (0, 50, 95)))
    return Percentiles(min=fastest, p50=p50, p95=p95)
