"""One quantized layer call by itself, on float inputs: the same arithmetic as the reference, on tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fewbit.runtime.program import call
from fewbit.runtime.record import PerToken
from workers.engine.graph.layers import Operand, Use
from workers.engine.quantization.activations import quantize_per_token
from workers.engine.quantization.arithmetic import Arithmetic
from workers.engine.quantization.observers import fake_quantize
from workers.engine.quantization.quantize import QuantizedLayer
from workers.engine.quantization.reference import FixedRange
from workers.engine.quantization.weights import QuantizedWeight

LARGEST_TABLE = 1 << 28  # elements: an embedding bag's table beyond this is not dequantized just to be measured


def simulate_layer(
    quantized: QuantizedLayer, use: Use, value: Callable[[Any], Any], ranges: Mapping[fx.Node, FixedRange]
) -> Tensor | None:
    """What the quantized layer gives for the float inputs ``value`` answers; None where that is not computed."""
    node = use.node
    if quantized.layer.kind == "nested" or _too_large(quantized):
        return None
    if node.target is torch.ops.aten.embedding.default:
        return _rows(quantized.weights[0], value(use.input))
    if any(operand not in node.all_input_nodes for operand in use.operands):
        return None  # the call reads an expansion of the operand
    pairs = zip(use.operands, quantized.layer.operands, quantized.weights, strict=True)
    swapped: dict[fx.Node, Tensor] = {
        read: operand_value(operand, weight).to(value(read).dtype) for read, operand, weight in pairs
    }
    x = value(use.input)
    if quantized.arithmetic.mode == "per_token" and use.axes:
        swapped[use.input] = per_token(x, use.axes, quantized.arithmetic)
    elif quantized.arithmetic.mode == "static":
        swapped[use.input] = fake_quantize(x.float(), ranges[use.input].qparams).to(x.dtype)
    given: Any = fx.node.map_arg(
        (node.args, dict(node.kwargs)), lambda read: swapped[read] if read in swapped else value(read)
    )
    result = call(node.target, *given)
    first: Tensor = result[0] if isinstance(result, tuple) else result
    return first


def operand_value(operand: Operand, weight: QuantizedWeight) -> Tensor:
    """The dequantized operand, as the call takes it: float32."""
    whole = weight.dequantize()
    return whole.t() if operand.transposed else whole


def per_token(x: Tensor, axes: tuple[int, ...], arithmetic: Arithmetic) -> Tensor:
    """``x`` quantized and dequantized, each slice over ``axes`` by its own range, in the dtype of ``x``."""
    scheme = PerToken(levels=arithmetic.levels, axes=axes, range=arithmetic.range)
    return quantize_per_token(x.float(), scheme).to(x.dtype)


def _too_large(quantized: QuantizedLayer) -> bool:
    return quantized.layer.kind == "embedding" and quantized.weights[0].values.numel() > LARGEST_TABLE


def _rows(weight: QuantizedWeight, indices: Tensor) -> Tensor:
    scales = weight.scale.expand(weight.values.shape[0], -1)
    values, scale = weight.values[indices], scales[indices]
    if weight.group_size is None:
        return values.to(torch.float32) * scale
    grouped = values.to(torch.float32).view(*scale.shape, weight.group_size) * scale.unsqueeze(-1)
    return grouped.flatten(-2)
