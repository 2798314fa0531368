"""Finding the layers: every GEMM, convolution, embedding or recurrent cell of the graph with a *constant* operand.

Never by module class: that test is what makes every stock route skip layers. A product of two activations is listed
as what it is, and counted nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.export.graph_signature import InputKind

from workers.engine.program import Constant, Program, layer_path, rank

aten = torch.ops.aten
Kind = Literal["linear", "batched", "einsum", "convolution", "embedding", "recurrent", "bilinear", "nested"]


@dataclass(frozen=True)
class Use:
    """One call of a layer. For the linear kind: ``y = x @ weight.T (+ bias)``, transposed as a whole when the constant
    stands on the left; ``bias`` is None, a constant, or an activation, scaled by ``beta``; the product by ``alpha``."""

    node: fx.Node
    input: fx.Node
    bias: fx.Node | None = None
    alpha: float = 1.0
    beta: float = 1.0
    left: bool = False


@dataclass(frozen=True)
class Layer:
    """One row of the layer table. ``weight`` is [out_features, in_features] for the linear kind, as stored for others;
    ``parameters`` counts every constant the layer reads, its bias included."""

    name: str
    type: str
    op: str
    kind: Kind
    weight: Tensor
    sources: tuple[Constant, ...]
    parameters: int
    uses: tuple[Use, ...]

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
    """``owned``: every constant operand of the call, the weight first."""

    kind: Kind
    owned: tuple[fx.Node, ...]
    weight: Tensor
    use: Use

    @property
    def operand(self) -> fx.Node:
        return self.owned[0]


def find_layers(program: Program) -> tuple[tuple[Layer, ...], tuple[Product, ...]]:
    """Walk the graph once. Layers come in order of first use; a weight used by several calls of one name is one row."""
    rows: dict[tuple[str, fx.Node, bool], list[_Match]] = {}
    products: list[Product] = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        match = _match(program, node)
        if match is not None:
            name = _name_of(program, match)
            rows.setdefault((name, match.operand, match.use.left), []).append(match)
        elif node.target in PRODUCTS:
            path, kind = layer_path(node)
            products.append(Product(path, kind, _op_name(node), node))
    layers = tuple(_layer(program, name, matches) for (name, *_), matches in rows.items())
    return (*_unique(layers), *_nested_layers(program)), tuple(products)


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
        op=_op_name(first.use.node),
        kind=first.kind,
        weight=first.weight,
        sources=tuple(program.sources(first.operand)),
        parameters=sum(owned.values()),
        uses=tuple(match.use for match in matches),
    )


def _unique(layers: tuple[Layer, ...]) -> Iterator[Layer]:
    """Two weights under one name (an expression over the same parameter) are told apart by the node's name."""
    seen: set[str] = set()
    for layer in layers:
        name = layer.name if layer.name not in seen else f"{layer.name}#{layer.uses[0].node.name}"
        seen.add(name)
        yield layer if name == layer.name else replace(layer, name=name)


# --- Which nodes are layers -------------------------------------------------------------------------------------------


def _match(program: Program, node: fx.Node) -> _Match | None:
    matcher = MATCHERS.get(node.target)
    return matcher(program, node) if matcher is not None else None


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _owned(program: Program, *operands: Any) -> tuple[fx.Node, ...]:
    return tuple(each for each in operands if program.constant(each) is not None)


def _linear(program: Program, node: fx.Node) -> _Match | None:
    x, operand, bias = node.args[0], node.args[1], _argument(node, 2, "bias")
    weight = program.constant(operand)
    if weight is None or weight.dim() != 2 or not _is_activation(program, x):
        return None
    return _Match("linear", _owned(program, operand, bias), weight, Use(node, x, bias))  # type: ignore[arg-type]


def _addmm(program: Program, node: fx.Node) -> _Match | None:
    bias, left, right = node.args[:3]
    alpha, beta = float(node.kwargs.get("alpha", 1)), float(node.kwargs.get("beta", 1))  # type: ignore[arg-type]
    return _either_side(program, node, left, right, bias=bias if beta != 0 else None, alpha=alpha, beta=beta)


def _mm(program: Program, node: fx.Node) -> _Match | None:
    return _either_side(program, node, node.args[0], node.args[1])


def _either_side(
    program: Program, node: fx.Node, left: Any, right: Any, bias: Any = None, **extra: Any
) -> _Match | None:
    """A product with a constant on one side: x @ W, or W @ x, which is (x.T @ W.T).T."""
    for operand, x, on_left in ((right, left, False), (left, right, True)):
        weight = program.constant(operand)
        if weight is None or not _is_activation(program, x):
            continue
        linear = weight.dim() == 2 and not (on_left and rank(x) < 2)
        if not linear and weight.dim() < 3:
            return None  # a matrix times a vector of constants: nothing int8 would speed up
        value = weight if on_left or not linear else weight.t()
        use = Use(node, x, bias, left=on_left, **extra)
        return _Match("linear" if linear else "batched", _owned(program, operand, bias), value, use)
    return None


def _is_activation(program: Program, node: Any) -> bool:
    return isinstance(node, fx.Node) and program.constant(node) is None


def _operands(kind: Kind, weight_at: int, input_at: int) -> Callable[[Program, fx.Node], _Match | None]:
    """A call whose weight is one operand, at a fixed place, its bias (convolutions) right behind it."""

    def matcher(program: Program, node: fx.Node) -> _Match | None:
        operand, x = node.args[weight_at], node.args[input_at]
        weight = program.constant(operand)
        if weight is None or not _is_activation(program, x):
            return None
        bias = _argument(node, weight_at + 1, "bias") if kind in ("convolution", "bilinear") else None
        return _Match(kind, _owned(program, operand, bias), weight, Use(node, x, bias))  # type: ignore[arg-type]

    return matcher


def _recurrent(program: Program, node: fx.Node) -> _Match | None:
    """LSTM, GRU, RNN and their cells: all constants among the arguments are its weights; the largest stands for all."""
    flat: list[fx.Node] = []
    fx.node.map_arg(node.args[1:], flat.append)
    owned = sorted(_owned(program, *flat), key=lambda each: -program.constant(each).numel())  # type: ignore[union-attr]
    weight = program.constant(owned[0]) if owned else None
    if weight is None or weight.dim() < 2:
        return None
    return _Match("recurrent", tuple(owned), weight, Use(node, node.args[0]))  # type: ignore[arg-type]


def _einsum(program: Program, node: fx.Node) -> _Match | None:
    operands = node.args[1]
    owned = _owned(program, *operands)  # type: ignore[misc]
    others = [each for each in operands if each not in owned]  # type: ignore[union-attr]
    weight = program.constant(owned[0]) if owned else None
    if weight is None or not others or weight.dim() < 2:
        return None
    return _Match("einsum", owned, weight, Use(node, others[0]))  # type: ignore[arg-type]


MATCHERS: dict[Any, Callable[[Program, fx.Node], _Match | None]] = {
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.mm.default: _mm,
    aten.matmul.default: _mm,
    aten.bmm.default: _mm,
    aten.einsum.default: _einsum,
    aten.bilinear.default: _operands("bilinear", 2, 0),
    aten.embedding.default: _operands("embedding", 0, 1),
    aten.embedding_bag.default: _operands("embedding", 0, 1),
    aten._embedding_bag.default: _operands("embedding", 0, 1),
    **{
        getattr(aten, name).default: _operands("convolution", 1, 0)
        for name in ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d")
    },
    **{
        overload: _operands("convolution", 1, 0)
        for overload in (aten.conv2d.padding, aten.conv1d.padding, aten.conv3d.padding,
                         aten.conv_transpose2d.input, aten.conv_transpose3d.input)
    },
    **dict.fromkeys((aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input), _recurrent),
    **{getattr(aten, name).default: _recurrent for name in ("gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "lstm_cell")},
}  # fmt: skip

PRODUCTS = frozenset(
    (aten.matmul.default, aten.mm.default, aten.bmm.default, aten.baddbmm.default, aten.einsum.default,
     aten.linear.default, aten.addmm.default, aten.scaled_dot_product_attention.default)
)  # fmt: skip


# --- Layers inside regions that the graph calls -----------------------------------------------------------------------


def _nested_layers(program: Program) -> Iterator[Layer]:
    """Layers inside ``cond``, ``autocast``, ``map`` and the like, so that none is missing in the table."""
    owner = program.exported.graph_module
    for call in program.graph.nodes:
        for region in (each for each in call.all_input_nodes if each.op == "get_attr" and each.name != call.name):
            body = getattr(owner, str(region.target), None)
            if isinstance(body, fx.GraphModule):
                yield from _layers_of_region(program, call, body)


def _layers_of_region(program: Program, call: fx.Node, body: fx.GraphModule) -> Iterator[Layer]:
    holes = [node for node in body.graph.nodes if node.op == "placeholder"]
    operands: list[fx.Node] = []
    fx.node.map_arg(call.args, operands.append)
    for hole, outer in zip(reversed(holes), reversed(operands), strict=False):  # regions take the call's last arguments
        weight = program.constant(outer)
        if weight is None or weight.dim() < 2:
            continue
        for node in (user for user in hole.users if user.target in MATCHERS):
            yield Layer(
                name=_layer_name(program.sources(outer), "", "torch.nn."),
                type=layer_path(node)[1] or layer_path(call)[1],
                op=_op_name(node),
                kind="nested",
                weight=weight,
                sources=tuple(program.sources(outer)),
                parameters=sum(source.value.numel() for source in program.sources(outer)),
                uses=(Use(call, call),),
            )


# --- Names ------------------------------------------------------------------------------------------------------------

_SUFFIXES = (".weight", "_weight", ".weight_orig", ".weight_v", ".weight_g")


def _name_of(program: Program, match: _Match) -> str:
    path, kind = layer_path(match.use.node)
    if match.kind == "recurrent" and kind.startswith("torch.nn."):
        return path  # one module, many weights
    return _layer_name(program.sources(match.operand), path, kind)


def _layer_name(sources: list[Constant], path: str, kind: str) -> str:
    """The layer's fully-qualified name in the user's model: the weight's own, without its suffix.

    ``enc.self_attn.in_proj_weight`` is the layer ``enc.self_attn.in_proj``; a bare Parameter keeps its whole name; a
    weight that another module owns (tied, aliased) takes the name of the module that called it.
    """
    primary = max(sources, key=lambda source: source.value.numel())
    name = primary.name
    if path and not name.startswith(f"{path}."):
        registered = primary.kind is InputKind.PARAMETER
        return path if kind.startswith("torch.nn.") or not registered else _without_suffix(name, kind)
    if ".parametrizations." in name:
        return name.split(".parametrizations.", 1)[0]
    return _without_suffix(name, kind)


def _without_suffix(name: str, kind: str) -> str:
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return "" if name == "weight" and kind.startswith("torch.nn.") else name


def _op_name(node: fx.Node) -> str:
    target = node.target
    return f"{target.namespace}.{target._opname}" if isinstance(target, torch._ops.OpOverload) else str(target)
