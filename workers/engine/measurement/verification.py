"""Measuring what will be delivered: an artifact is loaded by itself and run on the evaluation data."""

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


class AnswersDiffer(EngineError):
    """An artifact runs, and is further from float than the engine computed."""

    def __init__(self, detail: str) -> None:
        super().__init__("verification-failed", detail)


@dataclass(frozen=True)
class MeasuredArtifact:
    """One artifact: its output against float, the same for every documented way to load it and, for the representative
    one, the kernel of each layer."""

    comparison: Comparison
    loaders: dict[str, Comparison]
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
        self.kinds = tuple(kind for kind in kinds if KINDS[kind].runs)
        self.stores = tuple(kind for kind in kinds if not KINDS[kind].runs)
        self.folder = folder
        self.loaded: dict[str, Run] = {}

    def load(self, kind: str) -> Run:
        """The first documented way. Raises what ``load_by`` raises."""
        if kind in self.loaded:
            return self.loaded[kind]
        run = self.load_by(KINDS[kind].loader, kind)
        if self.path(kind).stat().st_size <= LARGEST_KEPT:
            self.loaded[kind] = run
        return run

    def load_by(self, loader: str, kind: str) -> Run:
        """Raises ``EngineError('verification-failed')``: whatever the cause, this file must not be delivered."""
        try:
            return KINDS[kind].loaders[loader](self.path(kind))
        except Exception as error:
            message = f"{self.path(kind).name} does not load by {loader}: {first_line(error)}"
            raise EngineError("verification-failed", message) from error

    def check_store(self, kind: str) -> None:
        """Raises ``EngineError('verification-failed')`` if it does not hold what the engine computed."""
        check = KINDS[kind].check
        assert check is not None
        try:
            check(self.path(kind))
        except Exception as error:
            message = f"{self.path(kind).name} is not right: {first_line(error)}"
            raise EngineError("verification-failed", message) from error

    def path(self, kind: str) -> Path:
        return self.folder / "out" / KINDS[kind].file

    def forget_loaded(self) -> None:
        """Load them anew: what a program keeps from call to call starts over."""
        self.loaded.clear()

    def reject(self, kind: str) -> None:
        """Delete its file."""
        self.path(kind).unlink()
        self.loaded.pop(kind, None)
        self.kinds = tuple(other for other in self.kinds if other != kind)
        self.stores = tuple(other for other in self.stores if other != kind)


@dataclass(frozen=True)
class Standard:
    """What artifacts are compared with. ``comparable``: whether the float output is finite, and the same each time."""

    floats: Rows
    expected: Rows
    comparable: bool

    @classmethod
    def read(cls, folder: Path, draft: Draft) -> Standard:
        floats = np.load(folder / "float.npy", mmap_mode="r")
        return cls(floats, np.load(folder / "expected.npy"), draft.finite and not draft.random)


def measure_artifact(
    kind: str,
    artifacts: LoadedArtifacts,
    draft: Draft,
    data: Data,
    standard: Standard,
    advance: Callable[[float], None],
) -> MeasuredArtifact:
    """Run one artifact over all of ``data``, in every documented way, and compare it with the engine's int8 result. The
    representative one is profiled on a batch, and its rows are written.

    Raises ``EngineError('verification-failed')``."""
    is_representative = kind == representative(artifacts.kinds)
    run, name = artifacts.load(kind), artifacts.path(kind).name
    output = artifacts.folder / MEASURED_ROWS if is_representative and data.labels is not None else None
    comparison = Comparison()
    for share in _compare(comparison, name, run, data, standard, output):
        advance(share)
    loaders = {KINDS[kind].loader: comparison}
    forward = _bind_inputs(run, next(data.batches()).inputs)
    executed = executed_kernels(draft.calls[kind], forward) if is_representative else {}
    for loader in list(KINDS[kind].loaders)[1:]:
        loaders[loader] = Comparison()
        run = artifacts.load_by(loader, kind)
        for share in _compare(loaders[loader], f"{name}, loaded by {loader},", run, data, standard, None):
            advance(share)
    return MeasuredArtifact(comparison, loaders, executed)


def _compare(
    comparison: Comparison, name: str, run: Run, data: Data, standard: Standard, output: Path | None
) -> Iterator[float]:
    """Add the artifact's rows to ``comparison``, and write them to ``output``; yields the share of the data done."""
    floats, row = standard.floats, 0
    written = np.lib.format.open_memmap(output, "w+", np.float32, floats.shape) if output is not None else None
    for batch in data.batches():
        rows = run_batch(name, run, batch)
        if batch.start == 0 and standard.comparable:
            _require_agreement(name, np.asarray(floats[: len(rows)]), standard.expected, rows)
        comparison.add(np.asarray(floats[row : row + len(rows)]), rows)
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
    return summarize_races(races, task.threads, batch.size)


def run_batch(name: str, run: Run, batch: Batch) -> Rows:
    """The primary output for one batch, a row per sample. Raises ``EngineError('verification-failed')``."""
    try:
        with torch.no_grad():
            return output_rows(primary_output(run(batch.inputs)), batch)
    except EngineError:
        raise
    except Exception as error:
        last = batch.start + batch.count - 1
        message = f"{name} fails on samples {batch.start} to {last}: {first_line(error)}"
        raise EngineError("verification-failed", message) from error


def _require_agreement(name: str, floats: Rows, expected: Rows, rows: Rows) -> None:
    """The artifact must equal the reference or, where rounding ties fall differently, be as close to float."""
    if _sqnr_db(expected, rows) >= AGREEMENT_DB:
        return
    computed, measured = _sqnr_db(floats, expected), _sqnr_db(floats, rows)
    if measured < computed - TOLERANCE_DB:
        raise AnswersDiffer(
            f"{name} is {measured} dB from float; the engine computed {computed} dB for the same weights, "
            f"and at most {TOLERANCE_DB} dB less was expected."
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
