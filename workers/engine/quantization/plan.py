"""The plan: for each layer its scheme, or the reason it stays float. A function of the spec and the layer table."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from fewbit.contract import layer_settings
from fewbit.contract.layer_settings import activations_for
from fewbit.contract.report import Requested, WeightScheme
from fewbit.contract.resources import Reason
from fewbit.contract.spec import Activations, JobSpec, LayerRule, Weights
from fewbit.runtime.kernels import has_vnni
from workers.engine.explanation import reasons
from workers.engine.graph.layers import Layer
from workers.engine.quantization.arithmetic import FLOAT, Arithmetic, arithmetic_of
from workers.errors import EngineError


@dataclass(frozen=True)
class Planned:
    """What is to be done with one layer: ``weights`` and ``arithmetic`` when it is quantized, ``reason`` when it stays
    float. ``activations`` says how fixed ranges are found, where there are any; ``requested`` what the spec asks."""

    layer: Layer
    weights: Weights | None
    arithmetic: Arithmetic
    activations: Activations
    reason: Reason | None
    requested: Requested


def full_range(spec: JobSpec) -> bool:
    """Whether the CPU that will run the artifacts sums u8*s8 products in 32 bits: this one, unless the spec names
    another. ARM's kernels widen before they sum."""
    return spec.target in ("vnni", "arm") if spec.target else has_vnni()


def plan(layers: tuple[Layer, ...], spec: JobSpec, full_range: bool) -> tuple[Planned, ...]:
    """``full_range``: whether the CPU that will run the artifacts has VNNI. Raises
    ``EngineError('quantization-failed')`` when a pattern of the spec matches no layer."""
    for rule in spec.layers:
        if not any(rule.matches(layer.name) for layer in layers):
            raise EngineError(
                "quantization-failed", f"layers: the pattern {rule.match!r} matches no layer of this model"
            )
    return tuple(_planned(layer, spec, full_range) for layer in layers)


def _planned(layer: Layer, spec: JobSpec, full_range: bool) -> Planned:
    weights, activations = weights_for(layer.name, spec), activations_for(layer.name, spec)
    reason = reasons.unquantizable(layer) or _excluded(layer, spec.layers) or reasons.group_misfit(layer, weights)
    if reason is None and spec.method == "analyze":
        reason = reasons.analyze_only()
    requested = requested_for(layer.name, spec)
    if reason is not None:
        return Planned(layer, None, FLOAT, activations, reason, requested)
    return Planned(layer, weights, arithmetic_of(layer, spec, full_range), activations, None, requested)


def requested_for(name: str, spec: JobSpec) -> Requested:
    """What the spec asks of the layer of this name, whatever can be done about it."""
    rules = [(index, rule) for index, rule in enumerate(spec.layers) if rule.matches(name)]
    rule = f"/layers/{rules[-1][0]}" if rules else None
    wanted = next((rule.quantize for _, rule in reversed(rules) if rule.quantize is not None), True)
    if not wanted or spec.method == "analyze":
        return Requested(quantized=False, weights=None, activations=None, rule=rule)
    weights = weights_for(name, spec)
    return Requested(
        quantized=True,
        weights=WeightScheme(dtype=weights.dtype, granularity=weights.granularity),
        activations=spec.method if spec.method in ("dynamic", "static") else None,
        rule=rule,
    )


def weights_for(name: str, spec: JobSpec) -> Weights:
    """The job's weight settings with each matching rule laid over them. Raises ``EngineError('quantization-failed')``
    where they do not go together, which the gateway refuses: posting the same job again would change nothing."""
    try:
        return layer_settings.weights_for(name, spec)
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise EngineError(
            "quantization-failed", f"layers: the weight settings of {name!r} do not fit: {why}"
        ) from error


def _excluded(layer: Layer, rules: tuple[LayerRule, ...]) -> Reason | None:
    said = [(index, rule) for index, rule in enumerate(rules) if rule.quantize is not None and rule.matches(layer.name)]
    if not said or said[-1][1].quantize:
        return None
    index, rule = said[-1]
    return reasons.excluded_by_user(rule.match, index)
