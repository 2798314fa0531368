"""Which branches of ``torch.cond`` the data really takes: what lies in the others was exported, and never measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fewbit.runtime.program import Program
from workers.engine.graph.layers import Layer, layers_inside

COND = torch.ops.higher_order.cond


class Branches:
    """Watches every ``cond`` of the top graph while the program runs."""

    def __init__(self, program: Program, layers: Sequence[Layer]) -> None:
        self._calls = [node for node in program.graph.nodes if node.target is COND]
        self._taken: set[tuple[fx.Node, bool]] = set()
        self._where = {
            (call, taken): layers_inside(program, call, call.args[1 if taken else 2])
            for call in self._calls
            for taken in (True, False)
        }
        self._nested = [each for each in layers if each.kind == "nested"]

    def around(self) -> dict[fx.Node, Any]:
        return dict.fromkeys(self._calls, self._note)

    def _note(self, node: fx.Node, compute: Callable[[], Any], value: Callable[[Any], Any]) -> Any:
        self.note(node, value)
        return compute()

    def note(self, node: fx.Node, value: Callable[[Any], Any]) -> None:
        """Which way ``node`` goes now, if it is a ``cond``."""
        if node.target is COND:
            chosen = node.args[0]
            self._taken.add((node, bool(value(chosen) if isinstance(chosen, fx.Node) else chosen)))

    @property
    def never_run(self) -> tuple[str, ...]:
        """The layers that lie in no branch that was taken, and in at least one that was not."""
        run = {weight for branch in self._taken for weight in self._where[branch]}
        missed = {weight for branch, weights in self._where.items() if branch not in self._taken for weight in weights}
        return tuple(
            each.name
            for each in self._nested
            if {*each.uses[0].operands} & missed and not {*each.uses[0].operands} & run
        )
