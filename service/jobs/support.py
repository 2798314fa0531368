"""What the contract has and this release does not do yet: refused by name, with what there is instead."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from fewbit import capabilities as can
from fewbit.problems import FieldError
from fewbit.spec import Activations, Clip, JobSpec, LayerRule, Percentile, Weights, WeightsOverride


def unsupported(spec: JobSpec) -> Iterator[FieldError]:
    """One error for each field that asks for too much."""
    yield from _one_of("/method", spec.method, can.METHODS)
    yield from _one_of("/backend", spec.backend, can.BACKENDS)
    yield from _weights("/weights", spec.weights)
    yield from _activations(spec)
    for index, rule in enumerate(spec.layers):
        yield from _layer(f"/layers/{index}", rule)
    for index, kind in enumerate(spec.artifacts):
        yield from _one_of(f"/artifacts/{index}", kind, can.ARTIFACT_KINDS)
    yield from _absent(spec)
    yield from _metrics(spec)


def _weights(where: str, weights: Weights | WeightsOverride) -> Iterator[FieldError]:
    yield from _one_of(f"{where}/dtype", weights.dtype, can.WEIGHT_DTYPES)
    yield from _one_of(f"{where}/granularity", weights.granularity, can.WEIGHT_GRANULARITIES)
    yield from _one_of(f"{where}/range", _range_name(weights.range), can.WEIGHT_RANGES)


def _activations(spec: JobSpec) -> Iterator[FieldError]:
    """A dynamic job reads no range, so every range is as good as the default; the dtype would make a difference."""
    yield from _one_of("/activations/dtype", spec.activations.dtype, (Activations().dtype,))


def _layer(where: str, rule: LayerRule) -> Iterator[FieldError]:
    if rule.weights is not None:
        yield from _weights(f"{where}/weights", rule.weights)
    if rule.activations is not None:
        message = "Activations are the same for all layers in this release. Leave the field out."
        yield _unsupported(f"{where}/activations", message)


def _absent(spec: JobSpec) -> Iterator[FieldError]:
    asked = {
        "smooth": spec.smooth is not None,
        "bias_correction": spec.bias_correction,
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


def _range_name(chosen: str | Percentile | Clip | None) -> str | None:
    match chosen:
        case Percentile():
            return "percentile"
        case Clip():
            return "clip"
    return chosen
