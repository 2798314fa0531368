"""Quantizing the planned layers: weights to integers, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fewbit.contract.report import ActivationScheme, Scheme, WeightScheme, WeightStats
from fewbit.contract.spec import Weights
from workers.engine.graph.layers import Layer, Operand
from workers.engine.quantization.arithmetic import Arithmetic
from workers.engine.quantization.plan import Planned
from workers.engine.quantization.weight_statistics import weight_stats
from workers.engine.quantization.weights import QuantizedWeight, quantize_weight


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer, its operands in integers, and the arithmetic of its products."""

    layer: Layer
    weights: tuple[QuantizedWeight, ...]
    arithmetic: Arithmetic
    stats: WeightStats | None = None

    @property
    def scheme(self) -> Scheme:
        first = self.weights[0]
        return Scheme(weights=WeightScheme(dtype=first.dtype, granularity=first.granularity),
                      activations=_activation_scheme(self.arithmetic))  # fmt: skip


def quantize(
    planned: tuple[Planned, ...], advance: Callable[[float], None], with_stats: bool = True
) -> tuple[QuantizedLayer, ...]:
    """Every layer the plan quantizes, in the plan's order. A weight that two layers share is quantized once, and one
    object. ``advance`` is told the share done."""
    chosen = [row for row in planned if row.weights is not None]
    shared: dict[str, QuantizedWeight] = {}
    quantized = []
    for index, row in enumerate(chosen):
        assert row.weights is not None
        weights = tuple(_quantize_once(operand, row.weights, shared) for operand in row.layer.operands)
        first = row.layer.operands[0]
        stats = weight_stats(first.value, weights[0], first.reduce, row.weights.range) if with_stats else None
        quantized.append(QuantizedLayer(row.layer, weights, row.arithmetic, stats))
        advance((index + 1) / len(chosen))
    return tuple(quantized)


def _quantize_once(operand: Operand, weights: Weights, shared: dict[str, QuantizedWeight]) -> QuantizedWeight:
    value = operand.value
    key = f"{value.data_ptr()} {tuple(value.shape)} {value.stride()} {operand.reduce} {weights.model_dump_json()}"
    if key not in shared or not value.numel():
        shared[key] = quantize_weight(value, weights, operand.reduce)
    return shared[key]


def _activation_scheme(arithmetic: Arithmetic) -> ActivationScheme | None:
    if arithmetic.mode == "float":
        return None
    return ActivationScheme(
        dtype="uint8",
        mode="static" if arithmetic.mode == "static" else "dynamic",
        granularity="per_token" if arithmetic.mode == "per_token" else "per_tensor",
        reduce_range=arithmetic.reduced,
    )
