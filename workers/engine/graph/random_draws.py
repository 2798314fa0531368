"""Calls that draw random numbers: a program with one answers each call anew."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from fewbit.runtime.program import Program, argument
from workers.engine.graph.ops import DRAWS, DRAWS_IN_TRAINING
from workers.engine.graph.torch_internals import base_name, is_operator


def random_draws(program: Program) -> tuple[fx.Node, ...]:
    """The calls that draw, in regions too."""
    return tuple(node for graph in _graphs(program) for node in graph.nodes if _is_draw(node))


def _graphs(program: Program) -> Iterator[fx.Graph]:
    for module in program.exported.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            yield module.graph


def _is_draw(node: fx.Node) -> bool:
    if not is_operator(node.target):
        return False
    name = base_name(node.target).removesuffix("_")
    if name in DRAWS_IN_TRAINING:
        return bool(argument(node, "train", "training"))
    return name in DRAWS
