"""Measuring what will be delivered: each artifact loaded here, by itself, and run on the evaluation data."""

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
    """One artifact: its output against float, and, of the one that speaks for the job, the kernel of each layer."""

    comparison: Comparison
    executed: dict[str, Executed]


class Runs:
    """The artifacts of a job, each loaded the way its user will. Small ones stay loaded; of large ones there is one in
    memory at a time. ``kinds`` run; ``stores`` hold no program."""

    def __init__(self, kinds: Sequence[str], folder: Path) -> None:
        self.kinds = tuple(each for each in kinds if KINDS[each].load is not None)
        self.stores = tuple(each for each in kinds if KINDS[each].load is None)
        self.folder = folder
        self.kept: dict[str, Run] = {}

    def load(self, kind: str) -> Run:
        """Raises ``EngineError('verification-failed')``: whatever the cause, this file must not be delivered."""
        if kind in self.kept:
            return self.kept[kind]
        path, load = self.folder / "out" / KINDS[kind].file, KINDS[kind].load
        assert load is not None
        try:
            run = load(path)
        except Exception as error:
            raise EngineError("verification-failed", f"{path.name} does not load: {first_line(error)}") from error
        if path.stat().st_size <= LARGEST_KEPT:
            self.kept[kind] = run
        return run

    def check_stores(self) -> None:
        """Raises ``EngineError('verification-failed')`` for one that does not hold what the engine computed."""
        for kind in self.stores:
            path, check = self.folder / "out" / KINDS[kind].file, KINDS[kind].check
            assert check is not None
            try:
                check(path)
            except Exception as error:
                raise EngineError("verification-failed", f"{path.name} is not right: {first_line(error)}") from error


def measure_artifacts(
    runs: Runs, draft: Draft, data: Data, folder: Path, advance: Callable[[float], None]
) -> dict[str, Measured]:
    """Run each artifact over all of ``data``, hold it against the engine's int8 result, and profile a batch of one."""
    runs.check_stores()
    measured = {}
    expected = np.load(folder / "expected.npy")
    reference = np.load(folder / "float.npy", mmap_mode="r")
    first = next(data.batches())
    speaks = representative(runs.kinds) if runs.kinds else None
    for index, kind in enumerate(runs.kinds):
        run, comparison, row = runs.load(kind), Comparison(), 0
        kept = _rows_file(folder, reference) if kind == speaks and data.labels is not None else None
        for batch in data.batches():
            rows = _rows(kind, run, batch)
            if batch.start == 0 and draft.finite:
                _require_agreement(kind, np.asarray(reference[: len(rows)]), expected, rows)
            comparison.add(np.asarray(reference[row : row + len(rows)]), rows)
            if kept is not None:
                kept[row : row + len(rows)] = rows
            row += len(rows)
            advance((index + (batch.start + batch.count) / data.samples) / len(runs.kinds))
        executed = executed_kernels(draft.calls[kind], _forward(run, first.inputs)) if kind == speaks else {}
        measured[kind] = Measured(comparison, executed)
    return measured


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
    return latency_of(races, task.threads, len(batch.inputs[0]))


def _rows(kind: str, run: Run, batch: Batch) -> np.ndarray[Any, Any]:
    try:
        with torch.no_grad():
            return output_rows(primary_output(run(batch.inputs)), batch)
    except EngineError:
        raise
    except Exception as error:
        last = batch.start + batch.count - 1
        message = f"{KINDS[kind].file} fails on samples {batch.start} to {last}: {first_line(error)}"
        raise EngineError("verification-failed", message) from error


def _rows_file(folder: Path, reference: np.ndarray[Any, Any]) -> np.memmap[Any, Any]:
    return np.lib.format.open_memmap(folder / MEASURED_ROWS, "w+", np.float32, reference.shape)


def _require_agreement(
    kind: str, floats: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]
) -> None:
    """Either the artifact equals the reference, or, where rounding ties fall otherwise, it is as close to float."""
    if _sqnr(expected, rows) >= AGREEMENT_DB:
        return
    computed, measured = _sqnr(floats, expected), _sqnr(floats, rows)
    if measured < computed - TOLERANCE_DB:
        raise EngineError(
            "verification-failed",
            f"{KINDS[kind].file} is {measured} dB from float; the engine computed {computed} dB for the same weights, "
            f"and at most {TOLERANCE_DB} dB less was expected.",
        )


def _sqnr(signal: np.ndarray[Any, Any], approximation: np.ndarray[Any, Any]) -> float:
    against = Comparison()
    against.add(signal, approximation)
    return against.similarity.sqnr_db


def _forward(run: Run, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    def forward() -> object:
        with torch.no_grad():
            return run(inputs)

    return forward
