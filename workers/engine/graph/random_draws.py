"""Calls that draw random numbers: a program with one answers each call anew."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from fewbit.runtime.program import Program, argument

DRAWS = frozenset((
    "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "bernoulli", "normal",
    "normal_functional", "multinomial", "poisson", "binomial", "uniform", "exponential", "geometric", "cauchy",
    "log_normal", "random", "_standard_gamma", "_sample_dirichlet", "rand_and_normalize",
))  # fmt: skip
TRAINING = {  # by operator: where the argument is that says whether it draws
    "dropout": (2, "train"), "native_dropout": (2, "train"), "feature_dropout": (2, "train"),
    "alpha_dropout": (2, "train"), "feature_alpha_dropout": (2, "train"), "rrelu": (3, "training"),
}  # fmt: skip


def draws(program: Program) -> tuple[fx.Node, ...]:
    """The calls, in regions too, that draw."""
    return tuple(node for graph in _graphs(program) for node in graph.nodes if _draws(node))


def _graphs(program: Program) -> Iterator[fx.Graph]:
    for module in program.exported.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            yield module.graph


def _draws(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    name = node.target._opname.removesuffix("_")
    if name in TRAINING:
        position, keyword = TRAINING[name]
        return bool(argument(node, position, keyword, False))
    return name in DRAWS
