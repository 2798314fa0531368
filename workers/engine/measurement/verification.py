"""Measuring what will be delivered: an artifact loaded here, by itself, and run on the evaluation data."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbit.contract.report import (
    Latency,
)
from workers.engine.artifacts.kinds import KINDS, Run, load_pt2
from workers.engine.data import Batch, Data
from workers.engine.draft import Draft
from workers.engine.graph.run import primary_output
from workers.engine.measurement.float_pass import output_rows
from workers.engine.measurement.kernels import Executed, executed_kernels
from workers.engine.measurement.latency import Race, latency_of, race
from workers.engine.metrics.similarity import Comparison
from workers.engine.task import Task
from workers.errors import EngineError, first_line

AGREEMENT_DB = 35.0  # nearer than this to the reference is rounding
TOLERANCE_DB = 1.0
MEASURED_ROWS = "int8.npy"  # in the folder: what the artifact that speaks for the job gave, laid out like float.npy
LARGEST_KEPT = 128 << 20  # bytes of an artifact that stays loaded while others are measured


@dataclass(frozen=True)
class Measured:
    """One artifact: its output against float, the same for every documented way to load it, and, of the one that speaks
    for the job, the kernel of each layer."""

    comparison: Comparison
    loaders: dict[str, Comparison]
    executed: dict[str, Executed]


class Runs:
    """The artifacts of a job, each loaded the way its user will. Small ones stay loaded; of large ones there is one in
    memory at a time. ``kinds`` run; ``stores`` hold no program."""

    def __init__(self, kinds: Sequence[str], folder: Path) -> None:
        self.kinds = tuple(kind for kind in kinds if KINDS[kind].runs)
        self.stores = tuple(kind for kind in kinds if not KINDS[kind].runs)
        self.folder = folder
        self.kept: dict[str, Run] = {}

    def load(self, kind: str) -> Run:
        """The first documented way. Raises what ``load_by`` raises."""
        if kind in self.kept:
            return self.kept[kind]
        run = self.load_by(KINDS[kind].loader, kind)
        if self.path(kind).stat().st_size <= LARGEST_KEPT:
            self.kept[kind] = run
        return run

    def load_by(self, loader: str, kind: str) -> Run:
        """Raises ``EngineError('verification-failed')``: whatever the cause, this file must not be delivered."""
        try:
            return KINDS[kind].loaders[loader](self.path(kind))
        except Exception as error:
            message = f"{self.path(kind).name} does not load by {loader}: {first_line(error)}"
            raise EngineError("verification-failed", message) from error

    def check_store(self, kind: str) -> None:
        """Raises ``EngineError('verification-failed')`` for one that does not hold what the engine computed."""
        check = KINDS[kind].check
        assert check is not None
        try:
            check(self.path(kind))
        except Exception as error:
            message = f"{self.path(kind).name} is not right: {first_line(error)}"
            raise EngineError("verification-failed", message) from error

    def path(self, kind: str) -> Path:
        return self.folder / "out" / KINDS[kind].file

    def reject(self, kind: str) -> None:
        """Delete its file."""
        self.path(kind).unlink()
        self.kept.pop(kind, None)
        self.kinds = tuple(other for other in self.kinds if other != kind)
        self.stores = tuple(other for other in self.stores if other != kind)


@dataclass(frozen=True)
class Standard:
    """What artifacts are held against. ``comparable``: whether the float output is finite, and the same each time."""

    floats: np.ndarray[Any, Any]
    expected: np.ndarray[Any, Any]
    comparable: bool

    @classmethod
    def read(cls, folder: Path, draft: Draft) -> Standard:
        floats = np.load(folder / "float.npy", mmap_mode="r")
        return cls(floats, np.load(folder / "expected.npy"), draft.finite and not draft.random)


def measure_artifact(
    kind: str, runs: Runs, draft: Draft, data: Data, standard: Standard, advance: Callable[[float], None]
) -> Measured:
    """Run one artifact over all of ``data``, every documented way, and hold it against the engine's int8 result. The
    one that speaks for the job is profiled on a batch, and its rows are kept.

    Raises ``EngineError('verification-failed')``."""
    speaks = kind == representative(runs.kinds)
    run, floats = runs.load(kind), standard.floats
    kept = _rows_file(runs.folder, floats) if speaks and data.labels is not None else None
    comparison = _measure(run, runs.path(kind).name, data, standard, kept, advance)
    loaders = {KINDS[kind].loader: comparison}
    first = next(data.batches())
    executed = executed_kernels(draft.calls[kind], _forward(run, first.inputs)) if speaks else {}
    for loader in list(KINDS[kind].loaders)[1:]:
        named = f"{runs.path(kind).name}, loaded by {loader},"
        loaders[loader] = _measure(runs.load_by(loader, kind), named, data, standard, None, advance)
    return Measured(comparison, loaders, executed)


def _measure(
    run: Run,
    named: str,
    data: Data,
    standard: Standard,
    kept: np.memmap[Any, Any] | None,
    advance: Callable[[float], None],
) -> Comparison:
    comparison, row = Comparison(), 0
    for batch in data.batches():
        rows = rows_of(named, run, batch)
        floats = np.asarray(standard.floats[row : row + len(rows)])
        if batch.start == 0 and standard.comparable:
            _require_agreement(named, floats, standard.expected, rows)
        comparison.add(floats, rows)
        if kept is not None:
            kept[row : row + len(rows)] = rows
        row += len(rows)
        advance((batch.start + batch.count) / data.samples)
    return comparison


def representative(kinds: Collection[str]) -> str:
    """The artifact that accuracy and kernels are reported of: TorchScript where there is one, for it runs on int8."""
    return "torchscript" if "torchscript" in kinds else next(iter(kinds))


def measure_latency_of(runs: Runs, task: Task, data: Data, folder: Path) -> Latency | None:
    """Every artifact against the float program, which this process opens only now."""
    if not runs.kinds:
        return None
    batch, path = next(data.batches()), folder / task.program_file
    large = path.stat().st_size > LARGEST_KEPT
    races: dict[str, Race] = {}
    for kinds in [(kind,) for kind in runs.kinds] if large else [runs.kinds]:
        after = {kind: _forward(runs.load(kind), batch.inputs) for kind in kinds}
        before = load_pt2(path)  # last: loading takes up to three times an artifact's size
        races |= race(_forward(before, batch.inputs), after, len(kinds) / len(runs.kinds))
        if large:
            del before, after
            gc.collect()  # graph modules refer to themselves
    return latency_of(races, task.threads, batch.size)


def rows_of(named: str, run: Run, batch: Batch) -> np.ndarray[Any, Any]:
    """Raises ``EngineError('verification-failed')``."""
    try:
        with torch.no_grad():
            return output_rows(primary_output(run(batch.inputs)), batch)
    except EngineError:
        raise
    except Exception as error:
        last = batch.start + batch.count - 1
        message = f"{named} fails on samples {batch.start} to {last}: {first_line(error)}"
        raise EngineError("verification-failed", message) from error


def _rows_file(folder: Path, reference: np.ndarray[Any, Any]) -> np.memmap[Any, Any]:
    return np.lib.format.open_memmap(folder / MEASURED_ROWS, "w+", np.float32, reference.shape)


def _require_agreement(
    named: str, floats: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]
) -> None:
    """Either the artifact equals the reference, or, where rounding ties fall otherwise, it is as close to float."""
    if sqnr_of(expected, rows) >= AGREEMENT_DB:
        return
    computed, measured = sqnr_of(floats, expected), sqnr_of(floats, rows)
    if measured < computed - TOLERANCE_DB:
        raise EngineError(
            "verification-failed",
            f"{named} is {measured} dB from float; the engine computed {computed} dB for the same weights, "
            f"and at most {TOLERANCE_DB} dB less was expected.",
        )


def sqnr_of(signal: np.ndarray[Any, Any], approximation: np.ndarray[Any, Any]) -> float:
    against = Comparison()
    against.add(signal, approximation)
    return against.similarity.sqnr_db


def _forward(run: Run, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    def forward() -> object:
        with torch.no_grad():
            return run(inputs)

    return forward
