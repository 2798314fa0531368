"""Which arithmetic a layer's products are made in: what the int8 kernels can do, and where they are worth it.

per_token   each row of the input scaled by its own largest magnitude: ``fewbit.runtime.kernels``
static      input (and output, along a chain) at ranges fixed by calibration
per_step    the recurrent kernels' own: one range for each step
float       integers only in store: the weight is dequantized and multiplied in float
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from fewbit.contract.spec import JobSpec
from fewbit.runtime.kernels import FULL_LEVELS, FULL_RANGE_MAX_IN_FEATURES, MAX_IN_FEATURES, REDUCED_LEVELS
from fewbit.runtime.program import dtype_of, rank
from workers.engine.graph.layers import Layer
from workers.engine.graph.ops import (
    BATCHED_PRODUCTS,
    BOUNDED_BELOW,
    INTEGER_RECURRENT,
    NONNEGATIVE,
    PASSING,
    PLAIN_CONVOLUTIONS,
)
from workers.engine.quantization.activations import Range

Mode = Literal["per_token", "static", "per_step", "float"]

MOST_EXPERTS = 64  # a batched weight's matrices are called one by one
# Below this width aten::lstm in float beats aten::quantized_lstm: 0.19 against 0.55 ms at 128, 25 against 0.8 ms at 512
# (50 steps, batch 1, two cores with AVX-512).
LEAST_RECURRENT_WIDTH = 256


@dataclass(frozen=True)
class Arithmetic:
    """``levels``: steps to either side of zero for the largest activation; 0 for float. ``range``: of a token."""

    mode: Mode
    levels: int = 0
    range: Range = "symmetric"

    @property
    def reduced(self) -> bool:
        return self.levels == REDUCED_LEVELS


FLOAT = Arithmetic("float")


def arithmetic_of(layer: Layer, spec: JobSpec, full_range: bool) -> Arithmetic:
    """``full_range``: whether the CPU that will run it sums u8*s8 products in 32 bits (VNNI). Without, pairs are summed
    in int16 and saturate, unless activations keep to 7 bits: 2 * 127 * 127 < 2**15."""
    if spec.method not in ("dynamic", "static") or not _is_plain(layer):
        return FLOAT
    mode = MODES[layer.kind](layer, spec) if layer.kind in MODES else "float"
    if mode == "float":
        return FLOAT
    wide = mode != "per_step" and full_range and _summed(layer) <= FULL_RANGE_MAX_IN_FEATURES
    range_: Range = range_of(layer) if mode == "per_token" and layer.kind == "linear" else "symmetric"
    return Arithmetic(mode, FULL_LEVELS if wide else REDUCED_LEVELS, range_)


def range_of(layer: Layer) -> Range:
    """What is behind a relu is never negative, what is behind a gelu hardly: symmetric steps would leave half of their
    eight bits unused, 6 dB. Such rows are counted from 0, or from their own smallest value."""
    if any(use.left or use.alpha != 1 or use.beta != 1 for use in layer.uses):
        return "symmetric"
    behind = {_activation_behind(use.input) for use in layer.uses}
    if behind <= NONNEGATIVE:
        return "nonnegative"
    return "affine" if behind <= NONNEGATIVE | BOUNDED_BELOW else "symmetric"


def _activation_behind(node: fx.Node) -> Any:
    while node.target in PASSING and node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.target


def _summed(layer: Layer) -> int:
    size = 1
    for axis in layer.operands[0].reduce:
        size *= layer.shape[axis]
    return size


def _is_plain(layer: Layer) -> bool:
    """Whether the kernels' int32 sums cannot wrap, and there is something to sum."""
    return 0 < _summed(layer) <= MAX_IN_FEATURES


def _linear(_: Layer, spec: JobSpec) -> Mode:
    return "static" if spec.method == "static" else "per_token"


def _batched(layer: Layer, _: JobSpec) -> Mode:
    products = all(use.node.target in BATCHED_PRODUCTS for use in layer.uses)
    square = all(rank(use.input) == 3 and not use.left for use in layer.uses)
    fits = products and square and len(layer.shape) == 3 and layer.shape[0] <= MOST_EXPERTS
    return "per_token" if fits else "float"


def _convolution(layer: Layer, spec: JobSpec) -> Mode:
    known = all(use.node.target in PLAIN_CONVOLUTIONS for use in layer.uses)
    batched = all(rank(use.input) == len(layer.shape) and dtype_of(use.node) is torch.float32 for use in layer.uses)
    return "static" if spec.method == "static" and known and batched else "float"


def _recurrent(layer: Layer, _: JobSpec) -> Mode:
    known = all(use.node.target in INTEGER_RECURRENT for use in layer.uses)
    width = min(operand.value.shape[0] for operand in layer.operands) // 4
    complete = all(len(use.operands) % 2 == 0 for use in layer.uses)
    return "per_step" if known and complete and width >= LEAST_RECURRENT_WIDTH else "float"


MODES = {"linear": _linear, "batched": _batched, "convolution": _convolution, "recurrent": _recurrent}
