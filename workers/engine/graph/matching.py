"""Which nodes are layers: what a call of each operator looks like, by the names its schema gives the arguments.

Each pattern is shown before it is matched: small letters are activations, capitals are constants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from fewbit.runtime.program import Constant, Program, argument, arguments, rank
from workers.engine.graph.ops import (
    CELLS,
    CONVOLUTIONS,
    EMBEDDINGS,
    EXPANSIONS,
    KNOWN_NAMESPACES,
    RECURRENT,
    TRANSPOSED_CONVOLUTIONS,
)

aten = torch.ops.aten
Kind = Literal["linear", "batched", "einsum", "convolution", "embedding", "recurrent", "bilinear", "nested", "opaque"]


@dataclass(frozen=True)
class Operand:
    """One constant operand of a layer. ``value`` is [out_features, in_features] for the linear kind, as the call takes
    it for others; ``reduce``: its axes that the call sums over; ``transposed``: the call takes ``value.T``."""

    value: Tensor
    reduce: tuple[int, ...]
    sources: tuple[Constant, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Use:
    """One call of a layer. ``operands`` are the nodes of the layer's operands in this call; ``axes``: those of the
    input that are summed over, none where no integer product is made of it. For the linear kind: ``y = x @ weight.T
    (+ bias)``, transposed as a whole when the constant stands on the left; ``bias`` is None, a constant, or an
    activation, scaled by ``beta``; the product by ``alpha``."""

    node: fx.Node
    input: fx.Node
    operands: tuple[fx.Node, ...]
    axes: tuple[int, ...] = ()
    bias: fx.Node | None = None
    alpha: float = 1.0
    beta: float = 1.0
    left: bool = False


@dataclass(frozen=True)
class Match:
    """``owned``: every constant operand of the call, the weight first; ``operands``: those to quantize."""

    kind: Kind
    owned: tuple[fx.Node, ...]
    operands: tuple[Operand, ...]
    use: Use


def match(program: Program, node: fx.Node) -> Match | None:
    """The layer that this call is, if it is one."""
    if getattr(node.target, "namespace", "aten") not in KNOWN_NAMESPACES:
        return _opaque(program, node)
    matcher = MATCHERS.get(node.target)
    return matcher(program, node) if matcher is not None else None


# --- Constants and activations among the arguments ---


def _constants(program: Program, *operands: Any) -> tuple[fx.Node, ...]:
    return tuple(operand for operand in operands if program.constant(operand) is not None)


def _is_activation(program: Program, node: Any) -> bool:
    return isinstance(node, fx.Node) and program.constant(node) is None


def _operand(program: Program, node: fx.Node, reduce: tuple[int, ...], transposed: bool = False) -> Operand:
    value = program.constant(node)
    assert value is not None
    return Operand(value.t() if transposed else value, reduce, tuple(program.sources(node)), transposed)


# --- Products ---


def _linear(program: Program, node: fx.Node) -> Match | None:
    """``linear(x, W, bias)``"""
    return _rows_by_matrix(program, node, *arguments(node, "input", "weight", "bias"))


def _inner(program: Program, node: fx.Node) -> Match | None:
    """``inner(x, W)``: the last axes of both are summed over, as a linear does."""
    return _rows_by_matrix(program, node, *arguments(node, "self", "other"))


def _rows_by_matrix(program: Program, node: fx.Node, x: Any, weight: Any, bias: Any = None) -> Match | None:
    value = program.constant(weight)
    if value is None or value.dim() != 2 or not _is_activation(program, x):
        return None
    use = Use(node, x, (weight,), axes=(-1,), bias=bias)
    return Match("linear", _constants(program, weight, bias), (_operand(program, weight, (1,)),), use)


def _addmm(program: Program, node: fx.Node) -> Match | None:
    """``beta * bias + alpha * (x @ W)``, or ``W @ x``"""
    bias, left, right, alpha, beta = arguments(node, "self", "mat1", "mat2", "alpha", "beta")
    bias = bias if beta != 0 else None
    return _either_side(program, node, left, right, bias=bias, alpha=float(alpha), beta=float(beta))


def _baddbmm(program: Program, node: fx.Node) -> Match | None:
    """``bias + x @ W`` of batches; the bias is left to the call."""
    return _either_side(program, node, *arguments(node, "batch1", "batch2"))


def _product(program: Program, node: fx.Node) -> Match | None:
    """``x @ W`` or ``W @ x``: mm, matmul, bmm, mv, and the grouped one, whose experts have an [in, out] matrix each"""
    left, right = node.args[:2]
    return _either_side(program, node, left, right)


def _either_side(
    program: Program, node: fx.Node, left: Any, right: Any, bias: Any = None, **scales: float
) -> Match | None:
    """A product with a constant on one side: x @ W, or W @ x, which is (x.T @ W.T).T."""
    for given, x, first in ((right, left, False), (left, right, True)):
        weight = _unexpanded(given) if not first else given
        value = program.constant(weight)
        if value is None or not _is_activation(program, x):
            continue
        if value.dim() < 2:
            return None  # a matrix times a vector of constants: nothing int8 would speed up
        by_vector = rank(x) == 1  # W @ x is what a linear does
        left = first and not by_vector
        use = Use(node, x, (weight,), axes=(-2,) if left else (-1,), bias=bias, left=left, **scales)
        if value.dim() == 2:
            operand = _operand(program, weight, (1,), transposed=not first)
            return Match("linear", _constants(program, weight, bias), (operand,), use)
        reduce = (value.dim() - (1 if first else 2),)
        return Match("batched", _constants(program, weight, bias), (_operand(program, weight, reduce),), use)
    return None


def _unexpanded(node: Any) -> Any:
    """The matrix behind ``view(expand(unsqueeze(W)))``, which decompositions write where a product is batched."""
    inner = node
    while isinstance(inner, fx.Node) and inner.target in EXPANSIONS:
        inner = inner.args[0]
    same = isinstance(inner, fx.Node) and rank(inner) == 2 and inner.meta["val"].shape == node.meta["val"].shape[-2:]
    return inner if same else node


def _tensordot(program: Program, node: fx.Node) -> Match | None:
    """``tensordot(x, W, axes of x, axes of W)``, or the constant first"""
    left, right, left_axes, right_axes = arguments(node, "self", "other", "dims_self", "dims_other")
    for weight, x, axes in ((right, left, right_axes), (left, right, left_axes)):
        value = program.constant(weight)
        if value is not None and value.dim() >= 2 and _is_activation(program, x):
            reduce = tuple(int(axis) % value.dim() for axis in axes)
            return Match("einsum", (weight,), (_operand(program, weight, reduce),), Use(node, x, (weight,)))
    return None


def _multi_dot(program: Program, node: fx.Node) -> Match | None:
    """``multi_dot([x, W, V, ...])``, activations and matrices in any order"""
    factors = argument(node, "tensors")
    matrices = [factor for factor in dict.fromkeys(_constants(program, *factors)) if rank(factor) == 2]
    activations = [factor for factor in factors if _is_activation(program, factor)]
    if not matrices or not activations:
        return None
    use = Use(node, activations[0], tuple(matrices))
    return Match("einsum", tuple(matrices), tuple(_operand(program, matrix, (0,)) for matrix in matrices), use)


def _einsum(program: Program, node: fx.Node) -> Match | None:
    """``einsum("bsd,df->bsf", [x, W])``, of any number of operands in any order"""
    equation, operands = arguments(node, "equation", "tensors")
    weight = next(iter(_constants(program, *operands)), None)
    activations = [operand for operand in operands if _is_activation(program, operand)]
    if weight is None or not activations or rank(weight) < 2:
        return None
    terms, _, kept = str(equation).replace(" ", "").partition("->")
    labels = dict(zip(operands, terms.split(","), strict=True))
    summed = [axis for axis, label in enumerate(labels[weight]) if kept and label not in kept]
    reduce = tuple(summed) if "." not in labels[weight] and summed else (rank(weight) - 1,)
    use = Use(node, activations[0], (weight,))
    return Match("einsum", _constants(program, weight), (_operand(program, weight, reduce),), use)


def _bilinear(program: Program, node: fx.Node) -> Match | None:
    """``bilinear(x, y, W, bias)``"""
    x, weight, bias = arguments(node, "input1", "weight", "bias")
    if program.constant(weight) is None or not _is_activation(program, x):
        return None
    use = Use(node, x, (weight,), bias=bias)
    return Match("bilinear", _constants(program, weight, bias), (_operand(program, weight, (1, 2)),), use)


# --- The others ---


def _convolution(program: Program, node: fx.Node) -> Match | None:
    """``conv(x, W, bias, ...)``, W [out, in, *kernel]; transposed ones take [in, out, *kernel]"""
    x, weight, bias = arguments(node, "input", "weight", "bias")
    value = program.constant(weight)
    if value is None or not _is_activation(program, x):
        return None
    spatial = tuple(range(2, value.dim()))
    reduce = (0, *spatial) if _is_transposed(node) else (1, *spatial)
    use = Use(node, x, (weight,), axes=tuple(range(1 - value.dim(), 0)), bias=bias)
    return Match("convolution", _constants(program, weight, bias), (_operand(program, weight, reduce),), use)


def _is_transposed(node: fx.Node) -> bool:
    if node.target is aten.convolution.default:
        return bool(argument(node, "transposed"))
    return node.target in TRANSPOSED_CONVOLUTIONS


def _embedding(program: Program, node: fx.Node) -> Match | None:
    """``embedding(W, indices)`` and the bags"""
    table, indices = arguments(node, "weight", "indices")
    value = program.constant(table)
    if value is None or value.dim() != 2 or not _is_activation(program, indices):
        return None
    use = Use(node, indices, (table,))
    return Match("embedding", _constants(program, table), (_operand(program, table, (1,)),), use)


def _recurrent(program: Program, node: fx.Node) -> Match | None:
    """``lstm(x, states, [W, W, bias, bias, ...], ...)`` and its kin, ``lstm_cell(x, states, W, W, bias, bias)``: the
    constants among the arguments are the weights, the largest first."""
    flat: list[fx.Node] = []
    fx.node.map_arg(node.args[1:], flat.append)
    constants = _constants(program, *flat)
    matrices = [constant for constant in constants if _is_matrix(program, constant)]
    x = argument(node, "input")
    if not matrices or not isinstance(x, fx.Node):
        return None
    matrices.sort(key=lambda matrix: -_size(program, matrix))
    use = Use(node, x, tuple(matrices))
    rest = tuple(constant for constant in constants if constant not in matrices)
    operands = tuple(_operand(program, matrix, (1,)) for matrix in matrices)
    return Match("recurrent", (*matrices, *rest), operands, use)


def _is_matrix(program: Program, node: fx.Node) -> bool:
    value = program.constant(node)
    return value is not None and value.dim() == 2 and rank(node) == 2 and bool(program.sources(node))


def _size(program: Program, node: fx.Node) -> int:
    value = program.constant(node)
    return 0 if value is None else value.numel()


def _opaque(program: Program, node: fx.Node) -> Match | None:
    """A custom operator that reads a matrix: nothing is known of what it does with it."""
    matrices = tuple(operand for operand in _constants(program, *node.all_input_nodes) if rank(operand) >= 2)
    activations = [operand for operand in node.all_input_nodes if _is_activation(program, operand)]
    if not matrices or not activations:
        return None
    use = Use(node, activations[0], matrices)
    return Match("opaque", matrices, tuple(_operand(program, matrix, (1,)) for matrix in matrices), use)


MATCHERS: dict[Any, Callable[[Program, fx.Node], Match | None]] = {
    aten.linear.default: _linear,
    aten.inner.default: _inner,
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _baddbmm,
    aten.mm.default: _product,
    aten.matmul.default: _product,
    aten.bmm.default: _product,
    aten.mv.default: _product,
    aten._grouped_mm.default: _product,
    aten.tensordot.default: _tensordot,
    aten.linalg_multi_dot.default: _multi_dot,
    aten.einsum.default: _einsum,
    aten.bilinear.default: _bilinear,
    **dict.fromkeys(EMBEDDINGS, _embedding),
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(RECURRENT | CELLS, _recurrent),
}
