"""Measuring what will be delivered: each artifact loaded here, by itself, and run on the evaluation data."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbit.contract.metrics import wanted
from fewbit.contract.report import (
    Accuracy,
    Execution,
    Finding,
    Latency,
    LayerReport,
    Report,
    ReportArtifact,
    Size,
)
from workers.engine.artifacts.kinds import KINDS, Run, load_pt2
from workers.engine.data import Batch, Data
from workers.engine.draft import Draft
from workers.engine.errors import EngineError, first_line
from workers.engine.graph.run import primary_output
from workers.engine.measurement.float_pass import output_rows
from workers.engine.measurement.kernels import Executed, executed_kernels
from workers.engine.measurement.latency import Race, latency_of, race
from workers.engine.measurement.machine import peak_memory_bytes, provenance
from workers.engine.metrics.accuracy import labelled
from workers.engine.metrics.conclusion import conclusion
from workers.engine.metrics.similarity import Comparison
from workers.engine.reporting import findings
from workers.engine.reporting.gates import check_gates, verdict
from workers.engine.reporting.patches import all_in_one
from workers.engine.task import Task

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


def report_of(
    task: Task,
    draft: Draft,
    data: Data,
    measured: Mapping[str, Measured],
    latency: Latency | None,
    folder: Path,
    seconds: dict[str, float],
) -> Report:
    """Put together everything that was measured."""
    artifacts = tuple(_artifact(kind, measured.get(kind), folder) for kind in draft.artifacts)
    size = _size(task.model_size, artifacts)
    accuracy, accuracy_findings = _accuracy(task, data, measured, folder)
    noted = (*draft.findings, *accuracy_findings, *_measured_findings(task, draft, data, latency))
    gates = check_gates(task.spec.gates, draft.coverage, size, accuracy, latency)
    return Report(
        job=task.job,
        model=task.model,
        spec=task.spec,
        verdict=verdict(gates, noted),
        gates=gates,
        coverage=draft.coverage,
        size=size,
        accuracy=accuracy,
        latency=latency,
        sensitivity=draft.sensitivity,
        calibration=draft.calibration,
        layers=_with_kernels(draft.rows, measured),
        products=draft.products,
        findings=noted,
        patch=all_in_one(noted, task.spec),
        artifacts=artifacts,
        provenance=provenance(
            task.threads, task.spec.seed, draft.timings_s | seconds, max(draft.peak_memory_bytes, peak_memory_bytes())
        ),
    )


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


def _accuracy(
    task: Task, data: Data, measured: Mapping[str, Measured], folder: Path
) -> tuple[Accuracy | None, tuple[Finding, ...]]:
    if not measured:
        return None, ()
    kind = representative(measured)
    comparison, said = measured[kind].comparison, None
    if data.labels is not None:
        before, after = (np.load(folder / name, mmap_mode="r") for name in ("float.npy", MEASURED_ROWS))
        said = labelled(wanted(task.spec), before, after, data.labels, task.spec.seed)
    metrics, classes = (said.metrics, said.classes) if said else ((), ())
    flips = said.flips if said and said.flips is not None else comparison.flips
    output, synthetic = comparison.similarity, data.kind == "synthetic"
    return Accuracy(
        artifact=KINDS[kind].file,
        samples=data.samples,
        batch_size=data.batch_size,
        labelled=bool(metrics),
        kind=data.kind,
        metrics=metrics,
        output=output,
        flips=flips,
        classes=classes,
        conclusion=conclusion(metrics, output, flips, classes, data.samples, synthetic),
    ), (said.findings if said else ())


def _measured_findings(task: Task, draft: Draft, data: Data, latency: Latency | None) -> tuple[Finding, ...]:
    return (
        *((findings.synthetic_data(),) if data.kind == "synthetic" else ()),
        *((findings.evaluated_on_calibration(),) if data.kind == "real" and task.spec.evaluation is None else ()),
        *((findings.not_finite(),) if not draft.finite else ()),
        *(findings.latency_findings(latency) if latency else ()),
    )


def _with_kernels(rows: tuple[LayerReport, ...], measured: Mapping[str, Measured]) -> tuple[LayerReport, ...]:
    if not measured:
        return rows
    kind = representative(measured)
    executed = measured[kind].executed
    total = sum(each.ms for each in executed.values()) or 1.0
    return tuple(_with_kernel(row, executed.get(row.name), total, KINDS[kind].file) for row in rows)


def _with_kernel(row: LayerReport, ran: Executed | None, total: float, artifact: str) -> LayerReport:
    if ran is None:
        return row
    execution = Execution(artifact=artifact, kernel=ran.kernel, ms=round(ran.ms, 4), share=round(ran.ms / total, 4))
    return row.model_copy(update={"executed": ran.kernel, "execution": execution})


def _artifact(kind: str, measured: Measured | None, folder: Path) -> ReportArtifact:
    path = folder / "out" / KINDS[kind].file
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ReportArtifact(
        name=path.name,
        kind=kind,
        size=path.stat().st_size,
        sha256=digest,
        verified=True,
        output=measured.comparison.similarity if measured else None,
    )


def _size(before: int, artifacts: tuple[ReportArtifact, ...]) -> Size:
    after = min((each.size for each in artifacts if KINDS[each.kind].load is not None), default=None)
    return Size(before=before, after=after, ratio=round(after / before, 4) if after is not None else None)


def _forward(run: Run, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    def forward() -> object:
        with torch.no_grad():
            return run(inputs)

    return forward
