"""Gates: the limits of the spec against what was measured, and the verdict they give."""

from __future__ import annotations

from collections.abc import Iterable

from fewbit.contract.metrics import is_lower_better
from fewbit.contract.report import Accuracy, Coverage, Finding, Gate, Latency, Metric, Size, Verdict
from fewbit.contract.spec import Gates


def check_gates(
    gates: Gates, coverage: Coverage, size: Size, accuracy: Accuracy | None, latency: Latency | None
) -> tuple[Gate, ...]:
    """One row a limit. A limit on something that was not measured is not met. ``min_coverage`` is of MACs."""
    drops = {metric.name: _loss(metric) for metric in accuracy.metrics} if accuracy else {}
    checked = [_at_most(f"max_drop.{name}", limit, drops.get(name)) for name, limit in (gates.max_drop or {}).items()]
    if gates.min_coverage is not None:
        checked.append(_at_least("min_coverage", gates.min_coverage, coverage.macs))
    if gates.min_output_sqnr_db is not None:
        value = accuracy.output.sqnr_db if accuracy else None
        checked.append(_at_least("min_output_sqnr_db", gates.min_output_sqnr_db, value))
    if gates.max_size_ratio is not None:
        checked.append(_at_most("max_size_ratio", gates.max_size_ratio, size.ratio))
    if gates.min_speedup is not None:
        value = max((artifact.speedup for artifact in latency.artifacts.values()), default=None) if latency else None
        checked.append(_at_least("min_speedup", gates.min_speedup, value))
    return tuple(checked)


def verdict(gates: Iterable[Gate], findings: Iterable[Finding]) -> Verdict:
    """``fail`` when a gate is not met, ``warn`` when a finding is more than information, else ``pass``."""
    if any(not gate.met for gate in gates):
        return "fail"
    return "warn" if any(finding.severity != "info" for finding in findings) else "pass"


def _loss(metric: Metric) -> float:
    """How much worse the metric is, in its own direction: errors rise, the rest falls."""
    return metric.delta if is_lower_better(metric.name) else -metric.delta


def _at_most(name: str, limit: float, value: float | None) -> Gate:
    return Gate(gate=name, limit=limit, value=value, met=value is not None and value <= limit)


def _at_least(name: str, limit: float, value: float | None) -> Gate:
    return Gate(gate=name, limit=limit, value=value, met=value is not None and value >= limit)
