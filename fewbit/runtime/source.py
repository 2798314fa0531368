"""The program as TorchScript source text, compiled once.

Writing the source from the graph, instead of tracing or scripting a module, needs no example inputs, keeps dynamic
shapes dynamic (sizes stay expressions), and holds nothing the graph does not use: no dead float copy of any weight.
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from fewbit.runtime.operators import BINARY, CALLS, ITEMS, SHAPE_VIEWS, SIZES
from fewbit.runtime.program import Program
from fewbit.runtime.torch_internals import (
    OpOverload,
    base_name,
    compile_forward,
    is_operator,
    new_module,
    parameters,
    pytree,
    set_constant,
)

aten = torch.ops.aten

EMPTY_LISTS = {"int[]": "List[int]", "SymInt[]": "List[int]", "Tensor[]": "List[Tensor]", "float[]": "List[float]"}


class NotExpressible(Exception):
    """TorchScript has no form for a node of this program; the message names it."""


class Source:
    """The body of ``forward``, and on ``module`` each constant that body reads. ``copies_to_view``: whether a value
    may lie in memory otherwise than the graph says, as those of integer convolutions do, so that a view of it needs a
    copy."""

    def __init__(self, program: Program, copies_to_view: bool = False) -> None:
        self.program = program
        self.copies_to_view = copies_to_view
        self.module: Any = new_module("Int8Model")
        self.lines: list[str] = []
        self.attributes: dict[Any, str] = {}
        self.shared: dict[Any, str] = {}

    def line(self, text: str) -> None:
        self.lines.append(text)

    def once(self, key: Any, write: Callable[[str], None], label: str) -> str:
        """The name of something several calls share; ``write`` adds its lines the first time."""
        if key not in self.shared:
            self.shared[key] = f"{label}{len(self.shared)}_"
            write(self.shared[key])
        return self.shared[key]

    def name(self, node: fx.Node, domain: str = "float") -> str:
        """What holds the value of ``node``: a local, or a constant of the module."""
        if domain == "int8":
            return f"q_{_name(node)}"
        if node in self.program.constants:
            constant = self.program.constants[node]
            return self.attribute(node, lambda: constant.value, constant.name)
        if node in self.program.state:
            name, value = self.program.state[node]
            return self.attribute(node, lambda: value.detach().clone(), name)
        return _name(node)

    def attribute(self, key: Any, value: Callable[[], Any], label: str) -> str:
        """``self.<name>`` of a constant, registered under ``key`` the first time."""
        if key not in self.attributes:
            name = f"c{len(self.attributes)}_" + re.sub(r"[^A-Za-z0-9]", "_", label)
            set_constant(self.module, name, value())
            self.attributes[key] = name
        return f"self.{self.attributes[key]}"

    def call(self, node: fx.Node, name: str, instead: Mapping[fx.Node, str] | None = None) -> None:
        """The node's own operator, as it stands in the graph; ``instead``: other names for some of its arguments.

        Raises ``NotExpressible``."""
        if node.op != "call_function":
            return
        self.line(f"{name} = {_Expression(self, instead or {}).of(node)}")

    def call_in_place(self, node: fx.Node, name: str, owned: fx.Node) -> None:
        """The same, with the result in the memory of ``owned``, one of its first two arguments. An addition that is
        scaled on the other side is left as it is."""
        first, *rest = node.args
        if owned is not first and node.kwargs:
            self.call(node, name)
            return
        others = rest if owned is first else [first, *rest[1:]]
        expression = _Expression(self, {})
        given = [expression.value(value) for value in others]
        given += [f"{key}={expression.value(value)}" for key, value in node.kwargs.items()]
        assert is_operator(node.target)
        self.line(f"{name} = torch.ops.aten.{base_name(node.target)}_({', '.join([self.name(owned), *given])})")

    def keep(self) -> None:
        """What the next call finds in buffers, and the caller in the arguments that forward writes to."""
        for hole, result in self.program.kept:
            value = self.name(result)
            if hole in self.program.state:
                self.line(f"{self.name(hole)} = {value}.clone()")
            else:
                self.line(f"{self.name(hole)}.copy_({value})")

    def compile(self) -> torch.jit.ScriptModule:
        """Raises ``NotExpressible`` when TorchScript refuses the text."""
        arguments = "".join(f", {_name(node)}: Tensor" for node in self.program.inputs)
        body = [*self.lines, f"return {self._outputs()}"]
        source = f"def forward(self{arguments}):\n" + "\n".join(f"    {line}" for line in body) + "\n"
        try:
            return compile_forward(self.module, source)
        except RuntimeError as error:
            raise NotExpressible(f"TorchScript cannot express this program: {error}") from error

    def _outputs(self) -> str:
        kept = user_outputs(self.program)
        spec = self.program.exported.call_spec.out_spec
        return _structure(pytree.tree_unflatten([_Expression(self, {}).value(result) for result in kept], spec))


def user_outputs(program: Program) -> list[Any]:
    """What a caller gets, flat: nodes and plain values, without the buffers a call changes."""
    results = next(node for node in program.graph.nodes if node.op == "output").args[0]
    count = len(program.exported.graph_signature.user_outputs)
    return list(results[len(results) - count :])


class _Expression:
    """One call as an expression. ``instead``: names to use for some nodes."""

    def __init__(self, source: Source, instead: Mapping[fx.Node, str]) -> None:
        self.source = source
        self.instead = instead

    def of(self, node: fx.Node) -> str:
        target, arguments = node.target, node.args
        if target is operator.getitem:
            return f"{self.value(arguments[0])}[{arguments[1]}]"
        if target in BINARY:
            return f"({self.value(arguments[0])} {BINARY[target]} {self.value(arguments[1])})"
        if target in CALLS:
            return f"{CALLS[target]}({', '.join(map(self.value, arguments))})"
        if target in SIZES:
            return f"{self.value(arguments[0])}.{SIZES[target]}({self.value(arguments[1])})"
        if target is aten.dropout.default and not arguments[2]:
            return self.value(arguments[0])
        if target in ITEMS:
            return f"{_number_type(node)}({self.value(arguments[0])})"
        if is_operator(target):
            return self._operator(node, target)
        raise NotExpressible(f"TorchScript has no form for {target} (node {node.name!r})")

    def _operator(self, node: fx.Node, target: OpOverload) -> str:
        schema = parameters(target)
        given = dict(zip(schema, node.args, strict=False)) | dict(node.kwargs)
        written = []
        for name, parameter in schema.items():
            if name in given:
                value = self.value(given[name], parameter.type)
                written.append(f"{name}={value}" if parameter.keyword_only else value)
        called = "reshape" if target in SHAPE_VIEWS and self.source.copies_to_view else base_name(target)
        return f"torch.ops.{target.namespace}.{called}({', '.join(written)})"

    def value(self, value: Any, type_: str = "") -> str:
        if isinstance(value, fx.Node):
            return self.instead.get(value) or self.source.name(value)
        if isinstance(value, list | tuple):
            return self._list(value, type_)
        if isinstance(value, torch.device):
            return f"torch.device({str(value)!r})"
        if isinstance(value, float) and not math.isfinite(value):
            return f"float({str(value)!r})"
        return str(value) if isinstance(value, torch.dtype | torch.layout | torch.memory_format) else repr(value)

    def _list(self, values: list[Any] | tuple[Any, ...], type_: str) -> str:
        items = f"[{', '.join(map(self.value, values))}]"
        if "Optional[Tensor]" in type_ or None in values:
            return f"torch.jit.annotate(List[Optional[Tensor]], {items})"
        if items == "[]":
            return f"torch.jit.annotate({EMPTY_LISTS.get(type_, 'List[int]')}, [])"
        return items


def _structure(value: Any) -> str:
    """Nested tuples, lists and dicts of expressions, as one expression."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_structure(inner)}" for key, inner in value.items()) + "}"
    items = ", ".join(map(_structure, value))
    return f"[{items}]" if isinstance(value, list) else f"({items},)"


_PLAIN = re.compile(r"(?!self$|torch$|math$|[vq]_|rows\d)[a-z][A-Za-z0-9_]*")  # nor one of the writer's own names


def _name(node: fx.Node) -> str:
    """Names come from the upload and go into source text: whatever is no plain identifier is written in hex."""
    if node.op == "placeholder" and _PLAIN.fullmatch(node.name) and not keyword.iskeyword(node.name):
        return node.name
    return "v_" + re.sub(r"[^A-Za-z0-9_]", lambda character: f"x{ord(character[0]):x}", node.name)


def _number_type(node: fx.Node) -> str:
    value = node.meta.get("val")
    return "float" if isinstance(value, float | torch.SymFloat) else "int"
