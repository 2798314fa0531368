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
from fewbit.runtime.program import Program, argument, dtype_of, rank
from fewbit.runtime.record import LayerRecord, QuantizedValue, Record, WeightRecord
from fewbit.runtime.rows import Layer, finish, normalized, prepared
from fewbit.runtime.source import Source

aten = torch.ops.aten
Domain = Literal["float", "int8"]
Value = tuple[fx.Node, Domain]

RELUS = frozenset((aten.relu.default, aten.relu_.default))
CLAMPS = frozenset((aten.hardtanh.default, aten.hardtanh_.default, aten.clamp.default, aten.clamp_min.default))
KEEPS_VALUES = frozenset(
    (aten.max_pool2d.default, aten.max_pool1d.default, aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default,
     aten.mean.dim, aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.permute.default,
     aten.transpose.int, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.slice.Tensor,
     aten.dropout.default, aten.contiguous.default, aten.clone.default, aten.relu.default)
)  # fmt: skip
"""Calls whose result keeps its input's scale and zero point, and that run on quantized tensors as they are."""

IN_PLACE = frozenset((
    aten.gelu.default, aten.relu.default, aten.silu.default, aten.tanh.default, aten.sigmoid.default, aten.add.Tensor,
    aten.mul.Tensor,
))  # fmt: skip
OWNERS = frozenset((LINEAR, "aten::_weight_int8pack_mm", "aten::_weight_int4pack_mm_for_cpu"))
"""Operators after which ``_finish`` leaves a tensor that nothing else refers to."""

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
        self.tensors = {constant.name: constant.value for constant in program.constants.values()}
        self.layers = {self.nodes[each.node]: self._layer(each) for each in record.layers if each.node in self.nodes}
        self.quantized = {self.nodes[each.node]: each for each in record.values if each.node in self.nodes}
        left = {self.nodes[node]: name for node, name in record.float_layers.items() if node in self.nodes}
        self.callers = left | dict(map(self._caller, self.layers.values()))
        self.forms: dict[Value, Form] = {}

    def _layer(self, record: LayerRecord) -> Layer:
        bias = self.nodes[record.bias] if record.bias is not None else None
        return Layer(record, self.nodes[record.node], self.nodes[record.input], bias)

    def _caller(self, layer: Layer) -> tuple[fx.Node, str]:
        """The node that is the layer's own operator in the reference, below casts and scales of its result."""
        node = layer.node
        if layer.record.kind == "embedding" and node.target in (
            aten.mul.Tensor,
            aten._to_copy.default,
            aten.flatten.using_ints,
        ):
            values = layer.record.weights[0].values
            held = next(each for each, constant in self.program.constants.items() if constant.name == values)
            return next(each for each in _above(node) if held in each.all_input_nodes), layer.record.name
        return self._original(layer), layer.record.name

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
        reads: tuple[Value, ...] = tuple((each, "float") for each in node.all_input_nodes if each.op != "get_attr")
        owned = self._owned_argument(node)
        if owned is not None:
            return Form(reads, lambda source, name: source.call_in_place(node, name, owned), operator_of(node))
        return Form(reads, lambda source, name: source.call(node, name), operator_of(node), self.callers.get(node))

    def _owned_argument(self, node: fx.Node) -> fx.Node | None:
        """The argument of an elementwise call that a layer has just made and nobody else reads: its memory can hold the
        result."""
        if node.target not in IN_PLACE or node in self.callers:
            return None
        whole = node.meta["val"]
        for each in node.args[:2]:
            layer = self.layers.get(each) if isinstance(each, fx.Node) else None
            if layer is None or not self.is_lowered(layer) or len(each.users) != 1:  # type: ignore[union-attr]
                continue
            value = each.meta["val"]  # type: ignore[union-attr]
            if value.dtype is whole.dtype and _shape(value) == _shape(whole):
                return each  # type: ignore[return-value]
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
            x = source.name(source_node)
            x = x if dtype_of(source_node) is torch.float32 else f"{x}.to(torch.float32)"
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
        inner, relu = (source.args[0], True) if self._is_relu(source, value) else (source, False)
        if inner is not source and len(inner.users) > 1:
            return None
        return self._fused(inner, relu, value) or (self._kept(source, value) if inner is source else None)

    def _is_relu(self, node: fx.Node, value: QuantizedValue) -> bool:
        """A relu, or a clamp that the quantized range makes again anyway."""
        if node.target in RELUS:
            return True
        if node.target not in CLAMPS or value.zero_point != value.qmin:
            return False
        low, high = (
            argument(node, 1, "min_val", argument(node, 1, "min", -1.0)),
            argument(node, 2, "max_val", argument(node, 2, "max")),
        )
        top = (value.qmax - value.zero_point) * value.scale
        return low == 0 and (high is None or top <= float(high) * 1.01)

    def _fused(self, node: fx.Node, relu: bool, value: QuantizedValue) -> Form | None:
        layer = self.layers.get(node)
        if layer is not None and layer.record.quantized_input is not None:
            writer = {"linear": self._chained_linear, "convolution": self._chained_convolution}.get(layer.record.kind)
            return writer(layer, relu, value) if writer else None
        if node.target in (aten.add.Tensor, aten.add_.Tensor) and node.kwargs.get("alpha", 1) == 1:
            return self._added(node, relu, value)
        if node.target is aten.cat.default and not relu:
            return self._joined(node, value)
        return None

    def _added(self, node: fx.Node, relu: bool, value: QuantizedValue) -> Form | None:
        left, right = node.args[:2]
        if left not in self.quantized or right not in self.quantized:
            return None
        operator = "add_relu" if relu else "add"

        def write(source: Source, name: str) -> None:
            both = f"{source.name(left, 'int8')}, {source.name(right, 'int8')}"  # type: ignore[arg-type]
            source.line(f"{name} = torch.ops.quantized.{operator}({both}, {value.scale!r}, {value.zero_point})")

        return Form(((left, "int8"), (right, "int8")), write)  # type: ignore[arg-type]

    def _joined(self, node: fx.Node, value: QuantizedValue) -> Form | None:
        parts = node.args[0]
        if any(each not in self.quantized for each in parts):  # type: ignore[union-attr]
            return None
        axis = argument(node, 1, "dim", 0)

        def write(source: Source, name: str) -> None:
            names = ", ".join(source.name(each, "int8") for each in parts)  # type: ignore[union-attr,arg-type]
            source.line(f"{name} = torch.ops.quantized.cat([{names}], {axis}, {value.scale!r}, {value.zero_point})")

        return Form(tuple((each, "int8") for each in parts), write)  # type: ignore[union-attr,misc]

    def _kept(self, node: fx.Node, value: QuantizedValue) -> Form | None:
        if node.target not in KEEPS_VALUES or not node.args:
            return None
        x = node.args[0]
        before = self.quantized.get(x)
        if before is None or (before.scale, before.zero_point) != (value.scale, value.zero_point):
            return None
        rest = tuple((each, "float") for each in node.all_input_nodes if each is not x)
        return Form(((x, "int8"), *rest), lambda source, name: source.call(node, name, {x: source.name(x, "int8")}))  # type: ignore[arg-type,dict-item]

    # --- Layers along a chain ---

    def _chained_linear(self, layer: Layer, relu: bool, value: QuantizedValue) -> Form | None:
        record = layer.record
        if (
            record.left
            or record.alpha != 1
            or record.beta != 1
            or not self._constant_bias(layer)
            or rank(layer.input) < 2
        ):
            return None
        return self._chained(layer, f"linear{'_relu' if relu else ''}", value, self._with_bias)

    def _chained_convolution(self, layer: Layer, relu: bool, value: QuantizedValue) -> Form | None:
        geometry = self._geometry(layer)
        if geometry is None or not self._constant_bias(layer):
            return None
        name = f"conv{rank(layer.input) - 2}d{'_relu' if relu else ''}"

        def pack(weight: WeightRecord, layer: Layer) -> Any:
            values, scale = self.stored(weight)
            return kernels.pack_convolution(values, scale, self._bias(layer), *geometry)

        return self._chained(layer, name, value, pack)

    def _chained(self, layer: Layer, operator: str, value: QuantizedValue, pack: Callable[..., Any]) -> Form:
        read = self.nodes[layer.record.quantized_input or ""]

        def write(source: Source, name: str) -> None:
            packed = self._packed(source, layer, operator, pack)
            x = source.name(read, "int8")
            source.line(f"{name} = torch.ops.quantized.{operator}({x}, {packed}, {value.scale!r}, {value.zero_point})")

        return Form(((read, "int8"),), write, f"quantized::{operator}", layer.record.name)

    def _packed(self, source: Source, layer: Layer, label: str, pack: Callable[..., Any]) -> str:
        weight = layer.record.weights[0]
        key = (weight.values, layer.record.bias, label)
        return source.attribute(key, lambda: pack(weight, layer), f"{layer.record.name}_packed")

    def _with_bias(self, weight: WeightRecord, layer: Layer) -> Any:
        return kernels.pack_linear(*self.stored(weight), self._bias(layer))

    def _without_bias(self, weight: WeightRecord, _: Layer) -> Any:
        return kernels.pack_linear(*self.stored(weight))

    def _constant_bias(self, layer: Layer) -> bool:
        return layer.bias is None or (rank(layer.bias) == 1 and self.program.constant(layer.bias) is not None)

    def _bias(self, layer: Layer) -> torch.Tensor | None:
        value = self.program.constant(layer.bias)
        return value.to(torch.float32).contiguous() if value is not None else None

    def _geometry(self, layer: Layer) -> tuple[list[int], list[int], list[int], int] | None:
        """(strides, paddings, dilations, groups); None for a padding that is not the same on both sides."""
        node = self._original(layer)
        spatial = rank(layer.input) - 2
        kernel = self.tensors[layer.record.weights[0].values].shape[2:]
        strides = _each(argument(node, 3, "stride", 1), spatial)
        dilations = _each(argument(node, 5, "dilation", 1), spatial)
        groups = argument(node, 6, "groups", 1)
        padding = argument(node, 4, "padding", 0)
        if padding == "valid":
            padding = 0
        if padding == "same":
            spans = [dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=True)]
            if any(span % 2 for span in spans):
                return None
            padding = [span // 2 for span in spans]
        return strides, _each(padding, spatial), dilations, groups

    def _original(self, layer: Layer) -> fx.Node:
        """The call itself, below a cast of its result."""
        node = layer.node
        return node.args[0] if node.target is aten._to_copy.default else node  # type: ignore[return-value]

    # --- Layers with a float result ---

    def stored(self, weight: WeightRecord) -> tuple[torch.Tensor, torch.Tensor]:
        """(values, scale) as the reference holds them, int4 unpacked."""
        values = self.tensors[weight.values]
        if weight.packed:
            values = (torch.cat([values & 15, values >> 4], dim=-1).to(torch.int8)) - 8
        return values, self.tensors[weight.scale]

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
            packed = self._packed(source, layer, "per_token", self._without_bias)
            kernel = (
                f"torch.ops.{LINEAR.replace('::', '.')}({rows}, {1 / scheme.steps!r}, {scheme.zero_point}, {packed})"
            )
            if scheme.range == "affine":
                sums = source.attribute((layer.record.weights[0].values, "sums"), lambda: self._sums(layer), "sums")
                kernel = f"{kernel}.mul_({scale}).addcmul_({rows}_low, {sums})"
            squeeze = ".squeeze(0)" if rank(layer.input) == 1 else ""
            finish(source, layer, name, f"{kernel}{squeeze}", f"{scale}{squeeze}" if scheme.range != "affine" else None)

        return Form(_reads(layer.input, layer.bias), write, LINEAR, layer.record.name)

    def _sums(self, layer: Layer) -> torch.Tensor:
        """What one unit more on every input adds to each output: float32 [out_features]."""
        values, scale = self.stored(layer.record.weights[0])
        return values.sum(1, dtype=torch.float32) * scale.expand(values.shape[0], 1).flatten()

    def _static_linear(self, layer: Layer) -> Form:
        node = self.nodes[layer.record.quantized_input or ""]
        value = self.quantized[node]
        read = node if self.is_chained(node) else self.nodes[value.source]
        reads = _reads(read, layer.bias)

        def write(source: Source, name: str) -> None:
            x = prepared(layer, source.name(read))
            packed = self._packed(source, layer, "static", self._without_bias)
            kernel = f"torch.ops.{LINEAR.replace('::', '.')}({x}, {value.scale!r}, {value.zero_point}, {packed})"
            if rank(layer.input) == 1:
                kernel = f"{kernel}.squeeze(0)"
            finish(source, layer, name, kernel, None)

        return Form(reads, write, LINEAR, layer.record.name)

    def _weight_only(self, layer: Layer) -> Form | None:
        """Kernels that read integer weights and bfloat16 rows; their rounding (about 59 dB) is far below the weights'
        own (about 42 dB for int8). The reference's arithmetic where there is none."""
        weight = layer.record.weights[0]
        values, scale = self.stored(weight)
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
        size = self.tensors[layer.record.weights[0].values].shape[0]

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
        scheme = layer.record.per_token
        experts = self.tensors[layer.record.weights[0].values].shape[0]

        def write(source: Source, name: str) -> None:
            rows, scale = normalized(source, layer, scheme)
            key = (layer.record.weights[0].values, "experts")
            packed = source.attribute(
                key, lambda: kernels.pack_experts(*self.stored(layer.record.weights[0])), layer.record.name
            )
            call = f"torch.ops.{LINEAR.replace('::', '.')}"
            each = ", ".join(
                f"{call}({rows}[{i}], {1 / scheme.steps!r}, {scheme.zero_point}, {packed}[{i}])" for i in range(experts)
            )
            finish(source, layer, name, f"torch.stack([{each}])", scale)

        return Form(_reads(layer.input, layer.bias), write, LINEAR, layer.record.name, experts)

    def recurrent(self, layer: Layer) -> Form | None:
        """``aten::quantized_lstm`` and ``quantized_gru``, which quantize each step's input over the whole batch."""
        node = layer.node
        if layer.record.compute == "float":
            return None
        x, states, weights, has_biases, layers, _, _, both_ways, batch_first = node.args[:9]
        cells = self._cells(layer, weights, has_biases)  # type: ignore[arg-type]
        reads = (x, *(states if isinstance(states, list | tuple) else (states,)))
        lstm = node.target is aten.lstm.input

        def write(source: Source, name: str) -> None:
            held = source.attribute((layer.record.name, "cells"), lambda: cells, layer.record.name)
            given = f"[{', '.join(source.name(each) for each in states)}]" if lstm else source.name(states)  # type: ignore[union-attr,arg-type]
            flags = f"{has_biases}, {layers}, 0.0, False, {both_ways}, {batch_first}"
            extra = ", dtype=torch.qint8, use_dynamic=True" if lstm else ""
            operator = "quantized_lstm" if lstm else "quantized_gru"
            source.line(f"{name} = torch.ops.aten.{operator}({source.name(x)}, {given}, {held}, {flags}{extra})")  # type: ignore[arg-type]

        operator = f"aten::quantized_{'lstm' if lstm else 'gru'}"
        return Form(tuple((each, "float") for each in reads), write, operator, layer.record.name)

    def _cells(self, layer: Layer, weights: list[fx.Node], has_biases: bool) -> list[Any]:
        by_operand = {each.operand: self.stored(each) for each in layer.record.weights}
        count = 4 if has_biases else 2
        cells = []
        for start in range(0, len(weights), count):
            inner, hidden, *biases = weights[start : start + count]
            bias = tuple(self.program.constants[each].value for each in biases) or None
            cells.append(kernels.pack_cell(by_operand[inner.name], by_operand[hidden.name], bias))  # type: ignore[arg-type]
        return cells


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
    return f"{target.namespace}::{target._opname}" if isinstance(target, torch._ops.OpOverload) else ""


def _above(node: fx.Node) -> Iterator[fx.Node]:
    """The node and those it is computed from, nearest first."""
    waiting = [node]
    while waiting:
        each = waiting.pop(0)
        yield each
        waiting.extend(each.all_input_nodes)


def _reads(*nodes: fx.Node | None) -> tuple[Value, ...]:
    return tuple((each, "float") for each in nodes if each is not None)


def _each(value: Any, count: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * count if len(values) == 1 else values
