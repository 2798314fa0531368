"""What the contract has and this release does not do yet: refused by name, with what there is instead."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from fewbit import capabilities as can
from fewbit.problems import FieldError
from fewbit.spec import JobSpec, Weights, WeightsOverride


def unsupported(spec: JobSpec) -> Iterator[FieldError]:
    """One error for each field that asks for too much."""
    yield from _one_of("/method", spec.method, can.METHODS)
    yield from _one_of("/backend", spec.backend, can.BACKENDS)
    yield from _integer_weights("/weights", spec.weights, spec)
    for index, rule in enumerate(spec.layers):
        if rule.weights is not None:
            yield from _integer_weights(f"/layers/{index}/weights", rule.weights, spec)
    for index, kind in enumerate(spec.artifacts):
        yield from _one_of(f"/artifacts/{index}", kind, can.ARTIFACT_KINDS)
    yield from _without_data(spec)
    yield from _absent(spec)
    yield from _metrics(spec)


def _integer_weights(where: str, weights: Weights | WeightsOverride, spec: JobSpec) -> Iterator[FieldError]:
    """The int8 kernels multiply int8 weights with one scale a channel; anything finer is for weights alone."""
    if spec.method not in ("dynamic", "static"):
        return
    remedy = "Use method weight_only, or leave the field out."
    if weights.dtype == "int4":
        message = f"int4 weights have no int8 kernel: method {spec.method} cannot multiply them. {remedy}"
        yield _unsupported(f"{where}/dtype", message)
    if weights.granularity == "per_group":
        message = f"The int8 kernels take one scale a channel: method {spec.method} cannot group. {remedy}"
        yield _unsupported(f"{where}/granularity", message)


def _without_data(spec: JobSpec) -> Iterator[FieldError]:
    if spec.method == "static" and spec.calibration is None and spec.evaluation is None:
        message = (
            "method static fixes activation ranges on data, and the job names none: "
            '"calibration": {"dataset": "dst_..."}, from POST /datasets. method dynamic needs none.'
        )
        yield FieldError(pointer="/calibration", code="calibration-needed", message=message)


def _absent(spec: JobSpec) -> Iterator[FieldError]:
    asked = {
        "auto": spec.auto is not None,
        "webhook": spec.webhook is not None,
    }
    for field in (name for name, is_asked in asked.items() if is_asked):
        yield _unsupported(f"/{field}", f"{field} is not part of this release. Leave the field out.")


def _metrics(spec: JobSpec) -> Iterator[FieldError]:
    for index, metric in enumerate(spec.evaluation.metrics if spec.evaluation else ()):
        yield from _one_of(f"/evaluation/metrics/{index}", metric, can.METRICS)
    for metric in spec.gates.max_drop or {}:
        escaped = metric.replace("~", "~0").replace("/", "~1")
        yield from _one_of(f"/gates/max_drop/{escaped}", metric, can.METRICS)


def _one_of(where: str, value: str | None, available: Collection[str]) -> Iterator[FieldError]:
    if value is not None and value not in available:
        yield _unsupported(where, f"{value} is not part of this release. Available: {_listed(sorted(available))}.")


def _unsupported(where: str, message: str) -> FieldError:
    return FieldError(pointer=where, code="unsupported", message=message)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
