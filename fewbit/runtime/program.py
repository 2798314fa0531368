"""An exported program with its constants at hand: what the engine quantizes, and what the runtime lowers."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from fewbit.runtime.regions import inline_regions
from fewbit.runtime.sharing import Sharing
from fewbit.runtime.torch_internals import aliases_first, is_operator, parameters, writes

MUTATIONS = frozenset((OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION, OutputKind.USER_INPUT_MUTATION))
HEAVIEST_FOLD = 1 << 31  # bytes: a weight computed from constants may not grow beyond this


@dataclass(frozen=True)
class Constant:
    """A parameter, buffer or lifted tensor: its fully-qualified name in the user's model, and its value. ``names``: all
    that the same tensor has there, in the order of registration; ``modules``: the paths under which the module that
    owns it is registered, where that can be told: they hold the same tensors, every one."""

    name: str
    kind: InputKind
    value: Tensor
    names: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


@dataclass
class Program:
    """An exported program. ``constants`` maps graph inputs to values that no call changes; ``inputs`` are what a
    caller gives, flattened, in order. Nodes are those of ``exported.graph_module.graph``."""

    exported: ExportedProgram
    constants: dict[fx.Node, Constant]
    inputs: list[fx.Node]
    folded: dict[fx.Node, Any] = field(default_factory=dict)

    @property
    def graph(self) -> fx.Graph:
        graph: fx.Graph = self.exported.graph_module.graph
        return graph

    @property
    def placeholders(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def state(self) -> dict[fx.Node, tuple[str, Tensor]]:
        """The name and the first value of what calls change: graph inputs that no caller gives."""
        specs = zip(self.placeholders, self.exported.graph_signature.input_specs, strict=True)
        return {
            node: (str(spec.target), value)
            for node, spec in specs
            if spec.kind is not InputKind.USER_INPUT and node not in self.constants
            if isinstance(value := _value_of(self.exported, spec.target), Tensor)
        }

    @property
    def kept(self) -> list[tuple[fx.Node, fx.Node]]:
        """(graph input, its value after the call), for every buffer, parameter and argument that a call changes."""
        specs = self.exported.graph_signature.input_specs
        holes = {spec.target: node for node, spec in zip(self.placeholders, specs, strict=True)}
        holes |= {node.name: node for node in self.inputs}
        outputs = self.exported.graph_signature.output_specs
        results = next(node for node in self.graph.nodes if node.op == "output").args[0]
        return [
            (holes[spec.target], result)
            for spec, result in zip(outputs, results, strict=True)
            if spec.kind in MUTATIONS
        ]

    def constant(self, node: Any) -> Tensor | None:
        """The value of ``node`` if it depends on constants only, else None. Computed once, on real tensors."""
        value = self._folded(node)
        return value if isinstance(value, Tensor) else None

    def sources(self, node: fx.Node) -> list[Constant]:
        """The constants that ``node`` is computed from, in order of use."""
        if node in self.constants:
            return [self.constants[node]]
        return [source for operand in node.all_input_nodes for source in self.sources(operand)]

    def _folded(self, node: Any) -> Any:
        """A tensor, or the several results of a call such as ``split``."""
        if not isinstance(node, fx.Node):
            return None
        if node in self.constants:
            return self.constants[node].value
        if node not in self.folded:
            self.folded[node] = self._fold(node)
        return self.folded[node]

    def _fold(self, node: fx.Node) -> Any:
        foldable = node.op == "call_function" and (is_pure(node.target) or node.target is operator.getitem)
        if not foldable or not node.all_input_nodes:
            return None
        values = {operand: self._folded(operand) for operand in node.all_input_nodes}
        if any(value is None for value in values.values()) or _bytes_of(node) > HEAVIEST_FOLD:
            return None
        arguments, keywords = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        with torch.no_grad():
            return call(node.target, arguments, keywords)


def program_of(exported: ExportedProgram) -> Program:
    """Take an exported program as it is, its grad-mode and autocast regions inlined: they would hide the layers inside
    them from everything that walks only the top graph."""
    inline_regions(exported.graph_module)
    signature = exported.graph_signature
    kept = (*signature.buffers_to_mutate.values(), *signature.parameters_to_mutate.values())
    changed = {*kept, *_written(exported)}
    constants: dict[fx.Node, Constant] = {}
    inputs: list[fx.Node] = []
    sharing = Sharing(exported.state_dict)
    changed = {name for target in changed for name in sharing.names(target)}
    nodes = [node for node in exported.graph_module.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(nodes, exported.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            if not isinstance(spec.arg, ConstantArgument):
                inputs.append(node)
            continue
        value = _value_of(exported, spec.target)
        if isinstance(value, Tensor) and str(spec.target) not in changed:
            target = str(spec.target)
            constants[node] = Constant(
                target, spec.kind, value.detach(), sharing.names(target), sharing.modules(target)
            )
    return Program(exported, constants, inputs)


def _written(exported: ExportedProgram) -> set[str]:
    """Parameters and buffers that a call of the graph writes into, through views of them too."""
    nodes = [node for node in exported.graph_module.graph.nodes if node.op == "placeholder"]
    targets = dict(zip(nodes, (spec.target for spec in exported.graph_signature.input_specs), strict=True))
    calls = (node for node in exported.graph_module.graph.nodes if node.op == "call_function" and mutates(node))
    roots = {viewed(node.args[0]) for node in calls if node.args}
    return {str(targets[root]) for root in roots if root in targets}


def viewed(node: Any) -> Any:
    """What holds the memory of ``node``, below the views and the calls that write in place."""
    while isinstance(node, fx.Node) and is_operator(node.target) and node.args and aliases_first(node.target):
        node = node.args[0]
    return node


def is_pure(target: Any) -> bool:
    """Whether calling this ATen overload twice gives the same result and changes nothing."""
    return (
        is_operator(target)
        and target.namespace == "aten"
        and torch.Tag.nondeterministic_seeded not in target.tags
        and not writes(target)
    )


def mutates(node: fx.Node) -> bool:
    """Whether this call writes into one of its arguments."""
    return is_operator(node.target) and writes(node.target)


def rank(node: fx.Node) -> int:
    """The number of dimensions of what this node gives; 0 when it is no tensor."""
    value = node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else 0


def dtype_of(node: fx.Node) -> torch.dtype:
    """The dtype of what this node gives; float32 when it is not recorded."""
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else torch.float32


def call(target: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """What the target of a ``call_function`` node gives."""
    return target(*arguments, **keywords)


def argument(node: fx.Node, name: str, *others: str) -> Any:
    """The argument that the operator's schema calls ``name``, or by the first of ``others`` that it knows: as the call
    gives it, else its default. Overloads differ in names and places: ``clamp`` has a ``min``, ``hardtanh`` a
    ``min_val``. Raises ``LookupError`` for an operator that has none of them."""
    schema = parameters(node.target) if is_operator(node.target) else {}
    for known in (name, *others):
        if known in schema:
            position = schema[known].position
            return node.args[position] if len(node.args) > position else node.kwargs.get(known, schema[known].default)
    raise LookupError(f"{node.target} has no argument {name!r}")


def arguments(node: fx.Node, *names: str) -> tuple[Any, ...]:
    """Several at once: ``x, weight, bias = arguments(node, "input", "weight", "bias")``."""
    return tuple(argument(node, name) for name in names)


def _value_of(exported: ExportedProgram, target: str | None) -> Any:
    if target is None:
        return None
    held: dict[str, Any] = exported.state_dict if target in exported.state_dict else exported.constants
    return held.get(target)


def _bytes_of(node: fx.Node) -> int:
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return sum(_bytes_of_value(result) for result in value)
    return _bytes_of_value(value)


def _bytes_of_value(value: Any) -> int:
    if not isinstance(value, Tensor) or any(not isinstance(size, int) for size in value.shape):
        return HEAVIEST_FOLD + 1
    return value.numel() * value.element_size()
