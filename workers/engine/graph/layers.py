"""Finding the layers: every GEMM, convolution, embedding or recurrent cell of the graph with a *constant* operand.

Never by module class: that test is what makes every stock route skip layers. A product of two activations is listed
as what it is, and counted nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from fewbit.runtime.program import Constant, Program
from workers.engine.graph.matching import Kind, Match, Operand, Use, match
from workers.engine.graph.names import layer_name, op_name
from workers.engine.graph.ops import PRODUCTS, VIEWS
from workers.engine.graph.program import layer_path

__all__ = ["Layer", "Operand", "Product", "Use", "find_layers", "layers_inside"]


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


def find_layers(program: Program) -> tuple[tuple[Layer, ...], tuple[Product, ...]]:
    """Walk the graph once. Layers come in order of first use; a weight used by several calls of one name is one row
    where they read it in the same way."""
    rows: dict[Any, list[Match]] = {}
    products: list[Product] = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        found = match(program, node)
        if found is not None:
            key = (_name_of(program, found), _origin(found.owned[0]), _form(found))
            rows.setdefault(key, []).append(found)
        elif node.target in PRODUCTS and program.constant(node) is None:
            path, kind = layer_path(node)
            products.append(Product(path, kind, op_name(node), node))
    layers = tuple(_layer(program, name, matches) for (name, *_), matches in rows.items())
    return tuple(_unique((*layers, *_nested_layers(program)))), tuple(products)


def _form(found: Match) -> tuple[Any, ...]:
    """A weight that is read in two orientations, or by two kinds of calls, is two layers: each stores its own form."""
    return found.kind, found.use.left, tuple((operand.transposed, operand.reduce) for operand in found.operands)


def _origin(operand: fx.Node) -> tuple[Any, ...]:
    """The node that holds the operand's data, and the views between: each call of one layer may make its own."""
    views: list[Any] = []
    while operand.target in VIEWS:
        views.append((operand.target, operand.args[1:]))
        operand = operand.all_input_nodes[0]
    return (operand, *map(str, views))


def _layer(program: Program, name: str, matches: list[Match]) -> Layer:
    first = matches[0]
    owned = [operand for found in matches for operand in found.owned]
    sizes = {source.name: source.value.numel() for operand in owned for source in program.sources(operand)}
    return Layer(
        name=name,
        type=layer_path(first.use.node)[1],
        op=op_name(first.use.node),
        kind=first.kind,
        operands=first.operands,
        parameters=sum(sizes.values()),
        uses=tuple(found.use for found in matches),
    )


def _unique(layers: Iterable[Layer]) -> Iterator[Layer]:
    """Two weights under one name (an expression over the same parameter) are told apart by the node's name."""
    seen: set[str] = set()
    for layer in layers:
        name = layer.name if layer.name not in seen else f"{layer.name}#{layer.uses[0].node.name}"
        seen.add(name)
        yield layer if name == layer.name else replace(layer, name=name)


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
    for attribute in (operand for operand in call.all_input_nodes if operand.op == "get_attr"):
        body = getattr(owner, str(attribute.target), None)
        if isinstance(body, fx.GraphModule):
            yield from _layers_of_region(program, call, body)


def _layers_of_region(
    program: Program, call: fx.Node, body: fx.GraphModule
) -> Iterator[tuple[fx.Node, fx.Node, Operand]]:
    placeholders = [node for node in body.graph.nodes if node.op == "placeholder"]
    given: list[fx.Node] = []
    fx.node.map_arg(call.args, given.append)
    outer = dict(zip(reversed(placeholders), reversed(given), strict=False))  # regions take the call's last arguments
    constants = {inner: program.constants[node] for inner, node in outer.items() if node in program.constants}
    region = Program(program.exported, constants, [])
    for node in body.graph.nodes:
        if node.op == "call_function":
            found = _matched(region, node) or _inside(region, body, node)
            yield from ((outer[weight], inner, operand) for weight, inner, operand in found if weight in outer)


def _matched(region: Program, node: fx.Node) -> list[tuple[fx.Node, fx.Node, Operand]]:
    found = match(region, node)
    if found is None:
        return []
    return [(weight, node, operand) for weight, operand in zip(found.use.operands, found.operands, strict=True)]


def _name_of(program: Program, found: Match) -> str:
    path, kind = layer_path(found.use.node)
    if found.kind == "recurrent" and kind.startswith("torch.nn."):
        return path  # one module, many weights
    return layer_name(program.sources(found.owned[0]), path, kind)
