"""The report: everything that was measured, put together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.contract.metrics import wanted
from fewbit.contract.report import (
    Accuracy,
    Execution,
    Finding,
    LayerReport,
    LoaderOutput,
    OutputSimilarity,
    Report,
    ReportArtifact,
    Size,
)
from workers.engine.artifacts.kinds import KINDS
from workers.engine.draft import Draft
from workers.engine.measurement.kernels import ExecutedKernel
from workers.engine.measurement.machine import peak_memory_bytes, provenance
from workers.engine.measurement.verification import MEASURED_ROWS, MeasuredArtifact, Measurements, representative
from workers.engine.metrics.accuracy import LabelMetrics, measure_on_labels
from workers.engine.metrics.conclusion import conclusion
from workers.engine.reporting import findings
from workers.engine.reporting.gates import check_gates, verdict
from workers.engine.reporting.patches import merge_patches
from workers.engine.task import Task


def assemble_report(task: Task, draft: Draft, measurements: Measurements, folder: Path) -> Report:
    """The report from what the converting process knew (``draft``) and the verifying one measured."""
    if draft.random:
        measurements = replace(measurements, artifacts={})  # two calls differ: no distance says anything
    measured, latency = measurements.artifacts, measurements.latency
    artifacts = tuple(_artifact(kind, measured.get(kind), folder) for kind in draft.artifacts)
    size = _size(task.model_size, artifacts)
    accuracy, metric_findings = _accuracy(task, measurements, folder)
    all_findings = (
        *draft.findings,
        *metric_findings,
        *_measured_findings(task, draft, measurements),
        *findings.size_findings(artifacts, task.model_size),
    )
    gates = check_gates(task.spec.gates, draft.coverage, size, accuracy, latency)
    timings_s = draft.timings_s | dict(measurements.seconds)
    return Report(
        job=task.job,
        model=task.model,
        spec=task.spec,
        verdict=verdict(gates, all_findings),
        gates=gates,
        coverage=draft.coverage,
        size=size,
        accuracy=accuracy,
        latency=latency,
        sensitivity=draft.sensitivity,
        calibration=draft.calibration,
        layers=_add_kernels(draft.rows, measured),
        products=draft.products,
        findings=all_findings,
        patch=merge_patches(all_findings, task.spec),
        artifacts=artifacts,
        provenance=provenance(
            task.threads, task.spec.seed, timings_s, max(draft.peak_memory_bytes, peak_memory_bytes())
        ),
    )


def _accuracy(task: Task, measurements: Measurements, folder: Path) -> tuple[Accuracy | None, tuple[Finding, ...]]:
    if not measurements.artifacts:
        return None, ()
    kind, data = representative(measurements.artifacts), measurements.data
    comparison = measurements.artifacts[kind].comparison
    on_labels = _measure_on_labels(task, data.labels, folder) if data.labels is not None else LabelMetrics()
    flips = on_labels.flips if on_labels.flips is not None else comparison.flips
    metrics, classes, output = on_labels.metrics, on_labels.classes, comparison.similarity
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
        conclusion=conclusion(metrics, output, flips, classes, data.samples, data.kind == "synthetic"),
    ), on_labels.findings


def _measure_on_labels(task: Task, labels: np.ndarray[Any, Any], folder: Path) -> LabelMetrics:
    before, after = (np.load(folder / name, mmap_mode="r") for name in ("float.npy", MEASURED_ROWS))
    return measure_on_labels(wanted(task.spec), before, after, labels, task.spec.seed)


def _measured_findings(task: Task, draft: Draft, measurements: Measurements) -> tuple[Finding, ...]:
    kind, latency = measurements.data.kind, measurements.latency
    return (
        *((findings.synthetic_data(),) if kind == "synthetic" else ()),
        *((findings.evaluated_on_calibration(),) if kind == "real" and task.spec.evaluation is None else ()),
        *((findings.not_finite(),) if not draft.finite else ()),
        *(findings.latency_findings(latency) if latency else ()),
    )


def _add_kernels(rows: tuple[LayerReport, ...], measured: Mapping[str, MeasuredArtifact]) -> tuple[LayerReport, ...]:
    if not measured:
        return rows
    kind = representative(measured)
    executed = measured[kind].executed
    total = sum(kernel.ms for kernel in executed.values()) or 1.0
    return tuple(_add_kernel(row, executed.get(row.name), total, KINDS[kind].file) for row in rows)


def _add_kernel(row: LayerReport, kernel: ExecutedKernel | None, total: float, artifact: str) -> LayerReport:
    if kernel is None:
        return row
    execution = Execution(
        artifact=artifact, kernel=kernel.kernel, ms=round(kernel.ms, 4), share=round(kernel.ms / total, 4)
    )
    return row.model_copy(update={"executed": kernel.kernel, "execution": execution})


def _artifact(kind: str, measured: MeasuredArtifact | None, folder: Path) -> ReportArtifact:
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
        loaders={name: _loader(loaded.similarity) for name, loaded in measured.loaders.items()} if measured else {},
    )


def _loader(similarity: OutputSimilarity) -> LoaderOutput:
    return LoaderOutput(sqnr_db=similarity.sqnr_db, max_abs_error=similarity.max_abs_error)


def _size(before: int, artifacts: tuple[ReportArtifact, ...]) -> Size:
    after = min((artifact.size for artifact in artifacts if KINDS[artifact.kind].runs), default=None)
    return Size(before=before, after=after, ratio=round(after / before, 4) if after is not None else None)
