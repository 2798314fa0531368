"""One model, every route: quantize, measure the size, take turns, compare the outputs; a route that fails says why."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from benchmarks.peers.route import Route
from benchmarks.peers.source import Run, Source, save_float, sqnr_db
from benchmarks.peers.turns import Turns, take_turns


@dataclass(frozen=True)
class Entry:
    """What was measured of one route. ``size`` bytes, ``seconds`` from the float file to the delivered one, ``turns``
    by the label of the inputs, ``alone`` the same in a process where nobody else lives."""

    route: Route
    size: int = 0
    seconds: float = 0.0
    sqnr_db: float = 0.0
    turns: Mapping[str, Turns] = field(default_factory=dict)
    alone: Mapping[str, Turns] = field(default_factory=dict)
    remark: str = ""
    failed: bool = False


def contest(source: Source, routes: Iterable[Route], folder: Path) -> list[Entry]:
    """Every route's entry, in order. ``folder`` is left with all the files."""
    save_float(source, folder)
    entries = [_quantize(source, route, folder) for route in routes]
    runs: dict[str, Run] = {}
    for index, entry in enumerate(entries):
        if not entry.failed:
            entries[index] = _load_and_compare(source, entry, folder, runs)
    turns = {label: take_turns({name: partial(run, inputs) for name, run in runs.items()})
             for label, inputs in source.timed.items()}  # fmt: skip
    return [
        replace(entry, turns={label: turn[entry.route.name] for label, turn in turns.items()})
        if entry.route.name in runs
        else entry
        for entry in entries
    ]


def time_alone(source: Source, route: Route, folder: Path) -> dict[str, Turns]:
    """The route's latency on the first shape where it is the only one loaded; ``folder`` is a contest's."""
    run = route.load(source, folder)
    label, inputs = next(iter(source.timed.items()))
    return {label: take_turns({"": partial(run, inputs)})[""]}


def _quantize(source: Source, route: Route, folder: Path) -> Entry:
    began = time.perf_counter()
    try:
        remark = route.quantize(source, folder)
        seconds = time.perf_counter() - began
        return Entry(route, size=route.size(folder), seconds=seconds, remark=remark)
    except Exception as error:  # one peer's failure is its row, not the end of the table
        return Entry(route, remark=failure_reason(error), failed=True)


def _load_and_compare(source: Source, entry: Entry, folder: Path, runs: dict[str, Run]) -> Entry:
    """The entry with its decibels; its run is added to ``runs``."""
    try:
        run = entry.route.load(source, folder)
        closeness = sqnr_db(source, run)
    except Exception as error:
        return replace(entry, remark=failure_reason(error), failed=True)
    runs[entry.route.name] = run
    return replace(entry, sqnr_db=closeness)


def failure_reason(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return first if first.startswith("not yet") else f"{type(error).__name__}: {first}"[:160]
