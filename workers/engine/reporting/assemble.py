"""The report: everything that was measured, put together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fewbit.contract.metrics import wanted
from fewbit.contract.report import Accuracy, Execution, Finding, Latency, LayerReport, Report, ReportArtifact, Size
from workers.engine.artifacts.kinds import KINDS
from workers.engine.data import Data
from workers.engine.draft import Draft
from workers.engine.measurement.kernels import Executed
from workers.engine.measurement.machine import peak_memory_bytes, provenance
from workers.engine.measurement.verification import MEASURED_ROWS, Measured, representative
from workers.engine.metrics.accuracy import labelled
from workers.engine.metrics.conclusion import conclusion
from workers.engine.reporting import findings
from workers.engine.reporting.gates import check_gates, verdict
from workers.engine.reporting.patches import all_in_one
from workers.engine.task import Task


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
