"""Measuring what will be delivered: each artifact is loaded by itself and run on the evaluation data."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbit.contract.report import Latency
from workers.engine.artifacts.kinds import KINDS, Run, load_pt2
from workers.engine.data import Batch, Data
from workers.engine.draft import Draft
from workers.engine.graph.run import primary_output
from workers.engine.measurement.float_pass import output_rows
from workers.engine.measurement.kernels import ExecutedKernel, executed_kernels
from workers.engine.measurement.latency import Race, race, summarize_races
from workers.engine.metrics.similarity import Comparison
from workers.engine.task import Task
from workers.errors import EngineError, first_line

AGREEMENT_DB = 35.0  # closer than this to the reference is rounding
TOLERANCE_DB = 1.0
MEASURED_ROWS = "int8.npy"  # in the folder: the outputs of the representative artifact, laid out like float.npy
LARGEST_KEPT = 128 << 20  # bytes of an artifact that stays loaded while others are measured

Rows = np.ndarray[Any, Any]


@dataclass(frozen=True)
class MeasuredArtifact:
    """One artifact: its output against float and, for the representative one, the kernel of each layer."""

    comparison: Comparison
    executed: dict[str, ExecutedKernel]


@dataclass(frozen=True)
class Measurements:
    """All that the verifying process measured: artifacts by kind, and ``seconds`` by stage."""

    data: Data
    artifacts: Mapping[str, MeasuredArtifact]
    latency: Latency | None
    seconds: Mapping[str, float]


class LoadedArtifacts:
    """The artifacts of a job, each loaded the way its user will. Small ones stay loaded; of large ones only one is in
    memory at a time. ``kinds`` run; ``stores`` hold no program."""

    def __init__(self, kinds: Sequence[str], folder: Path) -> None:
        self.kinds = tuple(kind for kind in kinds if KINDS[kind].load is not None)
        self.stores = tuple(kind for kind in kinds if KINDS[kind].load is None)
        self.folder = folder
        self.loaded: dict[str, Run] = {}

    def load(self, kind: str) -> Run:
        """Raises ``EngineError('verification-failed')``: whatever the cause, this file must not be delivered."""
        if kind in self.loaded:
            return self.loaded[kind]
        path, load = self.folder / "out" / KINDS[kind].file, KINDS[kind].load
        assert load is not None
        try:
            run = load(path)
        except Exception as error:
            raise EngineError("verification-failed", f"{path.name} does not load: {first_line(error)}") from error
        if path.stat().st_size <= LARGEST_KEPT:
            self.loaded[kind] = run
        return run

    def check_stores(self) -> None:
        """Raises ``EngineError('verification-failed')`` if one does not hold what the engine computed."""
        for kind in self.stores:
            path, check = self.folder / "out" / KINDS[kind].file, KINDS[kind].check
            assert check is not None
            try:
                check(path)
            except Exception as error:
                raise EngineError("verification-failed", f"{path.name} is not right: {first_line(error)}") from error


def measure_artifacts(
    artifacts: LoadedArtifacts, draft: Draft, data: Data, folder: Path, advance: Callable[[float], None]
) -> dict[str, MeasuredArtifact]:
    """Run each artifact over all of ``data``, compare it with the engine's int8 result, and profile a batch of one."""
    artifacts.check_stores()
    measured: dict[str, MeasuredArtifact] = {}
    for index, kind in enumerate(artifacts.kinds):
        run, is_representative = artifacts.load(kind), kind == representative(artifacts.kinds)
        output = folder / MEASURED_ROWS if is_representative and data.labels is not None else None
        comparison = Comparison()
        for share in _compare(comparison, kind, run, data, draft.finite, folder, output):
            advance((index + share) / len(artifacts.kinds))
        forward = _bind_inputs(run, next(data.batches()).inputs)
        executed = executed_kernels(draft.calls[kind], forward) if is_representative else {}
        measured[kind] = MeasuredArtifact(comparison, executed)
    return measured


def _compare(
    comparison: Comparison, kind: str, run: Run, data: Data, finite: bool, folder: Path, output: Path | None
) -> Iterator[float]:
    """Add the artifact's rows to ``comparison``, and write them to ``output``; yields the share of the data done.
    ``finite``: whether the float output is, so that the artifact can be held against what the engine computed."""
    reference, row = np.load(folder / "float.npy", mmap_mode="r"), 0
    written = np.lib.format.open_memmap(output, "w+", np.float32, reference.shape) if output is not None else None
    for batch in data.batches():
        rows = _run_artifact(kind, run, batch)
        if batch.start == 0 and finite:
            _require_agreement(kind, np.asarray(reference[: len(rows)]), np.load(folder / "expected.npy"), rows)
        comparison.add(np.asarray(reference[row : row + len(rows)]), rows)
        if written is not None:
            written[row : row + len(rows)] = rows
        row += len(rows)
        yield (batch.start + batch.count) / data.samples


def representative(kinds: Collection[str]) -> str:
    """The artifact whose accuracy and kernels the report shows: TorchScript where there is one, since it runs in
    int8."""
    return "torchscript" if "torchscript" in kinds else next(iter(kinds))


def measure_latency(artifacts: LoadedArtifacts, task: Task, data: Data, folder: Path) -> Latency | None:
    """Every artifact against the float program, which this process opens only now."""
    if not artifacts.kinds:
        return None
    batch, path = next(data.batches()), folder / task.program_file
    large = path.stat().st_size > LARGEST_KEPT
    races: dict[str, Race] = {}
    for kinds in [(kind,) for kind in artifacts.kinds] if large else [artifacts.kinds]:
        after = {kind: _bind_inputs(artifacts.load(kind), batch.inputs) for kind in kinds}
        before = load_pt2(path)  # last: loading takes up to three times an artifact's size
        races |= race(_bind_inputs(before, batch.inputs), after, len(kinds) / len(artifacts.kinds))
        if large:
            del before, after
            gc.collect()  # graph modules refer to themselves
    return summarize_races(races, task.threads, len(batch.inputs[0]))


def _run_artifact(kind: str, run: Run, batch: Batch) -> Rows:
    """Its primary output for one batch, a row per sample."""
    try:
        with torch.no_grad():
            return output_rows(primary_output(run(batch.inputs)), batch)
    except EngineError:
        raise
    except Exception as error:
        last = batch.start + batch.count - 1
        message = f"{KINDS[kind].file} fails on samples {batch.start} to {last}: {first_line(error)}"
        raise EngineError("verification-failed", message) from error


def _require_agreement(kind: str, floats: Rows, expected: Rows, rows: Rows) -> None:
    """The artifact must equal the reference or, where rounding ties fall differently, be as close to float."""
    if _sqnr_db(expected, rows) >= AGREEMENT_DB:
        return
    computed, measured = _sqnr_db(floats, expected), _sqnr_db(floats, rows)
    if measured < computed - TOLERANCE_DB:
        raise EngineError(
            "verification-failed",
            f"{KINDS[kind].file} is {measured} dB from float; the engine computed {computed} dB for the same weights, "
            f"and at most {TOLERANCE_DB} dB less was expected.",
        )


def _sqnr_db(signal: Rows, approximation: Rows) -> float:
    comparison = Comparison()
    comparison.add(signal, approximation)
    return comparison.similarity.sqnr_db


def _bind_inputs(run: Run, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    def forward() -> object:
        with torch.no_grad():
            return run(inputs)

    return forward
