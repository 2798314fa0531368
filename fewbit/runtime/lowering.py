"""From the reference to the kernels of a machine: for every value the program needs, how it is computed.

A value has up to two forms: float, as the reference graph holds it, and int8, a quantized tensor at a fixed range. Each
form says which other forms it reads and writes its own lines of TorchScript; nothing is computed that nobody reads, so
the reference's own arithmetic disappears wherever a kernel takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from fewbit.runtime import kernels
from fewbit.runtime.kernels import LINEAR
from fewbit.runtime.operators import ADDS, CLAMPS, EMBEDDING_TAILS, IN_PLACE, KEEPS_VALUES, RELUS
from fewbit.runtime.packing import Pack, Packing, in_float32, original
from fewbit.runtime.program import Program, argument, arguments, rank
from fewbit.runtime.record import LayerRecord, QuantizedValue, Record
from fewbit.runtime.rows import Layer, finish, normalized, prepared
from fewbit.runtime.source import Source
from fewbit.runtime.torch_internals import base_name, is_operator

aten = torch.ops.aten
Domain = Literal["float", "int8"]
Value = tuple[fx.Node, Domain]

OWNERS = frozenset((LINEAR, "aten::_weight_int8pack_mm", "aten::_weight_int4pack_mm_for_cpu"))
"""Operators after which ``finish`` leaves a tensor that nothing else refers to."""

KERNEL = f"torch.ops.{LINEAR.replace('::', '.')}"
INT4_GROUPS = (32, 64, 128, 256)


@dataclass(frozen=True)
class Form:
    """``reads``: the values it needs; ``write`` adds the lines that compute it, under the name it is given.
    ``operator``: what it calls, as the profiler shows it, how many ``times``, and for which ``layer``, if for one."""

    reads: tuple[Value, ...]
    write: Callable[[Source, str], None]
    operator: str = ""
    layer: str | None = None
    times: int = 1


class Lowering:
    """The forms of one program's values."""

    def __init__(self, program: Program, record: Record) -> None:
        self.program = program
        self.nodes = {node.name: node for node in program.graph.nodes}
        self.packing = Packing(program)
        placed = [layer for layer in record.layers if layer.node in self.nodes]
        self.layers = {self.nodes[layer.node]: self._layer(layer) for layer in placed}
        self.quantized = {self.nodes[value.node]: value for value in record.values if value.node in self.nodes}
        left = {self.nodes[node]: name for node, name in record.float_layers.items() if node in self.nodes}
        self.callers = left | dict(map(self._caller, self.layers.values()))
        self.forms: dict[Value, Form] = {}

    def _layer(self, record: LayerRecord) -> Layer:
        bias = self.nodes[record.bias] if record.bias is not None else None
        return Layer(record, self.nodes[record.node], self.nodes[record.input], bias)

    def _caller(self, layer: Layer) -> tuple[fx.Node, str]:
        """The node that is the layer's own operator in the reference, below casts and scales of its result."""
        node = layer.node
        if layer.record.kind == "embedding" and node.target in EMBEDDING_TAILS:
            values = layer.record.weights[0].values
            table = next(held for held, constant in self.program.constants.items() if constant.name == values)
            return next(above for above in _above(node) if table in above.all_input_nodes), layer.record.name
        return original(layer), layer.record.name

    def form(self, value: Value) -> Form:
        if value not in self.forms:
            node, domain = value
            self.forms[value] = self._int8(node) if domain == "int8" else self._float(node)
        return self.forms[value]

    # --- Float values ---

    def _float(self, node: fx.Node) -> Form:
        layer = self.layers.get(node)
        form = FLOAT_FORMS[layer.record.kind](self, layer) if layer and layer.record.kind in FLOAT_FORMS else None
        if form is not None:
            return form
        if node in self.quantized and self.is_chained(node):
            return Form(
                ((node, "int8"),),
                lambda source, name: source.line(f"{name} = {source.name(node, 'int8')}.dequantize()"),
            )
        reads: tuple[Value, ...] = tuple((read, "float") for read in node.all_input_nodes if read.op != "get_attr")
        owned = self._owned_argument(node)
        if owned is not None:
            return Form(reads, lambda source, name: source.call_in_place(node, name, owned), operator_of(node))
        return Form(reads, lambda source, name: source.call(node, name), operator_of(node), self.callers.get(node))

    def _owned_argument(self, node: fx.Node) -> fx.Node | None:
        """The argument of an elementwise call that a layer has just made and nobody else reads: its memory can hold the
        result."""
        if node.target not in IN_PLACE or node in self.callers:
            return None
        result = node.meta["val"]
        for operand in node.args[:2]:
            if not isinstance(operand, fx.Node) or operand not in self.layers or len(operand.users) != 1:
                continue
            value = operand.meta["val"]
            same = value.dtype is result.dtype and _shape(value) == _shape(result)
            if same and self.is_lowered(self.layers[operand]):
                return operand
        return None

    def is_lowered(self, layer: Layer) -> bool:
        """Whether the layer's result is made by a kernel here, in memory of its own."""
        return self.form((layer.node, "float")).operator in OWNERS

    # --- Quantized values ---

    def is_chained(self, node: fx.Node) -> bool:
        """Whether this quantized value comes out of an int8 kernel, never having been float."""
        return self._chain(node) is not None

    def _int8(self, node: fx.Node) -> Form:
        form = self._chain(node)
        if form is not None:
            return form
        value = self.quantized[node]
        source_node = self.nodes[value.source]

        def write(source: Source, name: str) -> None:
            x = in_float32(source.name(source_node), source_node)
            if rank(source_node) == 4:
                x = f"{x}.contiguous(memory_format=torch.channels_last)"
            source.line(f"{name} = torch.quantize_per_tensor({x}, {value.scale!r}, {value.zero_point}, torch.quint8)")

        return Form(((source_node, "float"),), write)

    def _chain(self, node: fx.Node) -> Form | None:
        key: Value = (node, "int8")
        if key in self.forms:
            form = self.forms[key]
            return form if form.reads and form.reads[0][1] == "int8" else None
        value = self.quantized[node]
        source = self.nodes[value.source]
        if len(source.users) != 1:
            return None
        inner, relu = (source.all_input_nodes[0], True) if self._is_relu(source, value) else (source, False)
        if inner is not source and len(inner.users) > 1:
            return None
        return self._fused(inner, relu, value) or (self._kept(source, value) if inner is source else None)

    def _is_relu(self, node: fx.Node, value: QuantizedValue) -> bool:
        """A relu, or a clamp that the quantized range makes again anyway."""
        if node.target in RELUS:
            return True
        if node.target not in CLAMPS or value.zero_point != value.qmin:
            return False
        low = argument(node, "min", "min_val")
        high = None if node.target is aten.clamp_min.default else argument(node, "max", "max_val")
        top = (value.qmax - value.zero_point) * value.scale
        return low == 0 and (high is None or top <= float(high) * 1.01)

    def _fused(self, node: fx.Node, relu: bool, value: QuantizedValue) -> Form | None:
        layer = self.layers.get(node)
        if layer is not None and layer.record.quantized_input is not None:
            writer = {"linear": self._chained_linear, "convolution": self._chained_convolution}.get(layer.record.kind)
            return writer(layer, relu, value) if writer else None
        if node.target in ADDS and argument(node, "alpha") == 1:
            return self._added(node, relu, value)
        if node.target is aten.cat.default and not relu:
            return self._joined(node, value)
        return None

    def _added(self, node: fx.Node, relu: bool, value: QuantizedValue) -> Form | None:
        left, right = arguments(node, "self", "other")
        if left not in self.quantized or right not in self.quantized:
            return None
        operator = "add_relu" if relu else "add"

        def write(source: Source, name: str) -> None:
            both = f"{source.name(left, 'int8')}, {source.name(right, 'int8')}"
            source.line(f"{name} = torch.ops.quantized.{operator}({both}, {value.scale!r}, {value.zero_point})")

        return Form(((left, "int8"), (right, "int8")), write)

    def _joined(self, node: fx.Node, value: QuantizedValue) -> Form | None:
        tensors, axis = arguments(node, "tensors", "dim")
        if any(tensor not in self.quantized for tensor in tensors):
            return None

        def write(source: Source, name: str) -> None:
            names = ", ".join(source.name(tensor, "int8") for tensor in tensors)
            source.line(f"{name} = torch.ops.quantized.cat([{names}], {axis}, {value.scale!r}, {value.zero_point})")

        return Form(tuple((tensor, "int8") for tensor in tensors), write)

    def _kept(self, node: fx.Node, value: QuantizedValue) -> Form | None:
        x = node.args[0] if node.target in KEEPS_VALUES and node.args else None
        before = self.quantized.get(x) if isinstance(x, fx.Node) else None
        if before is None or (before.scale, before.zero_point) != (value.scale, value.zero_point):
            return None
        x = node.all_input_nodes[0]
        rest = _reads(*node.all_input_nodes[1:])
        return Form(((x, "int8"), *rest), lambda source, name: source.call(node, name, {x: source.name(x, "int8")}))

    # --- Layers along a chain ---

    def _chained_linear(self, layer: Layer, relu: bool, value: QuantizedValue) -> Form | None:
        record = layer.record
        plain = not record.left and record.alpha == 1 and record.beta == 1
        if not plain or rank(layer.input) < 2 or not self.packing.has_constant_bias(layer):
            return None
        return self._chained(layer, f"linear{'_relu' if relu else ''}", value, self.packing.linear_with_bias)

    def _chained_convolution(self, layer: Layer, relu: bool, value: QuantizedValue) -> Form | None:
        pack = self.packing.convolution(layer)
        if pack is None:
            return None
        return self._chained(layer, f"conv{rank(layer.input) - 2}d{'_relu' if relu else ''}", value, pack)

    def _chained(self, layer: Layer, operator: str, value: QuantizedValue, pack: Pack) -> Form:
        read = self.nodes[layer.record.quantized_input or ""]

        def write(source: Source, name: str) -> None:
            packed = self.packing.attribute(source, layer, operator, pack)
            x = source.name(read, "int8")
            source.line(f"{name} = torch.ops.quantized.{operator}({x}, {packed}, {value.scale!r}, {value.zero_point})")

        return Form(((read, "int8"),), write, f"quantized::{operator}", layer.record.name)

    # --- Layers with a float result ---

    def linear(self, layer: Layer) -> Form | None:
        record, weight = layer.record, layer.record.weights[0]
        if record.compute == "float":
            return self._weight_only(layer)
        if weight.dtype != "int8" or weight.granularity == "per_group":
            return None
        if record.quantized_input is not None:
            return self._static_linear(layer)
        return self._per_token(layer)

    def _per_token(self, layer: Layer) -> Form:
        assert layer.record.per_token is not None
        scheme = layer.record.per_token

        def write(source: Source, name: str) -> None:
            rows, scale = normalized(source, layer, scheme)
            packed = self.packing.attribute(source, layer, "per_token", self.packing.linear)
            kernel = f"{KERNEL}({rows}, {1 / scheme.steps!r}, {scheme.zero_point}, {packed})"
            if scheme.range == "affine":
                weight = layer.record.weights[0]
                sums = source.attribute((weight.values, "sums"), lambda: self.packing.row_sums(weight), "sums")
                kernel = f"{kernel}.mul_({scale}).addcmul_({rows}_low, {sums})"
            squeeze = ".squeeze(0)" if rank(layer.input) == 1 else ""
            finish(source, layer, name, f"{kernel}{squeeze}", f"{scale}{squeeze}" if scheme.range != "affine" else None)

        return Form(_reads(layer.input, layer.bias), write, LINEAR, layer.record.name)

    def _static_linear(self, layer: Layer) -> Form:
        node = self.nodes[layer.record.quantized_input or ""]
        value = self.quantized[node]
        read = node if self.is_chained(node) else self.nodes[value.source]
        reads = _reads(read, layer.bias)

        def write(source: Source, name: str) -> None:
            x = prepared(layer, source.name(read))
            packed = self.packing.attribute(source, layer, "static", self.packing.linear)
            squeeze = ".squeeze(0)" if rank(layer.input) == 1 else ""
            kernel = f"{KERNEL}({x}, {value.scale!r}, {value.zero_point}, {packed}){squeeze}"
            finish(source, layer, name, kernel, None)

        return Form(reads, write, LINEAR, layer.record.name)

    def _weight_only(self, layer: Layer) -> Form | None:
        """Kernels that read integer weights and bfloat16 rows; their rounding (about 59 dB) is far below the weights'
        own (about 42 dB for int8). The reference's arithmetic where there is none."""
        weight = layer.record.weights[0]
        values, scale = self.packing.stored(weight)
        if rank(layer.input) < 1 or values.shape[1] % 32 or values.shape[0] % 32:
            return None
        if weight.dtype == "int8" and weight.granularity != "per_group":
            return self._mixed(layer, "_weight_int8pack_mm({x}, {values}, {scale})", values,
                               scale.expand(values.shape[0], 1).flatten().to(torch.bfloat16).contiguous())  # fmt: skip
        group = weight.group_size
        if weight.dtype == "int4" and weight.granularity == "per_group" and group in INT4_GROUPS:
            call = f"_weight_int4pack_mm_for_cpu({{x}}, {{values}}, {group}, {{scale}})"
            return self._mixed(layer, call, lambda: kernels.pack_int4(values), kernels.int4_scales(scale))
        return None

    def _mixed(self, layer: Layer, call: str, values: Any, scale: torch.Tensor) -> Form:
        size = self.packing.tensors[layer.record.weights[0].values].shape[0]

        def write(source: Source, name: str) -> None:
            label = layer.record.name
            held = source.attribute((label, "values"), values if callable(values) else lambda: values, label)
            steps = source.attribute((label, "scale"), lambda: scale, f"{label}_scale")
            x = source.name(layer.input)
            x = f"{x}.transpose(-1, -2)" if layer.record.left else x
            rows = f"{name}_rows"
            source.line(f"{rows} = {x}")
            flat = f"{rows}.reshape(-1, {rows}.size(-1)).to(torch.bfloat16)"
            product = "torch.ops.aten." + call.format(x=flat, values=held, scale=steps)
            shaped = f"{product}.to(torch.float32).view({rows}.size()[:-1] + [{size}])"
            finish(source, layer, name, shaped, None)

        return Form(_reads(layer.input, layer.bias), write, f"aten::{call.partition('(')[0]}", layer.record.name)

    def batched(self, layer: Layer) -> Form | None:
        if layer.record.per_token is None:
            return None
        scheme, weight = layer.record.per_token, layer.record.weights[0]
        count = self.packing.tensors[weight.values].shape[0]

        def write(source: Source, name: str) -> None:
            rows, scale = normalized(source, layer, scheme)
            key = (weight.values, "experts")
            packed = source.attribute(key, lambda: self.packing.experts(weight, layer), layer.record.name)
            calls = (
                f"{KERNEL}({rows}[{i}], {1 / scheme.steps!r}, {scheme.zero_point}, {packed}[{i}])" for i in range(count)
            )
            finish(source, layer, name, f"torch.stack([{', '.join(calls)}])", scale)

        return Form(_reads(layer.input, layer.bias), write, LINEAR, layer.record.name, count)

    def recurrent(self, layer: Layer) -> Form | None:
        """``aten::quantized_lstm`` and ``quantized_gru``, which quantize each step's input over the whole batch."""
        node = layer.node
        if layer.record.compute == "float":
            return None
        x, states, weights, has_biases = arguments(node, "input", "hx", "params", "has_biases")
        layers, both_ways, batch_first = arguments(node, "num_layers", "bidirectional", "batch_first")
        cells = self.packing.cells(layer, weights, has_biases)
        lstm = isinstance(states, list | tuple)
        operator = "quantized_lstm" if lstm else "quantized_gru"

        def write(source: Source, name: str) -> None:
            held = source.attribute((layer.record.name, "cells"), lambda: cells, layer.record.name)
            given = f"[{', '.join(map(source.name, states))}]" if lstm else source.name(states)
            flags = f"{has_biases}, {layers}, 0.0, False, {both_ways}, {batch_first}"
            extra = ", dtype=torch.qint8, use_dynamic=True" if lstm else ""
            source.line(f"{name} = torch.ops.aten.{operator}({source.name(x)}, {given}, {held}, {flags}{extra})")

        return Form(_reads(x, *(states if lstm else (states,))), write, f"aten::{operator}", layer.record.name)


FLOAT_FORMS: Mapping[str, Callable[[Lowering, Layer], Form | None]] = {
    "linear": Lowering.linear,
    "batched": Lowering.batched,
    "recurrent": Lowering.recurrent,
}


def _shape(value: torch.Tensor) -> tuple[str, ...]:
    """Comparable without adding a guard on a dynamic size."""
    return tuple(map(str, value.shape))


def operator_of(node: fx.Node) -> str:
    """The name the profiler shows for this call; "" for what is no operator."""
    target = node.target
    return f"{target.namespace}::{base_name(target)}" if is_operator(target) else ""


def _above(node: fx.Node) -> Iterator[fx.Node]:
    """The node and those it is computed from, nearest first."""
    waiting = [node]
    while waiting:
        nearest = waiting.pop(0)
        yield nearest
        waiting.extend(nearest.all_input_nodes)


def _reads(*nodes: fx.Node | None) -> tuple[Value, ...]:
    return tuple((node, "float") for node in nodes if node is not None)
