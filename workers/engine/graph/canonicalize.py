"""The program in the form the engine works on: without writes, batch norms folded away.

Neither changes what the program computes. A batch norm behind a convolution or linear is a scale and a shift of each
output channel (Jacob et al. 2018, section 3.2): with ``s = g / sqrt(var + eps)``, ``w' = w * s`` and
``b' = (b - mean) * s + beta``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fewbit.runtime.program import Program, argument, arguments, rank
from workers.engine.graph.editor import GraphEditor
from workers.engine.graph.functionalize import functionalize
from workers.engine.graph.ops import (
    BATCH_NORMS,
    GROUPED_PRODUCT,
    LINEARS_IN_OTHER_WORDS,
    OUTPUT_CHANNEL_AXIS,
    TRANSPOSED_CONVOLUTIONS,
    TRANSPOSITIONS,
)
from workers.engine.graph.program import WRITTEN_AS
from workers.engine.graph.torch_internals import (
    base_name,
    is_operator,
)

aten = torch.ops.aten


def canonicalize(program: Program) -> Program:
    """``program`` itself when there is nothing to change."""
    program = functionalize(program)
    if not any(map(_is_written_otherwise, program.graph.nodes)):
        return program
    editor = GraphEditor(program)
    for node in list(editor.graph.nodes):
        if node.target in BATCH_NORMS:
            _fold(editor, node)
        elif node.target in LINEARS_IN_OTHER_WORDS:
            _make_linear(editor, node)
        elif _is_grouped(node):
            _make_batched(editor, node)
    return editor.finish()


def _is_written_otherwise(node: fx.Node) -> bool:
    return node.target in BATCH_NORMS or node.target in LINEARS_IN_OTHER_WORDS or _is_grouped(node)


# --- Linear layers in other words ---


@dataclass(frozen=True)
class _AsLinear:
    """``linear(x, weight)``, or ``linear(x, weight.T)`` where the weight is ``flipped``."""

    x: fx.Node
    weight: fx.Node
    flipped: bool


def _make_linear(editor: GraphEditor, node: fx.Node) -> None:
    """``einsum('bsd,df->bsf', x, W)`` and ``tensordot(x, W, [-1], [0])`` are linears: the last axis of the first
    operand is summed over, the weight's other axis takes its place."""
    found = _einsum_as_linear(node) if node.target is aten.einsum.default else _tensordot_as_linear(node)
    if found is None or _value(editor, found.weight) is None or _value(editor, found.x) is not None:
        return
    with editor.graph.inserting_before(node):
        weight = editor.call(node, aten.t.default, found.weight) if found.flipped else found.weight
        result = editor.call(node, aten.linear.default, found.x, weight)
    assert is_operator(node.target)
    result.meta[WRITTEN_AS] = node.meta.get(WRITTEN_AS, f"aten.{base_name(node.target)}")
    editor.replace(node, result)


def _einsum_as_linear(node: fx.Node) -> _AsLinear | None:
    """``...d,df->...f`` or ``...d,fd->...f``"""
    equation, operands = arguments(node, "equation", "tensors")
    terms, arrow, kept = str(equation).replace(" ", "").partition("->")
    labels = terms.split(",")
    if not arrow or len(labels) != 2 or "." in terms or len(labels[1]) != 2:
        return None
    x, weight = labels
    summed = next((label for label in weight if label not in kept), "")
    new = next((label for label in weight if label in kept), "")
    if not (summed and new) or new in x or x[-1] != summed or kept != x[:-1] + new or len(set(x)) != len(x):
        return None
    return _AsLinear(operands[0], operands[1], weight[0] == summed)


def _tensordot_as_linear(node: fx.Node) -> _AsLinear | None:
    """``tensordot(x, W, [last axis], [one axis])``"""
    x, weight, x_axes, weight_axes = arguments(node, "self", "other", "dims_self", "dims_other")
    single = len(x_axes) == len(weight_axes) == 1 and rank(weight) == 2
    if not single or x_axes[0] % rank(x) != rank(x) - 1:
        return None
    return _AsLinear(x, weight, weight_axes[0] % 2 == 0)


# --- Mixtures of experts ---


def _is_grouped(node: fx.Node) -> bool:
    """Transformers' ``grouped_mm_fallback(x [rows, in], W [experts, in, out], offsets [experts])``: rows up to the
    first offset are multiplied by the first matrix, and so on."""
    return str(node.target) == GROUPED_PRODUCT


def _make_batched(editor: GraphEditor, node: fx.Node) -> None:
    """Every matrix times every row, of which each row keeps its own."""
    x, weight, offsets = node.all_input_nodes
    experts = weight.meta["val"].shape[0]
    stored = weight
    while stored.target in TRANSPOSITIONS:
        stored = stored.all_input_nodes[0]
    if _value(editor, stored) is None or not isinstance(experts, int):
        return
    with editor.graph.inserting_before(node):
        copies = editor.insert(node, _copy_for_experts, x, experts=experts)
        products = editor.call(node, aten.bmm.default, copies, weight)
        products.meta[WRITTEN_AS] = "transformers.grouped_mm_fallback"
        result = editor.insert(node, _own_products, products, x, offsets, last=experts - 1)
    editor.replace(node, result)


def _copy_for_experts(x: Tensor, experts: int) -> Tensor:
    return x.unsqueeze(0).expand(experts, -1, -1)


def _own_products(products: Tensor, x: Tensor, offsets: Tensor, last: int) -> Tensor:
    """Of ``products`` [experts, rows, out], for every row of ``x`` the one of the expert it belongs to."""
    ones = aten.ones_like.default(x.select(1, 0), dtype=torch.int64)
    rows = ones.cumsum(0) - ones
    owners = aten.searchsorted.Tensor(offsets.to(torch.int64), rows, right=True).clamp_max(last)
    return products[owners, rows]


# --- Batch norms ---


@dataclass(frozen=True)
class _Norm:
    """Output channel c becomes ``x * scale[c] + shift[c]``: float64 [channels]."""

    scale: Tensor
    shift: Tensor


def _fold(editor: GraphEditor, node: fx.Node) -> None:
    """``batch_norm(layer(x, W, bias), gain, offset, mean, variance)``, where nothing else reads the layer's result."""
    norm, layer = _norm_of(editor, node), argument(node, "input")
    if norm is None or not isinstance(layer, fx.Node) or not _is_foldable(layer):
        return
    weight, old_bias = arguments(layer, "weight", "bias")
    owned, bias = _owned(editor, weight), _owned(editor, old_bias)
    if owned is None or (bias is None and old_bias is not None):
        return
    name, value = owned
    shape = [1] * value.dim()
    shape[OUTPUT_CHANNEL_AXIS[layer.target]] = -1
    before = bias[1].double() if bias is not None else torch.zeros_like(norm.shift)
    shifted = (before * norm.scale + norm.shift).to(value.dtype)
    editor.set_value(name, (value.double() * norm.scale.view(shape)).to(value.dtype))
    if bias is not None:
        editor.set_value(bias[0], shifted)
    else:
        _add_bias(editor, layer, f"{name.rpartition('.')[0]}.folded_bias".lstrip("."), shifted)
    for reader in [node] if node.target is aten.batch_norm.default else list(node.users):
        editor.replace(reader, editor.nodes[layer.name])


def _is_foldable(layer: fx.Node) -> bool:
    if layer.target not in OUTPUT_CHANNEL_AXIS or len(layer.users) != 1:
        return False
    if layer.target is aten.linear.default:
        return rank(layer) == 2  # BatchNorm1d over [N, C, L] scales another axis than the linear's
    return layer.target not in TRANSPOSED_CONVOLUTIONS or argument(layer, "groups") == 1


def _add_bias(editor: GraphEditor, layer: fx.Node, name: str, value: Tensor) -> None:
    layer.args = (*layer.args[:2], editor.add_buffer(name, value), *layer.args[3:])
    layer.kwargs = {key: given for key, given in layer.kwargs.items() if key != "bias"}


def _norm_of(editor: GraphEditor, node: fx.Node) -> _Norm | None:
    """None for one that is training, or whose statistics are no constants or read by others."""
    simple = node.target is aten.batch_norm.default
    names = ("weight", "bias", "running_mean", "running_var")
    gain, offset, mean, variance = (_value(editor, operand) for operand in arguments(node, *names))
    training = simple and argument(node, "training")
    alone = simple or all(user.args[1] == 0 for user in node.users)  # of its three results, the first
    if training or mean is None or variance is None or not alone:
        return None
    scale = torch.rsqrt(variance.double() + float(argument(node, "eps")))
    scale = scale if gain is None else scale * gain.double()
    shift = -mean.double() * scale
    return _Norm(scale, shift if offset is None else shift + offset.double())


def _value(editor: GraphEditor, node: Any) -> Tensor | None:
    name = _constant_name(editor, node)
    return editor.value(name) if name is not None else None


def _owned(editor: GraphEditor, node: Any) -> tuple[str, Tensor] | None:
    """(name, value) of a constant that only this call reads."""
    name = _constant_name(editor, node)
    value = editor.value(name) if name is not None and len(node.users) == 1 else None
    return (name, value) if name is not None and value is not None else None


def _constant_name(editor: GraphEditor, node: Any) -> str | None:
    return editor.constant_name(node) if isinstance(node, fx.Node) and node.op == "placeholder" else None
