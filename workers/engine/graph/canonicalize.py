"""The program in the form the engine works on: calls that write in place made pure, batch norms folded away.

Neither changes what the program computes. A batch norm behind a convolution or linear is a scale and a shift of each
output channel (Jacob et al. 2018, section 3.2): with ``s = g / sqrt(var + eps)``, ``w' = w * s`` and
``b' = (b - mean) * s + beta``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fewbit.runtime.program import Program, argument, mutates
from workers.engine.graph.editor import Surgery
from workers.engine.graph.program import WRITTEN_AS

aten = torch.ops.aten
NORMS = frozenset((aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default))
PRODUCTS = frozenset((aten.einsum.default, aten.tensordot.default))
FOLDABLE = {
    aten.linear.default: 0, aten.conv1d.default: 0, aten.conv2d.default: 0, aten.conv3d.default: 0,
    aten.conv1d.padding: 0, aten.conv2d.padding: 0, aten.conv3d.padding: 0,
    aten.conv_transpose1d.default: 1, aten.conv_transpose2d.input: 1, aten.conv_transpose3d.input: 1,
}  # fmt: skip
"""Calls with (input, weight, bias) as their first arguments, and the weight's axis of output channels."""


def canonical(program: Program) -> Program:
    """``program`` itself when there is nothing to change."""
    nodes = program.graph.nodes
    if not any(_is_written_otherwise(each) or _in_place(each) is not None for each in nodes):
        return program
    surgery = Surgery(program)
    for node in list(surgery.graph.nodes):
        if (pure := _in_place(node)) is not None:
            _make_pure(surgery, node, pure)
    for node in list(surgery.graph.nodes):
        if node.target in NORMS:
            _fold(surgery, node)
        elif node.target in PRODUCTS:
            _make_linear(surgery, node)
        elif _is_grouped(node):
            _make_batched(surgery, node)
    return surgery.finish()


def _is_written_otherwise(node: fx.Node) -> bool:
    return node.target in NORMS or node.target in PRODUCTS or _is_grouped(node)


# --- Linear layers in other words ---


def _make_linear(surgery: Surgery, node: fx.Node) -> None:
    """``einsum('bsd,df->bsf', x, W)`` and ``tensordot(x, W, [-1], [0])`` are linears: the last axis of the first
    operand is summed over, the weight's other axis takes its place."""
    operands = _einsum_operands(node) if node.target is aten.einsum.default else _tensordot_operands(node)
    if operands is None or _value(surgery, operands[1]) is None or _value(surgery, operands[0]) is not None:
        return
    x, weight, flipped = operands
    with surgery.graph.inserting_before(node):
        operand = surgery.call(node, aten.t.default, weight) if flipped else weight
        result = surgery.call(node, aten.linear.default, x, operand)
    result.meta[WRITTEN_AS] = node.meta.get(WRITTEN_AS, f"aten.{node.target._opname}")  # type: ignore[union-attr]
    surgery.supersede(node, result)


def _einsum_operands(node: fx.Node) -> tuple[fx.Node, fx.Node, bool] | None:
    terms, arrow, kept = str(node.args[0]).replace(" ", "").partition("->")
    labels, operands = terms.split(","), node.args[1]
    if not arrow or len(labels) != 2 or "." in terms or len(labels[1]) != 2:
        return None
    x, weight = labels
    summed = next((each for each in weight if each not in kept), "")
    new = next((each for each in weight if each in kept), "")
    plain = summed and new and x[-1] == summed and new not in x and kept == x[:-1] + new and len(set(x)) == len(x)
    return (operands[0], operands[1], weight[0] == summed) if plain else None  # type: ignore[index,return-value]


def _tensordot_operands(node: fx.Node) -> tuple[fx.Node, fx.Node, bool] | None:
    x, weight, left, right = node.args[:4]
    rank = x.meta["val"].dim()  # type: ignore[union-attr]
    single = len(left) == len(right) == 1 and weight.meta["val"].dim() == 2  # type: ignore[arg-type,union-attr]
    if not single or left[0] % rank != rank - 1:  # type: ignore[index]
        return None
    return x, weight, int(right[0]) % 2 == 0  # type: ignore[index,arg-type,return-value]


# --- Mixtures of experts ---


def _is_grouped(node: fx.Node) -> bool:
    """Transformers' ``grouped_mm_fallback(x [rows, in], W [experts, in, out], offsets [experts])``: rows up to the
    first offset are multiplied by the first matrix, and so on. An operator that torch alone does not have."""
    return str(node.target) == "transformers.grouped_mm_fallback.default"


def _make_batched(surgery: Surgery, node: fx.Node) -> None:
    """Every matrix times every row, of which each row keeps its own."""
    x, weight, offsets = node.args
    experts = weight.meta["val"].shape[0]  # type: ignore[union-attr]
    stored = weight
    while isinstance(stored, fx.Node) and stored.target in (aten.transpose.int, aten.permute.default):
        stored = stored.args[0]
    if _value(surgery, stored) is None or not isinstance(experts, int):
        return
    with surgery.graph.inserting_before(node):
        copies = surgery.call(
            node, aten.expand.default, surgery.call(node, aten.unsqueeze.default, x, 0), [experts, -1, -1]
        )
        products = surgery.call(node, aten.bmm.default, copies, weight)
        products.meta[WRITTEN_AS] = "transformers.grouped_mm_fallback"
        ones = surgery.call(
            node, aten.ones_like.default, surgery.call(node, aten.select.int, x, 1, 0), dtype=torch.int64
        )
        rows = surgery.call(node, aten.sub.Tensor, surgery.call(node, aten.cumsum.default, ones, 0), ones)
        bounds = surgery.cast(node, offsets, torch.int64)  # type: ignore[arg-type]
        owners = surgery.call(node, aten.searchsorted.Tensor, bounds, rows, right=True)
        owners = surgery.call(node, aten.clamp_max.default, owners, experts - 1)
        result = surgery.call(node, aten.index.Tensor, products, [owners, rows])
    surgery.supersede(node, result)


# --- Calls that write in place ---


def _in_place(node: fx.Node) -> Any:
    """The pure overload of a call such as ``relu_`` whose argument nobody else can see; None for all others."""
    if node.op != "call_function" or not mutates(node) or not node.target._opname.endswith("_"):  # type: ignore[union-attr]
        return None
    written = node.args[0] if node.args else None
    if not isinstance(written, fx.Node) or written.op != "call_function" or _is_view(written):
        return None
    if any(_is_view(user) for user in written.users):
        return None
    packet = getattr(aten, node.target._opname[:-1], None)  # type: ignore[union-attr]
    return getattr(packet, node.target._overloadname, None)  # type: ignore[union-attr]


def _is_view(node: fx.Node) -> bool:
    target = node.target
    returns = target._schema.returns if isinstance(target, torch._ops.OpOverload) else ()
    return not returns or any(each.alias_info is not None and not each.alias_info.is_write for each in returns)


def _make_pure(surgery: Surgery, node: fx.Node, pure: Any) -> None:
    written = node.args[0]
    node.target = pure
    after = False
    for each in list(surgery.graph.nodes):
        if after and written in each.all_input_nodes:
            each.replace_input_with(written, node)
        after = after or each is node


# --- Batch norms ---


@dataclass(frozen=True)
class _Norm:
    """Output channel c becomes ``x * scale[c] + shift[c]``: float64 [channels]."""

    scale: Tensor
    shift: Tensor


def _fold(surgery: Surgery, node: fx.Node) -> None:
    norm, layer = _norm_of(surgery, node), node.args[0]
    if norm is None or not isinstance(layer, fx.Node) or layer.target not in FOLDABLE or len(layer.users) != 1:
        return
    if layer.target is aten.linear.default and layer.meta["val"].dim() != 2:
        return  # BatchNorm1d over [N, C, L] scales another axis than the linear's
    weight, bias = _own(surgery, layer.args[1]), _own(surgery, argument(layer, 2, "bias"))
    grouped = FOLDABLE[layer.target] == 1 and argument(layer, 6, "groups", 1) != 1
    if weight is None or grouped or (bias is None and argument(layer, 2, "bias") is not None):
        return
    shape = [1] * weight[1].dim()
    shape[FOLDABLE[layer.target]] = -1
    scaled = (weight[1].double() * norm.scale.view(shape)).to(weight[1].dtype)
    before = bias[1].double() if bias is not None else torch.zeros_like(norm.shift)
    shifted = (before * norm.scale + norm.shift).to(weight[1].dtype)
    surgery.put(weight[0], scaled)
    if bias is not None:
        surgery.put(bias[0], shifted)
    else:
        name = f"{weight[0].rpartition('.')[0]}.folded_bias".lstrip(".")
        layer.args = (*layer.args[:2], surgery.buffer(name, shifted), *layer.args[3:])
        layer.kwargs = {name: value for name, value in layer.kwargs.items() if name != "bias"}
    for reader in [node] if node.target is aten.batch_norm.default else list(node.users):
        surgery.supersede(reader, surgery.nodes[layer.name])


def _norm_of(surgery: Surgery, node: fx.Node) -> _Norm | None:
    legit = node.target is not aten.batch_norm.default
    gain, offset, mean, variance = (_value(surgery, each) for each in node.args[1:5])
    training, eps = (False, node.args[6]) if legit else (node.args[5], node.args[7])
    alone = all(user.args[1] == 0 for user in node.users) if legit else True
    if training or mean is None or variance is None or not alone:
        return None
    scale = torch.rsqrt(variance.double() + float(eps))  # type: ignore[arg-type]
    scale = scale if gain is None else scale * gain.double()
    shift = -mean.double() * scale
    return _Norm(scale, shift if offset is None else shift + offset.double())


def _value(surgery: Surgery, node: Any) -> Tensor | None:
    name = _target(surgery, node)
    return surgery.held(name) if name is not None else None


def _own(surgery: Surgery, node: Any) -> tuple[str, Tensor] | None:
    """(target, value) of a constant that only this call reads."""
    name = _target(surgery, node)
    value = surgery.held(name) if name is not None and len(node.users) == 1 else None
    return (name, value) if name is not None and value is not None else None


def _target(surgery: Surgery, node: Any) -> str | None:
    return surgery.target_of(node) if isinstance(node, fx.Node) and node.op == "placeholder" else None
