"""The reference: the user's program with integer weights and quantized activations, written in plain ATen.

Each quantized operand becomes a dequantized one, each input that is multiplied in integers a quantized and dequantized
one; the call between them stays what it was. So the same few lines serve every operator, any torch runs the result,
and every artifact has one thing to be measured against. The record says where the layers are, for the lowerings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import starmap
from typing import Any

import torch
from torch import Tensor, fx

from fewbit.runtime.program import Program, argument, dtype_of
from fewbit.runtime.record import LayerRecord, PerToken, QuantizedValue, Record, WeightRecord
from workers.engine.graph.editor import GraphEditor, after
from workers.engine.graph.layers import Layer, Operand, Use
from workers.engine.graph.ops import EMBEDDING_BAGS, EXPANSIONS
from workers.engine.graph.torch_internals import is_operator, parameters
from workers.engine.quantization.activations import quantize_at, quantize_per_token
from workers.engine.quantization.dequantization import dequantize_groups, dequantize_rows, order_of, unpack_nibbles
from workers.engine.quantization.observers import QParams
from workers.engine.quantization.quantize import QuantizedLayer
from workers.engine.quantization.weights import QuantizedWeight

aten = torch.ops.aten


@dataclass(frozen=True)
class Reference:
    program: Program
    record: Record


@dataclass(frozen=True)
class FixedRange:
    """The range of one value. ``everywhere``: all its readers get the quantized value, not only the layers."""

    qparams: QParams
    everywhere: bool


def build_reference(
    program: Program,
    layers: Iterable[Layer],
    quantized: Iterable[QuantizedLayer],
    ranges: Mapping[fx.Node, FixedRange],
) -> Reference:
    """``program`` is not changed; the reference shares its float tensors. ``ranges``: of the values that static layers
    read, and of those that their chains pass on."""
    quantized = tuple(quantized)
    chosen = {row.layer.name for row in quantized}
    left = {use.node.name: layer.name for layer in layers if layer.name not in chosen for use in layer.uses}
    return _Rewriter(program).rewrite(quantized, ranges, left)


@dataclass(frozen=True)
class _Stored:
    """The graph inputs of a quantized weight, and the buffers they stand for."""

    values: fx.Node
    scale: fx.Node
    values_name: str
    scale_name: str


class _Rewriter(GraphEditor):
    """``stored``: the buffers of each quantized weight; ``rows`` and ``fixed``: the quantized values of inputs."""

    def __init__(self, program: Program) -> None:
        super().__init__(program, drop_unread=True)
        self.stored: dict[int, _Stored] = {}
        self.rows: dict[tuple[str, PerToken], fx.Node] = {}
        self.fixed: dict[str, fx.Node] = {}
        self.layers: list[LayerRecord] = []
        self.values: list[QuantizedValue] = []

    def rewrite(
        self, quantized: tuple[QuantizedLayer, ...], ranges: Mapping[fx.Node, FixedRange], left: dict[str, str]
    ) -> Reference:
        for node, fixed in ranges.items():
            self._fix(node.name, fixed)
        order = {node.name: index for index, node in enumerate(self.program.graph.nodes)}
        calls = [(layer, use) for layer in quantized for use in layer.layer.uses]
        for layer, use in sorted(calls, key=lambda call: order[call[1].node.name]):
            self._replace(layer, use)
        changed = self.finish()
        alive = {node.name for node in changed.graph.nodes}
        layers, values = map(self._current, self.layers), map(self._current, self.values)
        return Reference(changed, Record(
            layers=tuple(layer for layer in layers if layer.node in alive),
            values=tuple(value for value in values if value.node in alive),
            float_layers=left,
        ))  # fmt: skip

    def _current(self, record: Any) -> Any:
        """The record with the names of nodes that took the place of others since it was made."""
        named = {
            field: getattr(record, field, None) for field in ("node", "input", "source", "bias", "quantized_input")
        }
        return record.model_copy(update={
            field: self.current_name(name) for field, name in named.items() if isinstance(name, str)
        })  # fmt: skip

    # --- One call of a layer ---

    def _replace(self, quantized: QuantizedLayer, use: Use) -> None:
        node = self.originals[use.node.name]
        x = self.nodes[use.input.name]
        with self.graph.inserting_before(node):
            if quantized.layer.kind == "embedding":
                self._embedding(quantized, use, node)
                return
            read = self._quantized_input(quantized, use, x)
            operands = self._operands(quantized, use, node)
            swapped = self._swapped(node, use, operands)
            if read is not x:
                swapped[x] = read
            swap = self._swap if quantized.layer.kind == "nested" else self._call_in_float32
            result = swap(node, swapped)
        self._record(quantized, use, x, read, operands, result)

    def _swapped(self, node: fx.Node, use: Use, operands: Iterable[fx.Node]) -> dict[fx.Node, fx.Node]:
        """By the argument of ``node`` that is an operand, or a view of one: the same of the dequantized operand."""
        swapped = {}
        for operand, new in zip(use.operands, operands, strict=True):
            old = self.nodes[operand.name]
            argument = _argument_above(node, old)
            swapped[argument] = self._through(node, argument, old, new)
        return swapped

    def _through(self, node: fx.Node, argument: fx.Node, old: fx.Node, new: fx.Node) -> fx.Node:
        """``argument``, a view of ``old`` or ``old`` itself, as the same view of ``new``."""
        if argument is old:
            return new
        inner = self._through(node, argument.all_input_nodes[0], old, new)
        return self.call(node, argument.target, inner, *argument.args[1:], **argument.kwargs)

    def _swap(self, node: fx.Node, swapped: Mapping[fx.Node, fx.Node]) -> fx.Node:
        for old, new in swapped.items():
            node.replace_input_with(old, new)
        return node

    def _call_in_float32(self, node: fx.Node, swapped: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """The call with its operands swapped. A call in another float type is made in float32: integers times scales
        do not fit half precision, and the int8 kernels give float32."""
        dtype = dtype_of(node)
        if dtype is torch.float32 or not dtype.is_floating_point or node.target is aten._grouped_mm.default:
            return self._swap(node, swapped)  # _grouped_mm takes bfloat16 only

        def widened(operand: fx.Node) -> fx.Node:
            operand = swapped.get(operand, operand)
            floating = isinstance(operand.meta.get("val"), Tensor) and operand.meta["val"].dtype.is_floating_point
            return self.cast(node, operand, torch.float32) if floating else operand

        given: Any = fx.node.map_arg((node.args, dict(node.kwargs)), widened)
        arguments, keywords = given
        wide = self.call(node, node.target, *arguments, **keywords)
        result = self.cast(node, wide, dtype) if isinstance(wide.meta["val"], Tensor) else self._narrowed(node, wide)
        self.replace(node, result)
        return result

    def _narrowed(self, node: fx.Node, wide: fx.Node) -> fx.Node:
        """A call with several results: each reader gets its own, cast back."""
        for reader in list(node.users):
            result = self.call(node, reader.target, wide, *reader.args[1:])
            self.replace(reader, self.cast(node, result, dtype_of(reader)))
        return wide

    def _embedding(self, quantized: QuantizedLayer, use: Use, node: fx.Node) -> None:
        """Rows are gathered as integers and scaled, so that the table is never dequantized as a whole."""
        if node.target in EMBEDDING_BAGS and _padding(node) >= 0:
            operand = self._operand(node, quantized.layer.operands[0], quantized.weights[0], use.operands[0])
            result = self._swap(node, {self.nodes[use.operands[0].name]: operand})
        elif node.target in EMBEDDING_BAGS:
            result = operand = self._bag(quantized, use, node)
        else:
            rows = self._rows(quantized.weights[0], node, argument(node, "indices"))
            result = operand = self.cast(node, rows, dtype_of(node))
            self.replace(node, result)
        x = self.nodes[use.input.name]
        self._record(quantized, use, x, x, [operand], result)

    def _rows(self, weight: QuantizedWeight, node: fx.Node, indices: fx.Node) -> fx.Node:
        stored = self._stored(weight)
        gathered = self.call(node, aten.embedding.default, stored.values, indices)
        if weight.dtype == "int4":
            gathered = self.insert(node, unpack_nibbles, gathered)
        wide = self.cast(node, gathered, torch.float32)
        shared = weight.scale.shape[0] == 1
        steps = stored.scale if shared else self.call(node, aten.embedding.default, stored.scale, indices)
        if weight.group_size is None:
            return self.call(node, aten.mul.Tensor, wide, steps)
        rows: fx.Node = self.insert(node, dequantize_rows, wide, steps, group_size=weight.group_size)
        return rows

    def _bag(self, quantized: QuantizedLayer, use: Use, node: fx.Node) -> fx.Node:
        """The gathered rows are a table of their own, read in order."""
        indices = argument(node, "indices")
        rows = self.cast(node, self._rows(quantized.weights[0], node, indices), dtype_of(use.operands[0]))
        order = self.cast(node, self.insert(node, order_of, indices), dtype_of(indices))
        node.args = (rows, order, *node.args[2:])
        return node

    # --- Operands ---

    def _operands(self, quantized: QuantizedLayer, use: Use, node: fx.Node) -> list[fx.Node]:
        weights = zip(quantized.layer.operands, quantized.weights, use.operands, strict=True)
        return [self._operand(node, operand, weight, like) for operand, weight, like in weights]

    def _operand(self, node: fx.Node, operand: Operand, weight: QuantizedWeight, like: fx.Node) -> fx.Node:
        """The dequantized operand, as the call takes it."""
        stored = self._stored(weight)
        values = self.insert(node, unpack_nibbles, stored.values) if weight.dtype == "int4" else stored.values
        wide = self.cast(node, values, torch.float32)
        if weight.axis is None:
            whole = self.call(node, aten.mul.Tensor, wide, stored.scale)
        else:
            whole = self.insert(
                node, dequantize_groups, wide, stored.scale, axis=weight.axis, group_size=weight.group_size
            )
        if operand.transposed:
            whole = self.call(node, aten.t.default, whole)
        return self.cast(node, whole, dtype_of(like))

    def _stored(self, weight: QuantizedWeight) -> _Stored:
        if id(weight) not in self.stored:
            index = len(self.stored)
            values = pack_nibbles(weight.values) if weight.dtype == "int4" else weight.values
            names = f"{weight.dtype}_values_{index}", f"{weight.dtype}_scale_{index}"
            nodes = self.add_buffer(names[0], values), self.add_buffer(names[1], weight.scale)
            self.stored[id(weight)] = _Stored(*nodes, *names)
        return self.stored[id(weight)]

    # --- Activations ---

    def _quantized_input(self, quantized: QuantizedLayer, use: Use, x: fx.Node) -> fx.Node:
        arithmetic = quantized.arithmetic
        if arithmetic.mode == "static":
            return self.fixed[use.input.name]
        if arithmetic.mode != "per_token" or not use.axes:
            return x
        scheme = PerToken(levels=arithmetic.levels, axes=use.axes, range=arithmetic.range)
        key = (x.name, scheme)
        if key not in self.rows:
            with self.graph.inserting_before(after(x)):
                self.rows[key] = self._per_token(x, scheme)
        return self.rows[key]

    def _per_token(self, x: fx.Node, scheme: PerToken) -> fx.Node:
        wide = self.cast(x, x, torch.float32)
        return self.cast(x, self.insert(x, quantize_per_token, wide, scheme=scheme), dtype_of(x))

    def _fix(self, name: str, fixed: FixedRange) -> None:
        x, q = self.nodes[name], fixed.qparams
        dtype, readers = dtype_of(x), list(x.users)
        at = {"scale": q.scale, "zero_point": float(q.zero_point), "qmin": float(q.qmin), "qmax": float(q.qmax)}
        with self.graph.inserting_before(after(x)):
            wide = self.cast(x, x, torch.float32)
            result = self.cast(x, self.insert(x, quantize_at, wide, numbers=at), dtype)
        if fixed.everywhere:
            for reader in readers:
                reader.replace_input_with(x, result)
            self.nodes[name] = result
        self.fixed[name] = result
        self.values.append(
            QuantizedValue(
                source=x.name, node=result.name, scale=q.scale, zero_point=q.zero_point, qmin=q.qmin, qmax=q.qmax
            )
        )

    # --- The record, and the graph's own bookkeeping ---

    def _record(
        self, quantized: QuantizedLayer, use: Use, x: fx.Node, read: fx.Node, operands: list[fx.Node], result: fx.Node
    ) -> None:
        arithmetic = quantized.arithmetic
        weights = zip(quantized.layer.operands, quantized.weights, operands, strict=False)
        scheme = PerToken(levels=arithmetic.levels, axes=use.axes, range=arithmetic.range)
        per_token = scheme if arithmetic.mode == "per_token" else None
        bias = self.nodes.get(use.bias.name) if use.bias is not None else None
        self.layers.append(LayerRecord(
            name=quantized.layer.name,
            kind=quantized.layer.kind,
            node=result.name,
            input=x.name,
            weights=tuple(starmap(self._weight_record, weights)),
            compute="float" if arithmetic.mode == "float" else "int8",
            per_token=per_token,
            quantized_input=read.name if arithmetic.mode == "static" else None,
            bias=bias.name if bias is not None else None,
            alpha=use.alpha,
            beta=use.beta,
            left=use.left,
        ))  # fmt: skip

    def _weight_record(self, operand: Operand, weight: QuantizedWeight, node: fx.Node) -> WeightRecord:
        stored = self._stored(weight)
        return WeightRecord(
            values=stored.values_name,
            scale=stored.scale_name,
            operand=node.name,
            dtype=weight.dtype,
            granularity=weight.granularity,
            group_size=weight.group_size,
            packed=weight.dtype == "int4",
            transposed=operand.transposed,
        )


def _argument_above(node: fx.Node, operand: fx.Node) -> fx.Node:
    """The argument of ``node`` that is ``operand``, or an expansion of it."""
    if operand in node.all_input_nodes:
        return operand
    for candidate in node.all_input_nodes:
        below = candidate
        while below.target in EXPANSIONS:
            below = below.all_input_nodes[0]
            if below is operand:
                return candidate
    raise ValueError(f"{node.name} does not read {operand.name}")


def pack_nibbles(values: Tensor) -> Tensor:
    """int4 values -8..7, an even number along the last axis, to uint8: the first half in the low nibbles."""
    low, high = (values + 8).to(torch.uint8).chunk(2, dim=-1)
    return low | (high << 4)


def _padding(node: fx.Node) -> int:
    """``padding_idx`` of an embedding bag; -1 for none."""
    known = is_operator(node.target) and "padding_idx" in parameters(node.target)
    padding = argument(node, "padding_idx") if known else None
    return padding if isinstance(padding, int) else -1
