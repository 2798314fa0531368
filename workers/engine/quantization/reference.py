"""The reference: the user's program with integer weights and quantized activations, written in plain ATen.

Each quantized operand becomes a dequantized one, each input that is multiplied in integers a quantized and dequantized
one; the call between them stays what it was. So the same few lines serve every operator, any torch runs the result,
and every artifact has one thing to be measured against. The record says where the layers are, for the lowerings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fewbit.runtime.kernels import TINY
from fewbit.runtime.program import Program, dtype_of
from fewbit.runtime.record import LayerRecord, PerToken, QuantizedValue, Record, WeightRecord
from workers.engine.graph.editor import Surgery, after
from workers.engine.graph.layers import EXPANSIONS, Layer, Operand, Use
from workers.engine.quantization.observers import QParams
from workers.engine.quantization.quantize import QuantizedLayer
from workers.engine.quantization.weights import QuantizedWeight

aten = torch.ops.aten
BAGS = (
    aten.embedding_bag.default, aten.embedding_bag.padding_idx,
    aten._embedding_bag.default, aten._embedding_bag_forward_only.default,
)  # fmt: skip


@dataclass(frozen=True)
class Reference:
    program: Program
    record: Record


@dataclass(frozen=True)
class FixedRange:
    """The range of one value. ``everywhere``: all its readers get the quantized value, not only the layers."""

    qparams: QParams
    everywhere: bool


def reference_of(
    program: Program,
    layers: Iterable[Layer],
    quantized: Iterable[QuantizedLayer],
    ranges: Mapping[fx.Node, FixedRange],
) -> Reference:
    """``program`` is not changed; the reference shares its float tensors. ``ranges``: of the values that static layers
    read, and of those that their chains pass on."""
    quantized = tuple(quantized)
    chosen = {each.layer.name for each in quantized}
    left = {use.node.name: layer.name for layer in layers if layer.name not in chosen for use in layer.uses}
    return _Rewriter(program).rewrite(quantized, ranges, left)


class _Rewriter(Surgery):
    """``stored``: the buffers of each quantized weight; ``rows`` and ``fixed``: the quantized values of inputs."""

    def __init__(self, program: Program) -> None:
        super().__init__(program, for_good=True)
        self.stored: dict[int, tuple[fx.Node, fx.Node, str, str]] = {}
        self.rows: dict[tuple[str, PerToken], fx.Node] = {}
        self.fixed: dict[str, fx.Node] = {}
        self.layers: list[LayerRecord] = []
        self.values: list[QuantizedValue] = []

    def rewrite(
        self, quantized: tuple[QuantizedLayer, ...], ranges: Mapping[fx.Node, FixedRange], left: dict[str, str]
    ) -> Reference:
        for node, each in ranges.items():
            self._fix(node.name, each)
        order = {node.name: index for index, node in enumerate(self.program.graph.nodes)}
        calls = [(layer, use) for layer in quantized for use in layer.layer.uses]
        for layer, use in sorted(calls, key=lambda each: order[each[1].node.name]):
            self._replace(layer, use)
        changed = self.finish()
        alive = {node.name for node in changed.graph.nodes}
        layers, values = map(self._current, self.layers), map(self._current, self.values)
        return Reference(changed, Record(
            layers=tuple(each for each in layers if each.node in alive),
            values=tuple(each for each in values if each.node in alive),
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
        original = {operand: self.nodes[operand.name] for operand in use.operands}
        with self.graph.inserting_before(node):
            if quantized.layer.kind == "embedding":
                self._embedding(quantized, use, node)
                return
            read = self._quantized_input(quantized, use, x)
            operands = [
                self._operand(node, operand, weight, use_operand)
                for operand, weight, use_operand in zip(
                    quantized.layer.operands, quantized.weights, use.operands, strict=True
                )
            ]
            swapped = {
                read_by: self._through(node, read_by, old, new)
                for old, new in zip(original.values(), operands, strict=True)
                for read_by in [_argument_above(node, old)]
            }
            if read is not x:
                swapped[x] = read
            result = (
                self._call_in_float32(node, swapped) if quantized.layer.kind != "nested" else self._swap(node, swapped)
            )
        self._record(quantized, use, x, read, operands, result)

    def _through(self, node: fx.Node, argument: fx.Node, old: fx.Node, new: fx.Node) -> fx.Node:
        """``argument``, a view of ``old`` or ``old`` itself, as the same view of ``new``."""
        if argument is old:
            return new
        inner = self._through(node, argument.args[0], old, new)  # type: ignore[arg-type]
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

        def widened(each: fx.Node) -> fx.Node:
            each = swapped.get(each, each)
            floating = isinstance(each.meta.get("val"), Tensor) and each.meta["val"].dtype.is_floating_point
            return self.cast(node, each, torch.float32) if floating else each

        arguments, keywords = fx.node.map_arg((node.args, dict(node.kwargs)), widened)
        wide = self.call(node, node.target, *arguments, **keywords)
        result = self.cast(node, wide, dtype) if isinstance(wide.meta["val"], Tensor) else self._narrowed(node, wide)
        self.supersede(node, result)
        return result

    def _narrowed(self, node: fx.Node, wide: fx.Node) -> fx.Node:
        """A call with several results: each reader gets its own, cast back."""
        for reader in list(node.users):
            part = self.call(node, reader.target, wide, *reader.args[1:])
            self.supersede(reader, self.cast(node, part, dtype_of(reader)))
        return wide

    def _embedding(self, quantized: QuantizedLayer, use: Use, node: fx.Node) -> None:
        """Rows are gathered as integers and scaled, so that the table is never dequantized as a whole."""
        if node.target in BAGS and _padding(node) >= 0:
            operand = self._operand(node, quantized.layer.operands[0], quantized.weights[0], use.operands[0])
            result = self._swap(node, {self.nodes[use.operands[0].name]: operand})
        elif node.target in BAGS:
            result = operand = self._bag(quantized, use, node)
        else:
            dtype = dtype_of(node)
            result = operand = self.cast(node, self._rows(quantized.weights[0], node, node.args[1]), dtype)  # type: ignore[arg-type]
            self.supersede(node, result)
        self._record(quantized, use, self.nodes[use.input.name], self.nodes[use.input.name], [operand], result)

    def _rows(self, weight: QuantizedWeight, node: fx.Node, indices: fx.Node) -> fx.Node:
        values, scale, _, _ = self._stored(weight)
        gathered = self.call(node, aten.embedding.default, values, indices)
        shape = tuple(gathered.meta["val"].shape)
        if weight.dtype == "int4":
            gathered = self.call(node, aten.sub.Scalar, self._nibbles(node, gathered), 8)
        wide = self.cast(node, gathered, torch.float32)
        shared = weight.scale.shape[0] == 1
        steps = scale if shared else self.call(node, aten.embedding.default, scale, indices)
        if weight.group_size is None:
            return self.call(node, aten.mul.Tensor, wide, steps)
        grouped = self.call(node, aten.unflatten.int, wide, len(shape) - 1, [-1, weight.group_size])
        grouped = self.call(node, aten.mul.Tensor, grouped, self.call(node, aten.unsqueeze.default, steps, -1))
        return self.call(node, aten.flatten.using_ints, grouped, len(shape) - 1, len(shape))

    def _bag(self, quantized: QuantizedLayer, use: Use, node: fx.Node) -> fx.Node:
        """The gathered rows are a table of their own, read in order."""
        indices = node.args[1]
        rows = self.cast(node, self._rows(quantized.weights[0], node, indices), dtype_of(use.operands[0]))  # type: ignore[arg-type]
        ones = self.call(node, aten.ones_like.default, indices)
        order = self.call(node, aten.sub.Tensor, self.call(node, aten.cumsum.default, ones, 0), ones)
        node.args = (rows, self.cast(node, order, dtype_of(indices)), *node.args[2:])  # type: ignore[arg-type]
        return node

    # --- Operands ---

    def _operand(self, node: fx.Node, operand: Operand, weight: QuantizedWeight, like: fx.Node) -> fx.Node:
        values, scale, _, _ = self._stored(weight)
        if weight.dtype == "int4":
            values = self.call(node, aten.sub.Scalar, self._nibbles(node, values), 8)
        wide = self.cast(node, values, torch.float32)
        if weight.axis is None:
            whole = self.call(node, aten.mul.Tensor, wide, scale)
        else:
            axis, shape = weight.axis, list(weight.values.shape)
            grouped = self.call(node, aten.unflatten.int, wide, axis, [-1, weight.group_size])
            steps = self.call(node, aten.unsqueeze.default, scale, axis + 1)
            whole = self.call(node, aten.view.default, self.call(node, aten.mul.Tensor, grouped, steps), shape)
        if operand.transposed:
            whole = self.call(node, aten.t.default, whole)
        return self.cast(node, whole, dtype_of(like))

    def _nibbles(self, node: fx.Node, packed: fx.Node) -> fx.Node:
        low = self.call(node, aten.bitwise_and.Scalar, packed, 15)
        high = self.call(node, aten.bitwise_right_shift.Tensor_Scalar, packed, 4)
        return self.call(
            node, aten._to_copy.default, self.call(node, aten.cat.default, [low, high], -1), dtype=torch.int8
        )

    def _stored(self, weight: QuantizedWeight) -> tuple[fx.Node, fx.Node, str, str]:
        if id(weight) not in self.stored:
            index = len(self.stored)
            values = pack_nibbles(weight.values) if weight.dtype == "int4" else weight.values
            names = f"{weight.dtype}_values_{index}", f"{weight.dtype}_scale_{index}"
            nodes = self.buffer(names[0], values), self.buffer(names[1], weight.scale)
            self.stored[id(weight)] = (*nodes, *names)
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
        dtype, wide, axes = dtype_of(x), self.cast(x, x, torch.float32), list(scheme.axes)
        low = self.call(x, aten.amin.default, wide, axes, True) if scheme.range == "affine" else None
        above = wide if low is None else self.call(x, aten.sub.Tensor, wide, low)
        sized = self.call(x, aten.abs.default, above) if scheme.range == "symmetric" else above
        largest = self.call(x, aten.amax.default, sized, axes, True)
        scale = self.alike(aten.clamp_min.default, largest, TINY)
        steps = self.alike(aten.mul.Tensor, self.call(x, aten.div.Tensor, above, scale), float(scheme.steps))
        rounded = self.alike(aten.round.default, steps)
        step = self.alike(aten.div.Tensor, scale, float(scheme.steps))
        result = self.alike(aten.mul.Tensor, rounded, step)
        if low is not None:
            result = self.alike(aten.add.Tensor, result, low)
        return self.cast(x, result, dtype)

    def _fix(self, name: str, fixed: FixedRange) -> None:
        x, q = self.nodes[name], fixed.qparams
        dtype, readers = dtype_of(x), list(x.users)
        with self.graph.inserting_before(after(x)):
            wide = self.cast(x, x, torch.float32)
            steps = self.alike(aten.round.default, self.alike(aten.div.Tensor, wide, q.scale))
            shifted = self.alike(aten.add.Tensor, steps, float(q.zero_point))
            kept = self.alike(aten.clamp.default, shifted, float(q.qmin), float(q.qmax))
            centred = self.alike(aten.sub.Tensor, kept, float(q.zero_point))
            result = self.cast(x, self.alike(aten.mul.Tensor, centred, q.scale), dtype)
        if fixed.everywhere:
            for reader in readers:
                reader.replace_input_with(x, result)
            self.nodes[name] = result
        self.fixed[name] = result
        self.values.append(QuantizedValue(
            source=x.name, node=result.name, scale=q.scale, zero_point=q.zero_point, qmin=q.qmin, qmax=q.qmax,
        ))  # fmt: skip

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
            weights=tuple(self._weight_record(*each) for each in weights),
            compute="float" if arithmetic.mode == "float" else "int8",
            per_token=per_token,
            quantized_input=read.name if arithmetic.mode == "static" else None,
            bias=bias.name if bias is not None else None,
            alpha=use.alpha,
            beta=use.beta,
            left=use.left,
        ))  # fmt: skip

    def _weight_record(self, operand: Operand, weight: QuantizedWeight, node: fx.Node) -> WeightRecord:
        _, _, values, scale = self._stored(weight)
        return WeightRecord(
            values=values,
            scale=scale,
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
    for each in node.all_input_nodes:
        above = each
        while above.target in EXPANSIONS:
            above = above.args[0]  # type: ignore[assignment]
            if above is operand:
                return each
    raise ValueError(f"{node.name} does not read {operand.name}")


def pack_nibbles(values: Tensor) -> Tensor:
    """int4 values -8..7, an even number along the last axis, to uint8: the first half in the low nibbles."""
    low, high = (values + 8).to(torch.uint8).chunk(2, dim=-1)
    return low | (high << 4)


def _padding(node: fx.Node) -> int:
    """``padding_idx`` of an embedding bag; -1 for none."""
    names = [each.name for each in node.target._schema.arguments]  # type: ignore[union-attr]
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    padding = given.get("padding_idx")
    return padding if isinstance(padding, int) else -1
