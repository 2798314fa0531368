"""The plan: for each layer its scheme, or the reason it stays float. A function of the spec and the layer table."""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.resources import Reason
from fewbit.spec import JobSpec, LayerRule, Weights
from workers.engine import reasons
from workers.engine.errors import EngineError
from workers.engine.layers import Layer


@dataclass(frozen=True)
class Planned:
    """What is to be done with one layer: ``weights`` when it is quantized, ``reason`` when it stays float."""

    layer: Layer
    weights: Weights | None
    reason: Reason | None


def plan(layers: tuple[Layer, ...], spec: JobSpec) -> tuple[Planned, ...]:
    """Raises ``EngineError('quantization-failed')`` when a pattern of the spec matches no layer."""
    for rule in spec.layers:
        if not any(rule.matches(layer.name) for layer in layers):
            raise EngineError(
                "quantization-failed", f"layers: the pattern {rule.match!r} matches no layer of this model"
            )
    return tuple(_planned(layer, spec) for layer in layers)


def _planned(layer: Layer, spec: JobSpec) -> Planned:
    reason = reasons.unquantizable(layer) or _excluded(layer, spec.layers)
    if reason is None and spec.method == "analyze":
        reason = reasons.analyze_only()
    if reason is not None:
        return Planned(layer, None, reason)
    return Planned(layer, weights_for(layer.name, spec), None)


def weights_for(name: str, spec: JobSpec) -> Weights:
    """The job's weight settings with each matching rule laid over them, in order."""
    values = spec.weights.model_dump()
    for rule in spec.layers:
        if rule.weights is not None and rule.matches(name):
            values.update(rule.weights.model_dump(exclude_none=True))
    return Weights.model_validate(values)


def _excluded(layer: Layer, rules: tuple[LayerRule, ...]) -> Reason | None:
    said = [(index, rule) for index, rule in enumerate(rules) if rule.quantize is not None and rule.matches(layer.name)]
    if not said or said[-1][1].quantize:
        return None
    index, rule = said[-1]
    return reasons.excluded_by_user(rule.match, index)
