"""What a Fewbit ``.pt2`` says about itself, in ``extra/fewbit.json``: which nodes of its graph are quantized layers.

The graph alone is complete: any torch runs it, in float arithmetic over quantized values. The record is what lets
``fewbit.runtime`` find the layers again and put int8 kernels in their place, on the machine it is loaded on.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

FILE = "fewbit.json"
VERSION = 1


class Recorded(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WeightRecord(Recorded):
    """One quantized operand. ``values`` and ``scale`` name buffers, ``operand`` the node of the dequantized one;
    ``packed``: two int4 values a byte, first half of the last axis in the low nibbles; ``transposed``: the operand is
    the transpose of what the buffers hold."""

    values: str
    scale: str
    operand: str
    dtype: Literal["int8", "int4"]
    granularity: Literal["per_channel", "per_tensor", "per_group"]
    group_size: int | None
    packed: bool
    transposed: bool


class PerToken(Recorded):
    """Each slice over ``axes`` of the input by its own range. ``symmetric``: its largest magnitude is ``levels`` steps.
    ``nonnegative``, ``affine``: from 0, or from its smallest value, to its largest there are ``2 * levels + 1``."""

    levels: int
    axes: tuple[int, ...]
    range: Literal["symmetric", "nonnegative", "affine"] = "symmetric"

    @property
    def steps(self) -> int:
        return self.levels if self.range == "symmetric" else 2 * self.levels + 1

    @property
    def zero_point(self) -> int:
        """Of the scaled rows, as the kernel takes them: uint8."""
        return self.levels + 1 if self.range == "symmetric" else 0


class QuantizedValue(Recorded):
    """A value quantized at a fixed range: ``q = clamp(round(x / scale) + zero_point, qmin, qmax)``. ``source`` names
    the float node, ``node`` the one that holds the quantized value, written in float."""

    source: str
    node: str
    scale: float
    zero_point: int
    qmin: int
    qmax: int


class LayerRecord(Recorded):
    """One call of a quantized layer. ``node`` gives its result, ``input`` is its float input before any quantization;
    ``quantized_input`` names a ``QuantizedValue`` where its range is fixed. For ``linear``:
    ``y = alpha * x @ W.T + beta * bias``, transposed as a whole when ``left``. ``compute``: whether the products are
    meant to be of integers, on the job's ``activation`` arithmetic, or of floats."""

    name: str
    kind: str
    node: str
    input: str
    weights: tuple[WeightRecord, ...]
    compute: Literal["int8", "float"]
    per_token: PerToken | None = None
    quantized_input: str | None = None
    bias: str | None = None
    alpha: float = 1.0
    beta: float = 1.0
    left: bool = False


class Record(Recorded):
    """``float_layers``: by the node of its call, the name of each layer that was left as it is."""

    version: Literal[1] = 1
    layers: tuple[LayerRecord, ...]
    float_layers: dict[str, str] = {}
    values: tuple[QuantizedValue, ...] = ()
