"""Running a program on batches: the float graph, layer by layer, with a place to look at or replace each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx
from torch.export.graph_signature import ConstantArgument

from fewbit.runtime.program import Program, call
from workers.errors import EngineError

Around = Callable[[fx.Node, Callable[[], Any], Callable[[Any], Any]], Any]
"""(node, compute its float result, value of another node) -> the result to go on with."""


class ProgramRun:
    """Forward passes over the exported graph. ``around[node]`` decides that node's result.

    ``fx.Interpreter`` spends as long on a small layer as the layer does: a plan is made once here, and a value is let
    go after its last use.
    """

    def __init__(self, program: Program, around: Mapping[fx.Node, Around] | None = None) -> None:
        self.program = program
        self.around = around or {}
        self.env: dict[fx.Node, Any] = {}
        last = {argument: node for node in program.graph.nodes for argument in node.all_input_nodes}
        self._steps = [
            (node, [operand for operand in node.all_input_nodes if last[operand] is node])
            for node in program.graph.nodes
            if node.op != "placeholder" or node in self.around
        ]

    def outputs(self, inputs: Sequence[Tensor], grad: bool = False) -> list[Any]:
        """The program's flat outputs for ``inputs``, given in the order of ``program.inputs``. ``grad``: record what a
        backward pass needs."""
        self.env = dict(zip(self.program.placeholders, self._arguments(inputs), strict=True))
        with torch.set_grad_enabled(grad):
            for node, spent in self._steps:
                self.env[node] = self._result(node)
                for operand in spent:
                    del self.env[operand]
        results, self.env = self.env[self._steps[-1][0]], {}
        count = len(self.program.exported.graph_signature.user_outputs)
        return list(results[len(results) - count :])

    def _result(self, node: fx.Node) -> Any:
        around = self.around.get(node)
        return self._computed(node) if around is None else around(node, partial(self._computed, node), self._value)

    def _computed(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.env[node]
        if node.op == "get_attr":
            return attrgetter(str(node.target))(self.program.exported.graph_module)
        given: Any = fx.node.map_arg((node.args, node.kwargs), self.env.__getitem__)
        return given[0][0] if node.op == "output" else call(node.target, *given)

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
        if spec.target in self.program.exported.state_dict:
            return self.program.exported.state_dict[spec.target].detach().clone()  # this pass may write to it
        return self.program.exported.constants[spec.target]


def primary_output(outputs: Sequence[Any]) -> Tensor:
    """The output that accuracy is measured on: the first floating-point tensor, as float32."""
    return differentiable_output(outputs).detach()


def differentiable_output(outputs: Sequence[Any]) -> Tensor:
    """The primary output, still part of the pass that gave it."""
    for output in outputs:
        if isinstance(output, Tensor) and output.dtype.is_floating_point:
            return output.to(torch.float32)
    raise EngineError("calibration-failed", "the model returns no floating-point tensor to compare")
