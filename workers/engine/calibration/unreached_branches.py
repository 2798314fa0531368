"""Which branches of ``torch.cond`` the data takes: the others were exported, and are never measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fewbit.runtime.program import Program
from workers.engine.graph.layers import Layer, layers_inside

COND = torch.ops.higher_order.cond


class BranchCoverage:
    """Records the way of every ``cond`` in the top graph while the program runs."""

    def __init__(self, program: Program, layers: Sequence[Layer]) -> None:
        self._calls = [node for node in program.graph.nodes if node.target is COND]
        self._taken: set[tuple[fx.Node, bool]] = set()
        self._weights = {
            (call, taken): layers_inside(program, call, call.args[1 if taken else 2])
            for call in self._calls
            for taken in (True, False)
        }
        self._nested = [layer for layer in layers if layer.kind == "nested"]

    def around(self) -> dict[fx.Node, Any]:
        return dict.fromkeys(self._calls, self._record_and_compute)

    def _record_and_compute(self, node: fx.Node, compute: Callable[[], Any], value: Callable[[Any], Any]) -> Any:
        self.record(node, value)
        return compute()

    def record(self, node: fx.Node, value: Callable[[Any], Any]) -> None:
        """Remember which way ``node`` goes now, if it is a ``cond``."""
        if node.target is COND:
            chosen = node.args[0]
            self._taken.add((node, bool(value(chosen) if isinstance(chosen, fx.Node) else chosen)))

    @property
    def never_run(self) -> tuple[str, ...]:
        """The names of layers in at least one branch that was not taken, and in none that was."""
        run = {weight for branch in self._taken for weight in self._weights[branch]}
        missed = {
            weight for branch, weights in self._weights.items() if branch not in self._taken for weight in weights
        }
        return tuple(
            layer.name
            for layer in self._nested
            if {*layer.uses[0].operands} & missed and not {*layer.uses[0].operands} & run
        )
