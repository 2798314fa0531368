"""Which values of a static job are integers: what the layers read, and what passes between them without becoming float.

    conv -> relu -> max_pool -> conv        the relu's and the pool's result stay uint8
    relu(conv + shortcut)                   quantized::add_relu, when both sides are uint8 already
    linear -> relu -> linear                quantized::linear_relu

A convolution's kernel needs its output's range in any case. An addition or concatenation joins only where a layer
reads its result in integers again: elsewhere rounding it would cost accuracy for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx

from fewbit.contract.spec import Activations
from fewbit.runtime.program import Program, argument, dtype_of
from workers.engine.graph.ops import CLAMPS, KEEPS_VALUES, RELUS
from workers.engine.quantization.plan import Planned

aten = torch.ops.aten


@dataclass(frozen=True)
class FixedValue:
    """One value with a fixed range. ``settings`` say how it is found; ``like``: the node whose range it shares instead;
    ``everywhere``: all its readers get it quantized; ``reduced``: to seven bits."""

    settings: Activations
    like: fx.Node | None
    everywhere: bool
    reduced: bool


def fixed_values(program: Program, planned: Iterable[Planned]) -> dict[fx.Node, FixedValue]:
    """Every value that gets a fixed range, in graph order."""
    static = [row for row in planned if row.arithmetic.mode == "static"]
    reads = {use.input: row for row in static for use in row.layer.uses}
    makes = {use.node: row for row in static for use in row.layer.uses}
    reduced = any(row.arithmetic.reduced for row in static)
    integers = _integers(program, reads, makes)
    useful = _useful(program, reads, makes, integers)
    values: dict[fx.Node, FixedValue] = {}
    for node in program.graph.nodes:
        if node in useful:
            source = integers[node]
            like = source if source in values else None
            settings = reads[node].activations if node in reads else useful[node]
            values[node] = FixedValue(settings, like, True, reduced)
        elif node in reads:
            values[node] = FixedValue(reads[node].activations, None, False, reduced)
    return values


def _integers(
    program: Program, reads: dict[fx.Node, Planned], makes: dict[fx.Node, Planned]
) -> dict[fx.Node, fx.Node | None]:
    """The values an int8 kernel can give; by value, the one whose range it keeps, if it keeps one."""
    integers: dict[fx.Node, fx.Node | None] = {}
    for node in program.graph.nodes:
        value = _activated(node)
        if node.op != "call_function" or dtype_of(node) is not torch.float32 or value in integers:
            continue
        if _is_made(node, value, reads, makes) or _is_sum(node, integers):
            integers[value] = None
        elif node.target is aten.cat.default and _all_in(integers, argument(node, "tensors")):
            integers[node] = None
        elif node.target in KEEPS_VALUES and _all_in(integers, node.args[:1]) and not _is_random(node):
            integers[node] = node.args[0]
    return integers


def _is_made(node: fx.Node, value: fx.Node, reads: dict[fx.Node, Planned], makes: dict[fx.Node, Planned]) -> bool:
    return node in makes and (makes[node].layer.kind == "convolution" or value in reads)


def _is_sum(node: fx.Node, integers: dict[fx.Node, fx.Node | None]) -> bool:
    return node.target is aten.add.Tensor and _all_in(integers, node.args[:2]) and "alpha" not in node.kwargs


def _useful(
    program: Program,
    reads: dict[fx.Node, Planned],
    makes: dict[fx.Node, Planned],
    integers: dict[fx.Node, fx.Node | None],
) -> dict[fx.Node, Activations]:
    """Of those, the ones worth having: convolutions' results, and what leads to a layer's input."""
    useful: dict[fx.Node, Activations] = {}
    made = {_activated(node): row for node, row in makes.items()}
    for node in reversed(program.graph.nodes):
        if node not in integers:
            continue
        readers = [_activated(user) for user in node.users if _activated(user) in useful]
        if node in reads:
            useful[node] = reads[node].activations
        elif readers:
            useful[node] = useful[readers[0]]
        elif node in made and made[node].layer.kind == "convolution":
            useful[node] = made[node].activations
    return useful


def _activated(node: fx.Node) -> fx.Node:
    """The relu or clamp that alone reads this value, else the value itself."""
    if len(node.users) != 1:
        return node
    user = next(iter(node.users))
    return user if user.target in RELUS or user.target in CLAMPS else node


def _all_in(integers: dict[fx.Node, fx.Node | None], nodes: object) -> bool:
    return (
        isinstance(nodes, list | tuple)
        and bool(nodes)
        and all(isinstance(node, fx.Node) and node in integers for node in nodes)
    )


def _is_random(node: fx.Node) -> bool:
    return node.target is aten.dropout.default and bool(argument(node, "train"))
