"""Quantizing the planned layers: weights to int8, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fewbit.report import ActivationScheme, Scheme, WeightScheme, WeightStats
from workers.engine.int8 import Activation, activation_for, pack
from workers.engine.layers import Layer
from workers.engine.plan import Planned
from workers.engine.weights import QuantizedWeight, quantize_weight, weight_stats


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer, its int8 weight (``packed``: as the kernel takes it), and how its activations are quantized."""

    layer: Layer
    weight: QuantizedWeight
    packed: Any
    activation: Activation
    stats: WeightStats

    @property
    def scheme(self) -> Scheme:
        return Scheme(
            weights=WeightScheme(dtype="int8", granularity=self.weight.granularity),
            activations=ActivationScheme(
                dtype="uint8", mode="dynamic", granularity="per_token", reduce_range=self.activation.reduced
            ),
        )


def quantize(planned: tuple[Planned, ...], vnni: bool, advance: Callable[[float], None]) -> tuple[QuantizedLayer, ...]:
    """Every layer the plan quantizes, in the plan's order. ``advance`` is told the share done."""
    chosen = [each for each in planned if each.weights is not None]
    quantized = []
    for index, each in enumerate(chosen):
        assert each.weights is not None
        weight = quantize_weight(each.layer.weight, each.weights)
        stats = weight_stats(each.layer.weight, weight)
        activation = activation_for(each.layer.shape[1], vnni)
        quantized.append(QuantizedLayer(each.layer, weight, pack(weight), activation, stats))
        advance((index + 1) / len(chosen))
    return tuple(quantized)
