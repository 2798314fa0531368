"""Changing a program: on a copy of its graph, with the metadata that export demands of every new node."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram, ModuleCallEntry
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputSpec, TensorArgument

from fewbit.runtime.program import Program, dtype_of, program_of
from workers.engine.graph.ops import OVERLAPPING
from workers.engine.graph.torch_internals import (
    FakeTensorMode,
    TreeSpec,
    enable_python_dispatcher,
    fake_mode_of,
    fake_tensor,
)
from workers.engine.graph.tracing import ELEMENTWISE, Number, TensorFunction, traced

aten = torch.ops.aten


class GraphEditor:
    """A copy of ``program`` under change; ``program`` itself is not touched. ``nodes``: by the name a node has in the
    original, what stands for it now; ``originals``: the node itself. ``drop_unread``: calls whose result nobody read
    from the start are removed, and their layers with them."""

    def __init__(self, program: Program, drop_unread: bool = False) -> None:
        self.program = program
        self.exported = program.exported
        self.graph = _copied(program.graph)
        self.nodes: dict[str, fx.Node] = {node.name: node for node in self.graph.nodes}
        self.originals = dict(self.nodes)
        self.replaced: dict[str, str] = {}
        self.specs = copy.deepcopy(self.exported.graph_signature.input_specs)
        self.state = dict(self.exported.state_dict)
        self.fake_mode = _fake_mode(self.graph)
        self.unread = set() if drop_unread else {node for node in self.graph.nodes if not node.users}

    def finish(self) -> Program:
        """The changed program, without what nothing reads any more: float weights above all."""
        self.drop_dead()
        self.graph.lint()
        return program_of(self._assembled())

    def replace(self, node: fx.Node, result: fx.Node) -> None:
        """``result`` takes the place of ``node``."""
        node.replace_all_uses_with(result)
        if node in self.unread:
            self.unread.add(result)
        self.replaced[node.name] = result.name
        for name, current in list(self.nodes.items()):
            if current is node:
                self.nodes[name] = result
        self.graph.erase_node(node)

    def constant_name(self, placeholder: fx.Node) -> str | None:
        """Of the parameter or buffer that a graph input stands for; None for what a caller gives."""
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        spec = self.specs[placeholders.index(placeholder)]
        return None if spec.kind is InputKind.USER_INPUT else spec.target

    def set_value(self, name: str, value: Tensor) -> None:
        """Of a parameter or buffer."""
        registered = isinstance(self.value(name), torch.nn.Parameter)
        self.state[name] = torch.nn.Parameter(value, requires_grad=False) if registered else value

    def value(self, name: str) -> Tensor | None:
        """Of a parameter or buffer."""
        value = self.state.get(name, self.exported.constants.get(name))
        return value if isinstance(value, Tensor) else None

    def current_name(self, name: str) -> str:
        """The node that stands now for the one that had ``name`` at some time."""
        while name in self.replaced:
            name = self.replaced[name]
        return name

    # --- New nodes ---

    def insert(
        self,
        like: fx.Node,
        function: TensorFunction,
        *nodes: fx.Node,
        numbers: Mapping[str, float] | None = None,
        **settings: Any,
    ) -> Any:
        """The calls of ``function(*nodes, **numbers, **settings)`` as new nodes, at the place in the module tree that
        ``like`` has. Gives what the function gives: a node, or a tuple of nodes and None. It is traced anew for other
        settings, but not for other ``numbers``."""
        numbers = numbers or {}
        steps = traced(function, nodes, numbers, **settings)
        inputs = [step for step in steps.nodes if step.op == "placeholder"]
        copies: dict[fx.Node, fx.Node] = dict(zip(inputs, nodes, strict=True))
        made: set[fx.Node] = set()
        for step in steps.nodes:
            if step.op == "call_function":
                copies[step] = self._copy(like, step, copies, made, numbers)
                made.add(copies[step])
        result = next(step for step in steps.nodes if step.op == "output").args[0]
        return fx.node.map_arg(result, copies.__getitem__)

    def _copy(
        self,
        like: fx.Node,
        step: fx.Node,
        copies: dict[fx.Node, fx.Node],
        made: set[fx.Node],
        numbers: Mapping[str, float],
    ) -> fx.Node:
        given = tuple(numbers[value.name] if isinstance(value, Number) else value for value in step.args)
        arguments: Any = fx.node.map_arg(given, copies.__getitem__)
        keywords: Any = fx.node.map_arg(dict(step.kwargs), copies.__getitem__)
        if step.target is aten.to.dtype:
            return self.cast(like, *arguments)
        if arguments[0] in made and not keywords and step.meta[ELEMENTWISE]:
            return self.call_elementwise(step.target, *arguments)
        return self.call(like, step.target, *arguments, **keywords)

    def cast(self, like: fx.Node, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        return node if dtype_of(node) is dtype else self.call(like, aten._to_copy.default, node, dtype=dtype)

    def call(self, like: fx.Node, target: Any, *arguments: Any, **keywords: Any) -> fx.Node:
        """A new node, with the metadata export demands: its fake value and its place in the module tree."""
        node = self.graph.call_function(target, arguments, keywords)
        fakes, named = fx.node.map_arg((arguments, keywords), lambda operand: operand.meta["val"])
        with self.fake_mode, enable_python_dispatcher(), torch.no_grad():
            node.meta["val"] = target(*fakes, **named)
        node.meta["nn_module_stack"] = like.meta.get("nn_module_stack", {})
        node.meta["stack_trace"] = like.meta.get("stack_trace")
        return node

    def call_elementwise(self, target: Any, x: fx.Node, *arguments: Any) -> fx.Node:
        """``call`` of an elementwise operator whose result has ``x``'s shape, dtype and strides: its fake value is
        ``x``'s, so that none is computed. Where ``x`` overlaps itself, the result does not: one is computed."""
        if _overlaps(x):
            return self.call(x, target, x, *arguments)
        node = self.graph.call_function(target, (x, *arguments))
        node.meta.update({name: x.meta.get(name) for name in ("val", "nn_module_stack", "stack_trace")})
        return node

    def add_buffer(self, name: str, value: Tensor) -> fx.Node:
        first = next(node for node in self.graph.nodes if node.op == "placeholder")
        with self.graph.inserting_before(first):
            node = self.graph.placeholder("b_" + re.sub(r"\W", "_", name))
        node.meta["val"] = fake_tensor(self.fake_mode, value.shape, value.stride(), value.dtype)
        self.specs.insert(0, InputSpec(InputKind.BUFFER, TensorArgument(node.name), name, persistent=True))
        self.state[name] = value
        return node

    def drop_dead(self) -> None:
        """Remove what nothing uses any more."""
        self.graph.eliminate_dead_code(lambda node: node in self.unread or node.is_impure())
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        kept = []
        for node, spec in zip(placeholders, self.specs, strict=True):
            if spec.kind is InputKind.USER_INPUT or node.users:
                kept.append(spec)
            else:
                self.graph.erase_node(node)
        self.specs = kept

    def _assembled(self) -> ExportedProgram:
        used = {spec.target for spec in self.specs}
        original = self.exported
        outputs = original.graph_signature.output_specs
        return ExportedProgram(
            root=original.graph_module,
            graph=self.graph,
            graph_signature=ExportGraphSignature(self.specs, [self._renamed(spec) for spec in outputs]),
            state_dict={name: _whole_storage(value) for name, value in self.state.items() if name in used},
            range_constraints=original.range_constraints,
            module_call_graph=_without_classes(original.module_call_graph),
            example_inputs=None,
            constants={name: value for name, value in original.constants.items() if name in used},
            verifiers=original.verifiers,
        )

    def _renamed(self, spec: OutputSpec) -> OutputSpec:
        """An output that a quantized layer gives has the name of the node that took its place."""
        if not isinstance(spec.arg, TensorArgument):
            return spec
        return OutputSpec(spec.kind, TensorArgument(self.nodes[spec.arg.name].name), spec.target)


def _copied(graph: fx.Graph) -> fx.Graph:
    """With the same names: a copy's nodes are named anew where they shadow a builtin, an argument ``input`` above
    all."""
    copied = copy.deepcopy(graph)
    for node, original in zip(copied.nodes, graph.nodes, strict=True):
        node.name = original.name
    return copied


def _overlaps(node: fx.Node) -> bool:
    """Whether several elements of this value may lie in one place, as in an expanded one."""
    value = node.meta.get("val")
    strides = value.stride() if isinstance(value, Tensor) else (0,)
    return any(isinstance(stride, int) and stride == 0 for stride in strides) or node.target in OVERLAPPING


def after(node: fx.Node) -> fx.Node:
    """The first node that may use this one."""
    following = node.next
    while following.op == "placeholder":
        following = following.next
    return following


def _without_classes(calls: list[ModuleCallEntry]) -> list[ModuleCallEntry]:
    """The program's own call only, its outputs in tuples, lists and dicts: a class of the user's libraries in their
    place would have to be imported to load the file."""
    whole = next(call for call in calls if call.fqn == "")
    if whole.signature is None:
        return calls
    signature = replace(whole.signature, out_spec=_plain(whole.signature.out_spec))
    return [replace(call, signature=signature) if call is whole else call for call in calls]


def _plain(spec: TreeSpec) -> TreeSpec:
    if spec.type is None or not spec.num_children:
        return spec
    children = [_plain(child) for child in spec.children()]
    if spec.type in (tuple, list, dict):
        return TreeSpec(spec.type, spec.context, children)
    names: Any = spec.context if isinstance(spec.context, list | tuple) else ()
    while len(names) == 1 and isinstance(names[0], list | tuple):
        names = names[0]
    names = next((candidate for candidate in (names, *names) if _are_names(candidate, len(children))), None)
    return TreeSpec(dict, list(names), children) if names else TreeSpec(tuple, None, children)


def _are_names(value: object, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count and all(isinstance(name, str) for name in value)


def _fake_mode(graph: fx.Graph) -> FakeTensorMode:
    modes = (fake_mode_of(node.meta.get("val")) for node in graph.nodes)
    return next((mode for mode in modes if mode is not None), None) or FakeTensorMode()


def _whole_storage(value: Tensor) -> Tensor:
    """Export writes whole storages: a view of a larger one is copied out."""
    if value.untyped_storage().nbytes() == value.numel() * value.element_size():
        return value
    own = value.detach().clone()
    return torch.nn.Parameter(own, requires_grad=False) if isinstance(value, torch.nn.Parameter) else own
