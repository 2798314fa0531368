"""Jobs side by side: ``GET /compare``. Layers are matched by name; what a job lacks is null."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from fewbit.contract.metrics import is_lower_better
from fewbit.contract.report import LayerReport, Report, Verdict
from fewbit.contract.resources import Resource
from fewbit.contract.spec import Method
from fewbit.rendering.words import scheme_words

FEWEST, MOST = 2, 8
Better = Literal["higher", "lower"]
Unit = Literal["share", "bytes", "ratio", "dB", "ms", "times", "score", "count"]


class ComparedJob(Resource):
    """One column of the comparison."""

    job: str
    model: str
    method: Method
    verdict: Verdict
    labels: dict[str, str]


class ComparedNumber(Resource):
    """One row of the summary: a value for each job, null where it was not measured. ``best``: the positions of the jobs
    with the best value; empty where all are equal or fewer than two were measured."""

    name: str
    unit: Unit
    better: Better
    values: tuple[float | None, ...]
    best: tuple[int, ...]


class ComparedCell(Resource):
    """One layer in one job."""

    quantized: bool
    scheme: str | None
    kernel: str | None
    ms: float | None
    output_sqnr_db: float | None
    sensitivity: float | None
    reason: str | None


Difference = Literal["missing", "quantized", "scheme", "kernel", "reason"]


class ComparedLayer(Resource):
    """One layer in every job, null where a job has no layer of that name. ``differences``: the fields that are not the
    same in all jobs; measured numbers are not compared. ``best`` is by ``output_sqnr_db``."""

    name: str
    jobs: tuple[ComparedCell | None, ...]
    differences: tuple[Difference, ...]
    best: tuple[int, ...]


class Comparison(Resource):
    """``GET /compare``: two to eight jobs side by side, in the order of the query."""

    jobs: tuple[ComparedJob, ...]
    summary: tuple[ComparedNumber, ...]
    layers: tuple[ComparedLayer, ...]


def compare(reports: Sequence[Report]) -> Comparison:
    """Compare two or more reports. Layers come in the order of the first job that has them."""
    by_name = [{layer.name: layer for layer in report.layers} for report in reports]
    names = list(dict.fromkeys(name for layers in by_name for name in layers))
    return Comparison(
        jobs=tuple(map(_job, reports)),
        summary=tuple(_numbers(reports)),
        layers=tuple(_layer(name, [layers.get(name) for layers in by_name]) for name in names),
    )


def _job(report: Report) -> ComparedJob:
    spec = report.spec
    return ComparedJob(
        job=report.job, model=report.model.id, method=spec.method, verdict=report.verdict, labels=spec.labels
    )


@dataclass(frozen=True)
class _Measurement:
    unit: Unit
    better: Better
    value: float | None


def _numbers(reports: Sequence[Report]) -> list[ComparedNumber]:
    """The rows of the summary, without those that no job has a value for."""
    columns = [dict(_measurements(report)) for report in reports]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [_number(name, [column.get(name) for column in columns]) for name in names]
    return [row for row in rows if any(value is not None for value in row.values)]


def _measurements(report: Report) -> Iterator[tuple[str, _Measurement]]:
    size, accuracy, latency = report.size, report.accuracy, report.latency
    yield "coverage.parameters", _Measurement("share", "higher", report.coverage.parameters)
    yield "coverage.macs", _Measurement("share", "higher", report.coverage.macs)
    yield "size.after", _Measurement("bytes", "lower", size.after)
    yield "size.ratio", _Measurement("ratio", "lower", size.ratio)
    if accuracy:
        for metric in accuracy.metrics:
            better: Better = "lower" if is_lower_better(metric.name) else "higher"
            yield f"accuracy.{metric.name}", _Measurement("score", better, metric.after)
            yield f"accuracy.{metric.name}.delta", _Measurement("score", better, metric.delta)
        yield "accuracy.flips", _Measurement("count", "lower", len(accuracy.flips))
        yield "output.sqnr_db", _Measurement("dB", "higher", accuracy.output.sqnr_db)
    if latency:
        for kind, timing in latency.artifacts.items():
            yield f"latency.{kind}.p50", _Measurement("ms", "lower", timing.p50)
            yield f"latency.{kind}.speedup", _Measurement("times", "higher", timing.speedup)
    yield "peak_memory_bytes", _Measurement("bytes", "lower", report.provenance.peak_memory_bytes)


def _number(name: str, cells: Sequence[_Measurement | None]) -> ComparedNumber:
    values = [cell.value if cell else None for cell in cells]
    kind = next(cell for cell in cells if cell)
    best = _best(values, kind.better)
    return ComparedNumber(name=name, unit=kind.unit, better=kind.better, values=tuple(values), best=best)


def _best(values: Sequence[float | None], better: Better) -> tuple[int, ...]:
    known = [value for value in values if value is not None]
    if len(set(known)) < 2:
        return ()
    top = max(known) if better == "higher" else min(known)
    return tuple(index for index, value in enumerate(values) if value == top)


def _layer(name: str, rows: Sequence[LayerReport | None]) -> ComparedLayer:
    cells = tuple(_cell(row) if row else None for row in rows)
    errors = [cell.output_sqnr_db if cell else None for cell in cells]
    return ComparedLayer(name=name, jobs=cells, differences=_differences(cells), best=_best(errors, "higher"))


def _cell(layer: LayerReport) -> ComparedCell:
    error, run = layer.error, layer.execution
    return ComparedCell(
        quantized=layer.quantized,
        scheme=scheme_words(layer.scheme) if layer.scheme else None,
        kernel=layer.executed,
        ms=run.ms if run else None,
        output_sqnr_db=error.output_sqnr_db if error else None,
        sensitivity=error.sensitivity if error else None,
        reason=layer.reason.code if layer.reason else None,
    )


def _differences(cells: Sequence[ComparedCell | None]) -> tuple[Difference, ...]:
    present = [cell for cell in cells if cell]
    missing: tuple[Difference, ...] = ("missing",) if len(present) < len(cells) else ()
    return missing + tuple(name for name in _COMPARED_FIELDS if len({getattr(cell, name) for cell in present}) > 1)


_COMPARED_FIELDS: tuple[Difference, ...] = ("quantized", "scheme", "kernel", "reason")
