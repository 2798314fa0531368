"""The weights of recorded layers as the kernels take them: unpacked from the reference's buffers, packed for fbgemm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fewbit.runtime import kernels
from fewbit.runtime.program import Program, argument, dtype_of, rank
from fewbit.runtime.record import WeightRecord
from fewbit.runtime.rows import Layer
from fewbit.runtime.source import Source

aten = torch.ops.aten
Pack = Callable[[WeightRecord, Layer], Any]


class Packing:
    """The constants of one program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.tensors = {constant.name: constant.value for constant in program.constants.values()}

    def stored(self, weight: WeightRecord) -> tuple[Tensor, Tensor]:
        """(values, scale) as the reference holds them, int4 unpacked."""
        values = self.tensors[weight.values]
        if weight.packed:
            values = (torch.cat([values & 15, values >> 4], dim=-1).to(torch.int8)) - 8
        return values, self.tensors[weight.scale]

    def attribute(self, source: Source, layer: Layer, label: str, pack: Pack) -> str:
        """The packed weight, as an attribute of the module; layers that share weight and bias share it."""
        weight = layer.record.weights[0]
        key = (weight.values, layer.record.bias, label)
        return source.attribute(key, lambda: pack(weight, layer), f"{layer.record.name}_packed")

    def linear(self, weight: WeightRecord, _: Layer) -> Any:
        return kernels.pack_linear(*self.stored(weight))

    def linear_with_bias(self, weight: WeightRecord, layer: Layer) -> Any:
        return kernels.pack_linear(*self.stored(weight), self.bias(layer))

    def experts(self, weight: WeightRecord, _: Layer) -> Any:
        return kernels.pack_experts(*self.stored(weight))

    def cells(self, layer: Layer, weights: Sequence[fx.Node], has_biases: bool) -> list[Any]:
        """One for each direction of each of the recurrent layer's own layers."""
        by_operand = {weight.operand: self.stored(weight) for weight in layer.record.weights}
        count = 4 if has_biases else 2
        cells = []
        for start in range(0, len(weights), count):
            inner, hidden, *biases = weights[start : start + count]
            held = [self.program.constants[bias].value for bias in biases]
            bias = (held[0], held[1]) if held else None
            cells.append(kernels.pack_cell(by_operand[inner.name], by_operand[hidden.name], bias))
        return cells

    def row_sums(self, weight: WeightRecord) -> Tensor:
        """What one unit more on every input adds to each output: float32 [out_features]."""
        values, scale = self.stored(weight)
        return values.sum(1, dtype=torch.float32) * scale.expand(values.shape[0], 1).flatten()

    # --- Biases ---

    def has_constant_bias(self, layer: Layer) -> bool:
        """Or none at all."""
        return layer.bias is None or (rank(layer.bias) == 1 and self.program.constant(layer.bias) is not None)

    def bias(self, layer: Layer) -> Tensor | None:
        value = self.program.constant(layer.bias)
        return value.to(torch.float32).contiguous() if value is not None else None

    # --- Convolutions ---

    def geometry(self, layer: Layer) -> tuple[list[int], list[int], list[int], int] | None:
        """(strides, paddings, dilations, groups); None for a padding that is not the same on both sides."""
        node = original(layer)
        spatial = rank(layer.input) - 2
        kernel = self.tensors[layer.record.weights[0].values].shape[2:]
        strides = _by_axis(argument(node, "stride"), spatial)
        dilations = _by_axis(argument(node, "dilation"), spatial)
        padding = argument(node, "padding")
        if padding == "valid":
            padding = 0
        if padding == "same":
            spans = [dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=True)]
            if any(span % 2 for span in spans):
                return None
            padding = [span // 2 for span in spans]
        return strides, _by_axis(padding, spatial), dilations, argument(node, "groups")

    def convolution(self, layer: Layer) -> Pack | None:
        geometry = self.geometry(layer)
        if geometry is None or not self.has_constant_bias(layer):
            return None
        strides, paddings, dilations, groups = geometry

        def pack(weight: WeightRecord, layer: Layer) -> Any:
            values, scale = self.stored(weight)
            return kernels.pack_convolution(values, scale, self.bias(layer), strides, paddings, dilations, groups)

        return pack


def original(layer: Layer) -> fx.Node:
    """The call itself, below a cast of its result."""
    node = layer.node
    return node.all_input_nodes[0] if node.target is aten._to_copy.default else node


def in_float32(x: str, node: fx.Node) -> str:
    return x if dtype_of(node) is torch.float32 else f"{x}.to(torch.float32)"


def _by_axis(value: Any, count: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * count if len(values) == 1 else values
