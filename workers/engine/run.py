"""Running a program on batches: the float graph, layer by layer, with a place to look at or replace each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export.graph_signature import ConstantArgument, InputKind

from fewbit.runtime.program import Program
from workers.engine.errors import EngineError

Around = Callable[[fx.Node, Callable[[], Any], Callable[[Any], Any]], Any]
"""(node, compute its float result, value of another node) -> the result to go on with."""


class ProgramRun(fx.Interpreter):
    """One forward pass over the exported graph. ``around[node]`` decides that node's result."""

    def __init__(self, program: Program, around: dict[fx.Node, Around] | None = None) -> None:
        super().__init__(program.exported.graph_module, garbage_collect_values=True)
        self.program = program
        self.around = around or {}

    def outputs(self, inputs: Sequence[Tensor], grad: bool = False) -> list[Any]:
        """The program's flat outputs for ``inputs``, given in the order of ``program.inputs``. ``grad``: record what a
        backward pass needs."""
        with torch.set_grad_enabled(grad):
            results = self.run(*self._arguments(inputs), enable_io_processing=False)
        count = len(self.program.exported.graph_signature.user_outputs)
        return list(results[len(results) - count :])

    def run_node(self, n: fx.Node) -> Any:
        around = self.around.get(n)
        if around is None:
            return super().run_node(n)
        return around(n, lambda: super(ProgramRun, self).run_node(n), self._value)

    def _value(self, node: Any) -> Any:
        if node is None:
            return None
        constant = self.program.constant(node)
        return constant if constant is not None else self.env[node]

    def _arguments(self, inputs: Sequence[Tensor]) -> list[Any]:
        given = dict(zip(self.program.inputs, inputs, strict=True))
        specs = self.program.exported.graph_signature.input_specs
        return [
            given[node] if node in given else self._held(node, spec)
            for node, spec in zip(self.program.placeholders, specs, strict=True)
        ]

    def _held(self, node: fx.Node, spec: Any) -> Any:
        if isinstance(spec.arg, ConstantArgument):
            return spec.arg.value
        if node in self.program.constants:
            return self.program.constants[node].value
        if spec.kind is InputKind.BUFFER and spec.target in self.program.exported.state_dict:
            return self.program.exported.state_dict[spec.target].clone()  # this pass may write to it
        return self.program.exported.constants[spec.target]


def primary_output(outputs: Sequence[Any]) -> Tensor:
    """The output that accuracy is measured on: the first floating-point tensor, as float32."""
    return with_gradient(outputs).detach()


def with_gradient(outputs: Sequence[Any]) -> Tensor:
    """The primary output, still part of the pass that gave it."""
    for each in outputs:
        if isinstance(each, Tensor) and each.dtype.is_floating_point:
            return each.to(torch.float32)
    raise EngineError("calibration-failed", "the model returns no floating-point tensor to compare")
