"""What the numbers of a report mean, in words that every rendering shares."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fewbit.contract.metrics import is_lower_better, is_share
from fewbit.contract.report import Accuracy, Finding, Gate, Latency, LayerReport, Metric, Report, Requested, Scheme
from fewbit.contract.resources import Reason
from fewbit.rendering.numbers import counted, kilobytes, milliseconds, minus, percent, points, small

NumberAndMeaning = tuple[str, str]
SEVERITIES = ("error", "warning", "info")


# The verdict


def verdict_sentence(report: Report) -> str:
    """Why the verdict is what it is."""
    unmet = [gate for gate in report.gates if not gate.met]
    if unmet:
        return f"{len(unmet)} of {counted(len(report.gates), 'gate')} not met: " + "; ".join(map(gate_words, unmet))
    to_review = [finding for finding in report.findings if finding.severity != "info"]
    gates_met = (
        f"{len(report.gates)} of {counted(len(report.gates), 'gate')} met" if report.gates else "No gate was set"
    )
    review = f", {counted(len(to_review), 'finding')} to look at" if to_review else ", nothing to look at"
    return gates_met + review


def gate_words(gate: Gate) -> str:
    value = "not measured" if gate.value is None else f"measured {gate.value + 0.0:.4g}"
    return f"{gate.gate} {value}, limit {gate.limit:g}"


# The four numbers at the top


def four_numbers(report: Report) -> dict[str, NumberAndMeaning]:
    """Coverage, size, accuracy, speed: the number, and what it means."""
    return {
        "coverage": coverage_words(report),
        "size": size_words(report),
        "accuracy": accuracy_words(report.accuracy),
        "speed": speed_words(report.latency),
    }


def coverage_words(report: Report) -> NumberAndMeaning:
    coverage = report.coverage
    count = f"of parameters int8\n{coverage.layers.quantized} of {counted(coverage.layers.total, 'layer')}"
    return percent(coverage.parameters), f"{count}\n{percent(coverage.macs)} of the arithmetic"


def size_words(report: Report) -> NumberAndMeaning:
    size = report.size
    if size.after is None or size.ratio is None:
        return "—", f"{kilobytes(size.before)} before\nthis job made no artifact"
    return f"{size.ratio:.2f} ×", f"{kilobytes(size.before)} before\n{kilobytes(size.after)} after"


def accuracy_words(accuracy: Accuracy | None) -> NumberAndMeaning:
    """The first metric if the data has labels, otherwise how close the outputs are."""
    if accuracy is None:
        return "—", "not measured"
    if accuracy.labelled and accuracy.metrics:
        metric = accuracy.metrics[0]
        same = accuracy.output.top1_agreement == 1 and not accuracy.flips
        change = (
            f"no prediction changed\nin {counted(accuracy.samples, 'sample')}"
            if same
            else drop_words(metric, accuracy.samples)
        )
        return metric_value(metric, metric.after), f"{metric_value(metric, metric.before)} before\n{change}"
    data = "synthetic inputs: weak" if accuracy.kind == "synthetic" else "no labels"
    return f"{accuracy.output.sqnr_db:.1f} dB", f"output SQNR\n{counted(accuracy.samples, 'sample')}\n{data}"


def metric_value(metric: Metric, value: float, digits: int = 2) -> str:
    """Classification and retrieval metrics are shares of 1; those of regression have a scale of their own."""
    return percent(value, digits) if is_share(metric.name) else small(value)


def metric_change(metric: Metric, change: float) -> str:
    if not is_share(metric.name):
        return minus(f"{change:+.3g}") if change else "±0"
    return points(change)


def drop_words(metric: Metric, samples: int) -> str:
    """The difference, and whether it is more than chance: a point estimate on a few hundred samples says little."""
    unit = " points" if is_share(metric.name) else ""
    change = f"{metric_change(metric, metric.delta)}{unit}"
    if metric.ci95 is None:
        return f"{change}\n{counted(samples, 'sample')}"
    low, high = metric.ci95
    if low <= 0 <= high:
        return f"{change}: not distinguishable from zero with {counted(samples, 'sample')}"
    word = "loss" if (metric.delta < 0) != is_lower_better(metric.name) else "gain"
    return f"{change}: a real {word}, {metric_change(metric, low)} to {metric_change(metric, high)} (95 %)"


def speed_words(latency: Latency | None) -> NumberAndMeaning:
    """The fastest artifact against the float model."""
    if latency is None or not latency.artifacts:
        return "—", "not measured"
    kind, best = max(latency.artifacts.items(), key=lambda item: item[1].speedup)
    times = f"{milliseconds(latency.before_ms.p50)} before\n{milliseconds(best.p50)} as {kind}"
    slower = " (slower)" if best.speedup < 1 else ""
    return f"{best.speedup:.2f} ×{slower}", f"{times}\nbatch {latency.batch}, {counted(latency.threads, 'thread')}"


# Layers


def layer_name(name: str) -> str:
    """The root module's name is empty."""
    return name or "(root)"


def requested_words(requested: Requested | None) -> str:
    if requested is None:
        return "—"
    if not requested.quantized or requested.weights is None:
        return "float"
    return f"{requested.weights.dtype} {requested.activations or 'weight only'}"


def converted_words(layer: LayerReport) -> str:
    return layer.scheme.weights.dtype if layer.scheme else ("int8" if layer.quantized else "float")


def scheme_words(scheme: Scheme) -> str:
    """How a layer is quantized, in one line."""
    parts = [f"weights {scheme.weights.dtype} {scheme.weights.granularity.replace('_', ' ')}"]
    if (activations := scheme.activations) is None:
        parts.append("activations float")
    else:
        bits = ", seven bits" if activations.reduce_range else ""
        granularity = activations.granularity.replace("_", " ")
        parts.append(f"activations {activations.dtype} {activations.mode} {granularity}{bits}")
    return "; ".join(parts + ([f"smoothed, alpha {scheme.smooth:g}"] if scheme.smooth is not None else []))


def by_sensitivity(layers: Iterable[LayerReport]) -> list[LayerReport]:
    """The layers whose sensitivity was measured, most sensitive first."""
    known = [layer for layer in layers if sensitivity(layer) is not None]
    return sorted(known, key=lambda layer: -(sensitivity(layer) or 0.0))


def sensitivity(layer: LayerReport) -> float | None:
    return layer.error.sensitivity if layer.error else None


# What to do


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


@dataclass(frozen=True)
class Step:
    """One thing to do: why, for which layers, and the patch of the job spec that does it."""

    code: str
    severity: str
    layers: tuple[str, ...]
    remedy: str
    patch: dict[str, Any] | None


def next_steps(report: Report) -> list[Step]:
    """What errors and warnings ask for, worst first, then what would make more layers int8. No step comes twice."""
    findings = [finding for finding in worst_first(report.findings) if finding.severity != "info" and finding.remedy]
    from_findings = [
        (finding.code, finding.severity, finding.layer, finding.remedy or "", finding.patch) for finding in findings
    ]
    from_float_layers = [
        (layer.reason.code, "info", layer.name, layer.reason.remedy or "", layer.reason.patch)
        for layer in report.layers
        if layer.reason and layer.reason.patch is not None and not layer.quantized
    ]
    steps: dict[str, Step] = {}
    for code, severity, layer, remedy, patch in from_findings + from_float_layers:
        key = json.dumps([code, remedy, patch], sort_keys=True)
        before = steps.get(key)
        layers = (*(before.layers if before else ()), *([layer] if layer is not None else []))
        steps[key] = Step(code, before.severity if before else severity, layers, remedy, patch)
    return list(steps.values())


def float_layers(layers: Iterable[LayerReport]) -> dict[str, tuple[Reason, list[str]]]:
    """The reasons why layers stayed float, by code, with the names of these layers."""
    return by_reason((layer.name, layer.reason) for layer in layers if not layer.quantized)


def by_reason(pairs: Iterable[tuple[str, Reason | None]]) -> dict[str, tuple[Reason, list[str]]]:
    """The reasons by code, with the layers they apply to."""
    names: dict[str, list[str]] = defaultdict(list)
    first: dict[str, Reason] = {}
    for name, reason in pairs:
        if reason:
            names[reason.code].append(name)
            first.setdefault(reason.code, reason)
    return {code: (reason, names[code]) for code, reason in first.items()}


def first_few(names: Sequence[str], few: int = 3) -> str:
    more = f" and {len(names) - few} more" if len(names) > few else ""
    return ", ".join(map(layer_name, names[:few])) + more


# Calibration


def calibration_words(report: Report) -> Iterator[str]:
    """What the calibration data was, and whether it was enough."""
    calibration = report.calibration
    if calibration is None:
        return
    settled = calibration.recommended_samples
    yield f"{counted(calibration.samples, 'sample')}; " + (
        f"the ranges had settled after {settled}."
        if settled is not None
        else "the ranges had not settled, so give more."
    )
    if calibration.duplicates:
        yield f"{counted(calibration.duplicates, 'duplicate sample')}, which add nothing to the ranges."
    for names, words in (
        (calibration.constant_inputs, "never changes"),
        (calibration.non_finite_inputs, "holds NaN or infinity"),
    ):
        yield from (f"Input {name} {words}." for name in names)
