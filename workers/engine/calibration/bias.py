"""Bias correction: the mean error of a quantized layer is known before it runs, and its bias can take it back.

Rounding weights shifts what a layer gives by ``E[x] @ (W - W_q).T``, the same for every sample, and fixed ranges that
clip shift it too. On calibration data, for each output channel of each linear and convolution (Nagel et al. 2019,
"Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, the empirical form):

    bias += mean(float output - quantized output), both of the float input

A layer without a bias gets one. Left as they are: products with a bias that is no constant vector, and forms that have
no place for one (a matrix on the left, a product of more than two axes written as ``x @ W``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fewbit.runtime.program import Program, dtype_of, rank
from workers.engine.calibration.calibrate import run_over
from workers.engine.data import Data
from workers.engine.graph.editor import Surgery
from workers.engine.graph.layers import Layer, Use
from workers.engine.quantization.quantize import QuantizedLayer
from workers.engine.quantization.reference import FixedRange
from workers.engine.quantization.simulation import imitated

aten = torch.ops.aten
WITH_BIAS_THIRD = frozenset(
    (aten.linear.default, aten.convolution.default,
     aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
     aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
     aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
)  # fmt: skip
PRODUCTS = frozenset((aten.mm.default, aten.matmul.default))


@dataclass(frozen=True)
class Corrected:
    """The float program with corrected biases, which is what the quantized one is made from; and the quantized layers,
    their calls reading those biases."""

    program: Program
    quantized: tuple[QuantizedLayer, ...]


def corrected(
    program: Program,
    quantized: tuple[QuantizedLayer, ...],
    ranges: Mapping[fx.Node, FixedRange],
    wanted: bool,
    data: Callable[[], Data],
    advance: Callable[[float], None],
) -> Corrected:
    """``program`` is not changed, and nodes keep their names. ``data`` is read only when it is ``wanted`` and a layer
    can be corrected.
    Raises ``EngineError('calibration-failed')`` naming the batch on which the model fails."""
    chosen = [each for each in quantized if wanted and _is_correctable(program, each.layer)]
    if not chosen:
        return Corrected(program, quantized)
    errors = mean_errors(program, chosen, ranges, data(), advance)
    surgery = Surgery(program)
    layers = {name: _shift(surgery, program, layer, errors[name]) for name, layer in _named(chosen) if name in errors}
    changed = tuple(replace(each, layer=layers.get(each.layer.name, each.layer)) for each in quantized)
    return Corrected(surgery.finish(), changed)


def mean_errors(
    program: Program,
    quantized: Iterable[QuantizedLayer],
    ranges: Mapping[fx.Node, FixedRange],
    data: Data,
    advance: Callable[[float], None],
) -> dict[str, Tensor]:
    """By layer, what its float output is on average above its quantized one: float32 [out_features], over all samples,
    positions and calls. Layers whose output is not finite, or never computed, have none."""
    means = {each.layer.name: _Mean() for each in quantized}
    around = {
        use.node: _watch(each, use, ranges, means[each.layer.name]) for each in quantized for use in each.layer.uses
    }
    run_over(program, around, data, advance)
    found = {name: each.value for name, each in means.items() if each.count}
    return {name: value for name, value in found.items() if bool(torch.isfinite(value).all())}


class _Mean:
    """Of rows, summed in float64."""

    def __init__(self) -> None:
        self.total, self.count = torch.zeros((), dtype=torch.float64), 0

    def add(self, rows: Tensor) -> None:
        """[n, channels]."""
        self.total = self.total + rows.sum(0, dtype=torch.float64)
        self.count += len(rows)

    @property
    def value(self) -> Tensor:
        return (self.total / self.count).to(torch.float32)


def _watch(
    quantized: QuantizedLayer, use: Use, ranges: Mapping[fx.Node, FixedRange], mean: _Mean
) -> Callable[..., Any]:
    axis = channel_axis(quantized.layer)

    def around(_: fx.Node, compute: Callable[[], Any], value: Callable[[Any], Any]) -> Any:
        approximation = imitated(quantized, use, value, ranges)
        result = compute()
        if approximation is not None:
            difference = result.to(torch.float32) - approximation.to(torch.float32)
            mean.add(difference.movedim(axis, -1).reshape(-1, difference.shape[axis]))
        return result

    return around


def channel_axis(layer: Layer) -> int:
    """The axis of output channels, from the end: before the spatial ones."""
    return -1 if layer.kind == "linear" else 1 - len(layer.shape)


# --- Where a bias goes ------------------------------------------------------------------------------------------------


def _is_correctable(program: Program, layer: Layer) -> bool:
    return layer.kind in ("linear", "convolution") and all(_has_place(program, use) for use in layer.uses)


def _has_place(program: Program, use: Use) -> bool:
    if use.bias is not None:
        value = program.constant(use.bias)
        return value is not None and value.dim() == 1 and not use.left
    flat = rank(use.input) == 2 and not use.left
    return use.node.target in WITH_BIAS_THIRD or (use.node.target in PRODUCTS and flat)


def _shift(surgery: Surgery, program: Program, layer: Layer, error: Tensor) -> Layer:
    """The layer with ``error`` added to the bias of each of its calls; calls that shared a bias share one still."""
    biases: dict[Any, fx.Node] = {}
    uses = []
    for use in layer.uses:
        key = (use.bias, use.beta)
        if key not in biases:
            biases[key] = _bias(surgery, program, layer, use, error / use.beta, len(biases))
        _read(surgery.originals[use.node.name], biases[key])
        uses.append(replace(use, bias=biases[key]))
    return replace(layer, uses=tuple(uses))


def _bias(surgery: Surgery, program: Program, layer: Layer, use: Use, shift: Tensor, index: int) -> fx.Node:
    """The bias' own constant with another value where only this layer reads it, else a new one."""
    before = program.constant(use.bias) if use.bias is not None else None
    value = (shift if before is None else before.to(torch.float32) + shift).to(dtype_of(use.node))
    calls = {each.node for each in layer.uses if each.bias is use.bias and each.beta == use.beta}
    if use.bias in program.constants and set(use.bias.users) <= calls:
        surgery.put(program.constants[use.bias].name, value)
        return surgery.originals[use.bias.name]
    return surgery.buffer(f"{layer.name}.corrected_bias{index or ''}".lstrip("."), value)


def _read(node: fx.Node, bias: fx.Node) -> None:
    """The call, under its own name, with this bias."""
    if node.target is aten.addmm.default:
        node.args = (bias, *node.args[1:])
    elif node.target in PRODUCTS:
        node.target, node.args = aten.addmm.default, (bias, *node.args)
    else:
        node.args = (*node.args[:2], bias, *node.args[3:])
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "bias"}


def _named(quantized: Iterable[QuantizedLayer]) -> Iterable[tuple[str, Layer]]:
    return ((each.layer.name, each.layer) for each in quantized)
