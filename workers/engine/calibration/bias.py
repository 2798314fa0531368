"""Bias correction: the mean error of a quantized layer can be measured beforehand, and taken back through its bias.

Rounding weights shifts a layer's output by ``E[x] @ (W - W_q).T``, the same for every sample, and fixed ranges that
clip shift it too. On calibration data, for each output channel of each linear and convolution (Nagel et al. 2019,
"Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, the empirical form):

    bias += mean(float output - quantized output), both of the float input

A layer without a bias gets one. Not corrected: products whose bias is not a constant vector, and forms that take no
bias (a matrix on the left, a product of more than two axes written as ``x @ W``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from fewbit.runtime.program import Program, dtype_of, rank
from workers.engine.calibration.conversion import Conversion
from workers.engine.calibration.data_pass import run_calibration
from workers.engine.data import Data
from workers.engine.graph.editor import GraphEditor
from workers.engine.graph.layers import Layer, Use
from workers.engine.graph.ops import BIAS_THIRD, PLAIN_PRODUCTS
from workers.engine.quantization.quantize import QuantizedLayer
from workers.engine.quantization.reference import FixedRange
from workers.engine.quantization.simulation import simulate_layer

aten = torch.ops.aten


def correct_biases(
    conversion: Conversion, wanted: bool, read_data: Callable[[], Data], advance: Callable[[float], None]
) -> Conversion:
    """The conversion with corrected biases in its program, and quantized layers that read them. The program given is
    not changed, and nodes keep their names. ``read_data`` is called only if ``wanted`` and a layer can be corrected.

    Raises ``EngineError('calibration-failed')`` naming the batch on which the model fails.
    """
    program, quantized = conversion.program, conversion.quantized
    chosen = [entry for entry in quantized if wanted and _is_correctable(program, entry.layer)]
    if not chosen:
        return conversion
    errors = mean_errors(program, chosen, conversion.ranges, read_data(), advance)
    editor = GraphEditor(program)
    corrected = {
        entry.layer.name: _correct_layer(editor, program, entry.layer, errors[entry.layer.name])
        for entry in chosen
        if entry.layer.name in errors
    }
    changed = tuple(replace(entry, layer=corrected.get(entry.layer.name, entry.layer)) for entry in quantized)
    return replace(conversion, program=editor.finish(), quantized=changed)


def mean_errors(
    program: Program,
    quantized: Iterable[QuantizedLayer],
    ranges: Mapping[fx.Node, FixedRange],
    data: Data,
    advance: Callable[[float], None],
) -> dict[str, Tensor]:
    """By layer, the mean of its float output minus its quantized output: float32 [out_features], over all samples,
    positions and calls. Layers whose output is not finite, or never computed, have none."""
    sums = {entry.layer.name: _Mean() for entry in quantized}
    around = {
        use.node: _measure_error(entry, use, ranges, sums[entry.layer.name])
        for entry in quantized
        for use in entry.layer.uses
    }
    run_calibration(program, around, data, advance)
    means = {name: mean.value for name, mean in sums.items() if mean.count}
    return {name: mean for name, mean in means.items() if bool(torch.isfinite(mean).all())}


class _Mean:
    """The mean of rows, summed in float64."""

    def __init__(self) -> None:
        self.total, self.count = torch.zeros((), dtype=torch.float64), 0

    def add(self, rows: Tensor) -> None:
        """[n, channels]."""
        self.total = self.total + rows.sum(0, dtype=torch.float64)
        self.count += len(rows)

    @property
    def value(self) -> Tensor:
        return (self.total / self.count).to(torch.float32)


def _measure_error(
    quantized: QuantizedLayer, use: Use, ranges: Mapping[fx.Node, FixedRange], mean: _Mean
) -> Callable[..., Any]:
    axis = channel_axis(quantized.layer)

    def around(_: fx.Node, compute: Callable[[], Any], value: Callable[[Any], Any]) -> Any:
        approximation = simulate_layer(quantized, use, value, ranges)
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
    return layer.kind in ("linear", "convolution") and all(_takes_bias(program, use) for use in layer.uses)


def _takes_bias(program: Program, use: Use) -> bool:
    if use.bias is not None:
        value = program.constant(use.bias)
        return value is not None and value.dim() == 1 and not use.left
    flat = rank(use.input) == 2 and not use.left
    return use.node.target in BIAS_THIRD or (use.node.target in PLAIN_PRODUCTS and flat)


def _correct_layer(editor: GraphEditor, program: Program, layer: Layer, error: Tensor) -> Layer:
    """Add ``error`` to the bias of each call of the layer. Calls that shared a bias still share one."""
    biases: dict[Any, fx.Node] = {}
    uses = []
    for use in layer.uses:
        key = (use.bias, use.beta)
        if key not in biases:
            biases[key] = _shift_bias(editor, program, layer, use, error / use.beta, len(biases))
        _set_bias(editor.originals[use.node.name], biases[key])
        uses.append(replace(use, bias=biases[key]))
    return replace(layer, uses=tuple(uses))


def _shift_bias(editor: GraphEditor, program: Program, layer: Layer, use: Use, shift: Tensor, index: int) -> fx.Node:
    """Change the bias's own constant where only this layer reads it, else make a new one."""
    before = program.constant(use.bias) if use.bias is not None else None
    value = (shift if before is None else before.to(torch.float32) + shift).to(dtype_of(use.node))
    calls = {other.node for other in layer.uses if other.bias is use.bias and other.beta == use.beta}
    if use.bias in program.constants and set(use.bias.users) <= calls:
        editor.set_value(program.constants[use.bias].name, value)
        return editor.originals[use.bias.name]
    return editor.add_buffer(f"{layer.name}.corrected_bias{index or ''}".lstrip("."), value)


def _set_bias(node: fx.Node, bias: fx.Node) -> None:
    """Let the call add ``bias``; it keeps its name."""
    if node.target is aten.addmm.default:
        node.args = (bias, *node.args[1:])
    elif node.target in PLAIN_PRODUCTS:
        node.target, node.args = aten.addmm.default, (bias, *node.args)
    else:
        node.args = (*node.args[:2], bias, *node.args[3:])
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "bias"}
