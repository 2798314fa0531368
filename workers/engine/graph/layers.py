"""Finding the layers: every GEMM, convolution, embedding or recurrent cell of the graph with a *constant* operand.

Never by module class: that test is what makes every stock route skip layers. A product of two activations is listed
as what it is, and counted nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx

from fewbit.runtime.program import Constant, Program, argument, rank
from workers.engine.graph.names import layer_name, op_name
from workers.engine.graph.program import layer_path

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
class Layer:
    """One row of the layer table. ``operands``: the largest first; ``parameters`` counts every constant the layer
    reads, its bias included."""

    name: str
    type: str
    op: str
    kind: Kind
    operands: tuple[Operand, ...]
    parameters: int
    uses: tuple[Use, ...]

    @property
    def weight(self) -> Tensor:
        return self.operands[0].value

    @property
    def sources(self) -> tuple[Constant, ...]:
        return self.operands[0].sources

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)


@dataclass(frozen=True)
class Product:
    """A product of two activations."""

    name: str
    type: str
    op: str
    node: fx.Node


@dataclass(frozen=True)
class _Match:
    """``owned``: every constant operand of the call, the weight first; ``operands``: those to quantize."""

    kind: Kind
    owned: tuple[fx.Node, ...]
    operands: tuple[Operand, ...]
    use: Use


def find_layers(program: Program) -> tuple[tuple[Layer, ...], tuple[Product, ...]]:
    """Walk the graph once. Layers come in order of first use; a weight used by several calls of one name is one row."""
    rows: dict[Any, list[_Match]] = {}
    products: list[Product] = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        match = _match(program, node)
        if match is not None:
            key = (_name_of(program, match), _origin(match.owned[0]), match.use.left)
            rows.setdefault(key, []).append(match)
        elif node.target in PRODUCTS and program.constant(node) is None:
            path, kind = layer_path(node)
            products.append(Product(path, kind, op_name(node), node))
    layers = tuple(_layer(program, name, matches) for (name, *_), matches in rows.items())
    return tuple(_unique((*layers, *_nested_layers(program)))), tuple(products)


def _origin(operand: fx.Node) -> tuple[Any, ...]:
    """The node that holds the operand's data, and the views between: each call of one layer may make its own."""
    views: list[Any] = []
    while operand.target in VIEWS:
        views.append((operand.target, operand.args[1:]))
        operand = operand.args[0]  # type: ignore[assignment]
    return (operand, *map(str, views))


def _layer(program: Program, name: str, matches: list[_Match]) -> Layer:
    first = matches[0]
    owned = {
        source.name: source.value.numel()
        for match in matches
        for operand in match.owned
        for source in program.sources(operand)
    }
    return Layer(
        name=name,
        type=layer_path(first.use.node)[1],
        op=op_name(first.use.node),
        kind=first.kind,
        operands=first.operands,
        parameters=sum(owned.values()),
        uses=tuple(match.use for match in matches),
    )


def _unique(layers: Iterable[Layer]) -> Iterator[Layer]:
    """Two weights under one name (an expression over the same parameter) are told apart by the node's name."""
    seen: set[str] = set()
    for layer in layers:
        name = layer.name if layer.name not in seen else f"{layer.name}#{layer.uses[0].node.name}"
        seen.add(name)
        yield layer if name == layer.name else replace(layer, name=name)


# --- Which nodes are layers -------------------------------------------------------------------------------------------


def _match(program: Program, node: fx.Node) -> _Match | None:
    if getattr(node.target, "namespace", "aten") not in KNOWN_SPACES:
        return _opaque(program, node)
    matcher = MATCHERS.get(node.target)
    return matcher(program, node) if matcher is not None else None


def _opaque(program: Program, node: fx.Node) -> _Match | None:
    """A custom operator that reads a matrix: what it does with it is its own affair."""
    matrices = [each for each in _owned(program, *node.all_input_nodes) if rank(each) >= 2]
    activations = [each for each in node.all_input_nodes if _is_activation(program, each)]
    if not matrices or not activations:
        return None
    use = Use(node, activations[0], tuple(matrices))
    return _Match("opaque", tuple(matrices), tuple(_operand(program, each, (1,)) for each in matrices), use)


def _owned(program: Program, *operands: Any) -> tuple[fx.Node, ...]:
    return tuple(each for each in operands if program.constant(each) is not None)


def _operand(program: Program, node: fx.Node, reduce: tuple[int, ...], transposed: bool = False) -> Operand:
    value = program.constant(node)
    assert value is not None
    return Operand(value.t() if transposed else value, reduce, tuple(program.sources(node)), transposed)


def _is_activation(program: Program, node: Any) -> bool:
    return isinstance(node, fx.Node) and program.constant(node) is None


def _linear(program: Program, node: fx.Node) -> _Match | None:
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    value = program.constant(weight)
    if value is None or value.dim() != 2 or not _is_activation(program, x):
        return None
    use = Use(node, x, (weight,), axes=(-1,), bias=bias)  # type: ignore[arg-type]
    return _Match("linear", _owned(program, weight, bias), (_operand(program, weight, (1,)),), use)  # type: ignore[arg-type]


def _addmm(program: Program, node: fx.Node) -> _Match | None:
    bias, left, right = node.args[:3]
    alpha, beta = float(node.kwargs.get("alpha", 1)), float(node.kwargs.get("beta", 1))  # type: ignore[arg-type]
    return _either_side(program, node, left, right, bias=bias if beta != 0 else None, alpha=alpha, beta=beta)


def _mm(program: Program, node: fx.Node) -> _Match | None:
    return _either_side(program, node, node.args[0], node.args[1])


def _either_side(
    program: Program, node: fx.Node, left: Any, right: Any, bias: Any = None, **scales: float
) -> _Match | None:
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
            return _Match("linear", _owned(program, weight, bias), (operand,), use)
        reduce = (value.dim() - (1 if first else 2),)
        return _Match("batched", _owned(program, weight, bias), (_operand(program, weight, reduce),), use)
    return None


def _unexpanded(node: Any) -> Any:
    """The matrix behind ``view(expand(unsqueeze(W)))``, which decompositions write where a product is batched."""
    seen = node
    while isinstance(seen, fx.Node) and seen.target in EXPANSIONS:
        seen = seen.args[0]
    same = isinstance(seen, fx.Node) and rank(seen) == 2 and seen.meta["val"].shape == node.meta["val"].shape[-2:]
    return seen if same else node


def _inner(program: Program, node: fx.Node) -> _Match | None:
    """``inner(x, W)``: the last axes of both are summed over, as a linear does."""
    return _linear(program, node)


def _tensordot(program: Program, node: fx.Node) -> _Match | None:
    for side, axes in ((1, 3), (0, 2)):
        weight, x = node.args[side], node.args[1 - side]
        value = program.constant(weight)
        if value is not None and value.dim() >= 2 and _is_activation(program, x):
            reduce = tuple(int(axis) % value.dim() for axis in node.args[axes])  # type: ignore[union-attr,arg-type]
            use = Use(node, x, (weight,))  # type: ignore[arg-type]
            return _Match("einsum", (weight,), (_operand(program, weight, reduce),), use)  # type: ignore[arg-type]
    return None


def _multi_dot(program: Program, node: fx.Node) -> _Match | None:
    factors: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
    owned = [each for each in dict.fromkeys(_owned(program, *factors)) if rank(each) == 2]
    others = [each for each in factors if _is_activation(program, each)]
    if not owned or not others:
        return None
    use = Use(node, others[0], tuple(owned))
    return _Match("einsum", tuple(owned), tuple(_operand(program, each, (0,)) for each in owned), use)


def _grouped(program: Program, node: fx.Node) -> _Match | None:
    """``_grouped_mm(x, W, offsets)``: the experts of a mixture, one [in, out] matrix each."""
    return _either_side(program, node, node.args[0], node.args[1])


def _baddbmm(program: Program, node: fx.Node) -> _Match | None:
    return _either_side(program, node, node.args[1], node.args[2])


def _convolution(program: Program, node: fx.Node) -> _Match | None:
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    value = program.constant(weight)
    if value is None or not _is_activation(program, x):
        return None
    spatial = tuple(range(2, value.dim()))
    reduce = (0, *spatial) if _is_transposed(node) else (1, *spatial)
    use = Use(node, x, (weight,), axes=tuple(range(1 - value.dim(), 0)), bias=bias)  # type: ignore[arg-type]
    return _Match("convolution", _owned(program, weight, bias), (_operand(program, weight, reduce),), use)  # type: ignore[arg-type]


def _is_transposed(node: fx.Node) -> bool:
    return "transpose" in str(node.target) or (node.target is aten.convolution.default and bool(node.args[6]))


def _embedding(program: Program, node: fx.Node) -> _Match | None:
    table, indices = node.args[0], node.args[1]
    value = program.constant(table)
    if value is None or value.dim() != 2 or not _is_activation(program, indices):
        return None
    use = Use(node, indices, (table,))  # type: ignore[arg-type]
    return _Match("embedding", _owned(program, table), (_operand(program, table, (1,)),), use)  # type: ignore[arg-type]


def _bilinear(program: Program, node: fx.Node) -> _Match | None:
    x, weight, bias = node.args[0], node.args[2], argument(node, 3, "bias")
    if program.constant(weight) is None or not _is_activation(program, x):
        return None
    use = Use(node, x, (weight,), bias=bias)  # type: ignore[arg-type]
    return _Match("bilinear", _owned(program, weight, bias), (_operand(program, weight, (1, 2)),), use)  # type: ignore[arg-type]


def _recurrent(program: Program, node: fx.Node) -> _Match | None:
    """LSTM, GRU, RNN and their cells: the constants among the arguments are its weights, the largest first."""
    flat: list[fx.Node] = []
    fx.node.map_arg(node.args[1:], flat.append)
    owned = _owned(program, *flat)
    matrices = [each for each in owned if program.constant(each).dim() == 2 and rank(each) == 2]  # type: ignore[union-attr]
    matrices = [each for each in matrices if program.sources(each)]
    x = node.args[0]
    if not matrices or not isinstance(x, fx.Node):
        return None
    matrices.sort(key=lambda each: -program.constant(each).numel())  # type: ignore[union-attr]
    use = Use(node, x, tuple(matrices))
    rest = tuple(each for each in owned if each not in matrices)
    operands = tuple(_operand(program, each, (1,)) for each in matrices)
    return _Match("recurrent", (*matrices, *rest), operands, use)


def _einsum(program: Program, node: fx.Node) -> _Match | None:
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    weight = next(iter(_owned(program, *operands)), None)  # type: ignore[misc]
    others: list[fx.Node] = [each for each in operands if _is_activation(program, each)]  # type: ignore[union-attr,misc]
    if weight is None or not others or rank(weight) < 2:
        return None
    terms, _, kept = equation.partition("->")
    labels = dict(zip(operands, terms.split(","), strict=True))  # type: ignore[arg-type]
    summed = [axis for axis, label in enumerate(labels[weight]) if kept and label not in kept]
    reduce = tuple(summed) if "." not in labels[weight] and summed else (rank(weight) - 1,)
    use = Use(node, others[0], (weight,))
    return _Match("einsum", _owned(program, weight), (_operand(program, weight, reduce),), use)


MATCHERS: dict[Any, Callable[[Program, fx.Node], _Match | None]] = {
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.mm.default: _mm,
    aten.matmul.default: _mm,
    aten.bmm.default: _mm,
    aten.baddbmm.default: _baddbmm,
    aten.mv.default: _mm,
    aten.inner.default: _inner,
    aten.tensordot.default: _tensordot,
    aten.linalg_multi_dot.default: _multi_dot,
    aten._grouped_mm.default: _grouped,
    aten.einsum.default: _einsum,
    aten.bilinear.default: _bilinear,
    **dict.fromkeys((aten.embedding.default, aten.embedding_bag.default, aten.embedding_bag.padding_idx,
                     aten._embedding_bag.default, aten._embedding_bag_forward_only.default), _embedding),
    **dict.fromkeys((aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.convolution.default,
                     aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding, aten.conv_transpose1d.default,
                     aten.conv_transpose2d.input, aten.conv_transpose3d.input), _convolution),
    **dict.fromkeys((aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input), _recurrent),
    **{getattr(aten, name).default: _recurrent for name in ("gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "lstm_cell")},
}  # fmt: skip

KNOWN_SPACES = frozenset(("aten", "prim", "prims", "higher_order", "quantized_decomposed"))
EXPANSIONS = frozenset(
    (aten.expand.default, aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.unsqueeze.default,
     aten.clone.default)
)  # fmt: skip
VIEWS = frozenset(
    (aten.t.default, aten.permute.default, aten.transpose.int, aten.detach.default, aten.alias.default)
)  # fmt: skip

PRODUCTS = frozenset(
    (aten.matmul.default, aten.mm.default, aten.bmm.default, aten.baddbmm.default, aten.einsum.default,
     aten.linear.default, aten.addmm.default, aten.scaled_dot_product_attention.default)
)  # fmt: skip


# --- Layers inside regions that the graph calls -----------------------------------------------------------------------


def _nested_layers(program: Program) -> Iterator[Layer]:
    """Layers inside ``cond``, ``map``, ``scan`` and the like: their weights are operands of the call."""
    rows: dict[fx.Node, list[tuple[Use, fx.Node, Operand]]] = {}
    for call in program.graph.nodes:
        for weight, inner, operand in _inside(program, program.exported.graph_module, call):
            rows.setdefault(weight, []).append((Use(call, call, (weight,)), inner, operand))
    for weight, found in rows.items():
        call, inner, operand = found[0]
        path, kind = layer_path(inner)
        sources = program.sources(weight)
        yield Layer(
            name=layer_name(sources, path, kind),
            type=kind or layer_path(call.node)[1],
            op=op_name(inner),
            kind="nested",
            operands=(operand,),
            parameters=sum(source.value.numel() for source in sources),
            uses=tuple({use.node: use for use, _, _ in found}.values()),
        )


def layers_inside(program: Program, call: fx.Node, region: Any) -> set[fx.Node]:
    """The weights, as nodes of the top graph, that layers of one region of ``call`` read."""
    body = getattr(program.exported.graph_module, str(region.target), None)
    if not isinstance(body, fx.GraphModule):
        return set()
    return {weight for weight, _, _ in _layers_of_region(program, call, body)}


def _inside(program: Program, owner: fx.GraphModule, call: fx.Node) -> Iterator[tuple[fx.Node, fx.Node, Operand]]:
    """(weight in the graph of ``call``, the call inside that reads it, the operand), for all regions of ``call``."""
    for attribute in (each for each in call.all_input_nodes if each.op == "get_attr"):
        body = getattr(owner, str(attribute.target), None)
        if isinstance(body, fx.GraphModule):
            yield from _layers_of_region(program, call, body)


def _layers_of_region(
    program: Program, call: fx.Node, body: fx.GraphModule
) -> Iterator[tuple[fx.Node, fx.Node, Operand]]:
    holes = [node for node in body.graph.nodes if node.op == "placeholder"]
    given: list[fx.Node] = []
    fx.node.map_arg(call.args, given.append)
    outer = dict(zip(reversed(holes), reversed(given), strict=False))  # regions take the call's last arguments
    constants = {hole: program.constants[node] for hole, node in outer.items() if node in program.constants}
    region = Program(program.exported, constants, [])
    for node in (each for each in body.graph.nodes if each.op == "call_function"):
        match = _match(region, node)
        if match is not None:
            deeper = [
                (weight, node, operand) for weight, operand in zip(match.use.operands, match.operands, strict=True)
            ]
        else:
            deeper = list(_inside(region, body, node))
        yield from ((outer[weight], inner, operand) for weight, inner, operand in deeper if weight in outer)


def _name_of(program: Program, match: _Match) -> str:
    path, kind = layer_path(match.use.node)
    if match.kind == "recurrent" and kind.startswith("torch.nn."):
        return path  # one module, many weights
    return layer_name(program.sources(match.owned[0]), path, kind)
