"""A program and its record as a TorchScript module on int8 kernels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx

from fewbit.runtime.lowering import Lowering, Value
from fewbit.runtime.operators import CHECKS
from fewbit.runtime.program import Program, mutates
from fewbit.runtime.record import Record
from fewbit.runtime.source import Source, user_outputs


@dataclass(frozen=True)
class Call:
    """One call a forward pass makes to an operator; ``layer``: whose call it is, None for no layer's."""

    operator: str
    layer: str | None


@dataclass(frozen=True)
class Script:
    """``calls``: in the order of a forward pass, those to operators that layers run on."""

    module: torch.jit.ScriptModule
    calls: tuple[Call, ...]


def script(program: Program, record: Record) -> Script:
    """``program`` with every recorded layer on the kernel there is for it. Raises ``NotExpressible``."""
    lowering = Lowering(program, record)
    needed = _needed(program, lowering)
    channels_last = any(layer.kind == "convolution" and layer.quantized_input for layer in record.layers)
    source, calls = Source(program, copies_to_view=channels_last), list[Call]()
    for node in program.graph.nodes:
        for domain in ("int8", "float"):
            value: Value = (node, domain)
            if value in needed and node not in program.constants:
                form = lowering.form(value)
                form.write(source, source.name(node, domain))
                calls += [Call(form.operator, form.layer)] * form.times
    source.keep()
    return Script(source.compile(), of_layers(calls))


def of_layers(calls: Iterable[Call]) -> tuple[Call, ...]:
    """Those to operators that at least one layer runs on."""
    calls = tuple(calls)
    operators = {call.operator for call in calls if call.layer is not None}
    return tuple(call for call in calls if call.operator in operators)


def _needed(program: Program, lowering: Lowering) -> set[Value]:
    """Every value that the outputs, and calls that change something, depend on."""
    results = [*user_outputs(program), *(result for _, result in program.kept)]
    needed: set[Value] = {(node, "float") for node in results if isinstance(node, fx.Node)}
    for node in reversed(program.graph.nodes):
        if node.op != "call_function" or node.target in CHECKS:
            continue
        if mutates(node):
            needed.add((node, "float"))
        for domain in ("float", "int8"):  # in this order: the float form of a value may be made from its int8 form
            value: Value = (node, domain)
            if value in needed:
                needed.update(lowering.form(value).reads)
    return needed
