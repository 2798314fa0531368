"""The one form every upload takes: a ``torch.export`` program, with its constants at hand.

``load`` reads a ``.pt2`` (schema of ``torch._export.serde``) and inlines the grad-mode regions, which mean nothing at
inference and would hide the layers inside them from everything that walks only the top graph.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._export.serde.schema import SCHEMA_VERSION
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from fewbit.resources import InputSignature
from workers.engine.errors import EngineError, first_line

GRAD_REGION = torch.ops.higher_order.wrap_with_set_grad_enabled
HEAVIEST_FOLD = 1 << 31  # bytes: a weight computed from constants may not grow beyond this


@dataclass(frozen=True)
class Constant:
    """A parameter, buffer or lifted tensor: its fully-qualified name in the user's model, and its value."""

    name: str
    kind: InputKind
    value: Tensor


@dataclass
class Program:
    """An exported program. ``constants`` maps graph inputs to values that no call changes; ``inputs`` are what a
    caller gives, flattened, in order. Nodes are those of ``exported.graph_module.graph``."""

    exported: ExportedProgram
    constants: dict[fx.Node, Constant]
    inputs: list[fx.Node]
    folded: dict[fx.Node, Tensor | None] = field(default_factory=dict)

    @property
    def graph(self) -> fx.Graph:
        graph: fx.Graph = self.exported.graph_module.graph
        return graph

    @property
    def placeholders(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    def constant(self, node: Any) -> Tensor | None:
        """The value of ``node`` if it depends on constants only, else None. Computed once, on real tensors."""
        if not isinstance(node, fx.Node):
            return None
        if node in self.constants:
            return self.constants[node].value
        if node not in self.folded:
            self.folded[node] = self._fold(node)
        return self.folded[node]

    def sources(self, node: fx.Node) -> list[Constant]:
        """The constants that ``node`` is computed from, in order of use."""
        if node in self.constants:
            return [self.constants[node]]
        return [source for argument in node.all_input_nodes for source in self.sources(argument)]

    def _fold(self, node: fx.Node) -> Tensor | None:
        if node.op != "call_function" or not is_pure(node.target) or not node.all_input_nodes:
            return None
        values = {argument: self.constant(argument) for argument in node.all_input_nodes}
        if any(value is None for value in values.values()) or _weight_bytes(node) > HEAVIEST_FOLD:
            return None
        arguments, keywords = fx.node.map_arg((node.args, dict(node.kwargs)), lambda each: values[each])
        with torch.no_grad():
            result = node.target(*arguments, **keywords)  # type: ignore[operator]
        return result if isinstance(result, Tensor) else None


def is_pure(target: Any) -> bool:
    """Whether calling this ATen overload twice gives the same result and changes nothing."""
    return (
        isinstance(target, torch._ops.OpOverload)
        and target.namespace == "aten"
        and torch.Tag.nondeterministic_seeded not in target.tags
        and not target._schema.is_mutable
    )


def load(path: Path) -> Program:
    """Read a ``.pt2``. Raises ``EngineError('invalid-model')`` when it is none this torch can read."""
    _require_schema(path)
    try:
        with path.open("rb") as file:
            exported = torch.export.load(file)
    except Exception as error:  # torch raises many kinds here, and the file is the user's: each is his to mend
        raise EngineError(
            "invalid-model", f"torch {torch.__version__} cannot load this .pt2: {first_line(error)}"
        ) from error
    return program_of(exported)


def program_of(exported: ExportedProgram) -> Program:
    """Take an exported program as it is, its grad-mode regions inlined."""
    _inline_grad_regions(exported.graph_module)
    changed = set(exported.graph_signature.buffers_to_mutate.values())
    constants: dict[fx.Node, Constant] = {}
    inputs: list[fx.Node] = []
    nodes = [node for node in exported.graph_module.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(nodes, exported.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            if not isinstance(spec.arg, ConstantArgument):
                inputs.append(node)
            continue
        value = _value_of(exported, spec.target)
        if isinstance(value, Tensor) and spec.target not in changed:
            constants[node] = Constant(str(spec.target), spec.kind, value.detach())
    return Program(exported, constants, inputs)


def signature(program: Program) -> tuple[InputSignature, ...]:
    """The forward arguments a caller gives. Raises ``EngineError('invalid-model')`` when one is not a tensor."""
    return tuple(_input_signature(node, program.exported) for node in program.inputs)


def rank(node: fx.Node) -> int:
    """The number of dimensions of what this node gives; 0 when it is no tensor."""
    value = node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else 0


def layer_path(node: fx.Node) -> tuple[str, str]:
    """(fully-qualified name, class) of the innermost module that made this node; ("", "") when it is not recorded."""
    stack = node.meta.get("nn_module_stack") or {}
    frames = [(_plain_path(path), _class_name(kind)) for path, kind in stack.values()]
    frames = [(path, kind) for path, kind in frames if not path.startswith("_empty_nn_module_stack")]
    return frames[-1] if frames else ("", "")


def module_classes(node: fx.Node) -> list[tuple[str, str]]:
    """(path, class) of every module around this node, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [(_plain_path(path), _class_name(kind)) for path, kind in stack.values()]


def _plain_path(path: str) -> str:
    return path.split("@", 1)[0]


def _class_name(kind: Any) -> str:
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    if name.startswith("torch.nn.modules."):
        return f"torch.nn.{name.rsplit('.', 1)[-1]}"
    return name


def _input_signature(node: fx.Node, exported: ExportedProgram) -> InputSignature:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        raise EngineError("invalid-model", f"the forward argument {node.name!r} is not a tensor; pass tensors only")
    names: list[int | str] = [size if isinstance(size, int) else str(size.node.expr) for size in value.shape]
    bounds = {str(symbol): limits for symbol, limits in exported.range_constraints.items()}
    return InputSignature(
        name=node.name,
        dtype=str(value.dtype).removeprefix("torch."),
        shape=tuple(names),
        dynamic={name: _bounds(bounds.get(name)) for name in names if isinstance(name, str)},
    )


def _bounds(limits: Any) -> tuple[int, int | None]:
    if limits is None:
        return (0, None)
    upper = limits.upper
    finite = getattr(upper, "is_Integer", False) and int(upper) < 2**31
    return (int(limits.lower), int(upper) if finite else None)


def _value_of(exported: ExportedProgram, target: str | None) -> Any:
    if target is None:
        return None
    held: dict[str, Any] = exported.state_dict if target in exported.state_dict else exported.constants
    return held.get(target)


def _weight_bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or any(not isinstance(size, int) for size in value.shape):
        return HEAVIEST_FOLD + 1
    return value.numel() * value.element_size()


def _inline_grad_regions(module: fx.GraphModule) -> None:
    for node in [each for each in module.graph.nodes if each.target is GRAD_REGION]:
        _, region, *operands = node.args
        body = getattr(module, region.target)
        _inline_grad_regions(body)
        _inline(module.graph, node, body, operands)
        module.graph.erase_node(node)
        if not region.users:
            module.graph.erase_node(region)
            delattr(module, region.target)
    module.recompile()


def _inline(graph: fx.Graph, call: fx.Node, body: fx.GraphModule, operands: Sequence[Any]) -> None:
    holes = [node for node in body.graph.nodes if node.op == "placeholder"]
    copies: dict[fx.Node, Any] = dict(zip(holes, operands, strict=True))
    with graph.inserting_before(call):
        for node in body.graph.nodes:
            if node.op == "call_function":
                copies[node] = graph.node_copy(node, lambda each: copies[each])
    results = next(node for node in body.graph.nodes if node.op == "output").args[0]
    for user in list(call.users):
        user.replace_all_uses_with(copies[results[user.args[1]]])
        graph.erase_node(user)


def _require_schema(path: Path) -> None:
    version = _schema_version(path)
    if version[0] != SCHEMA_VERSION[0] or version[1] > SCHEMA_VERSION[1]:
        raise EngineError(
            "invalid-model",
            f"the .pt2 was written with export schema {version[0]}.{version[1]}; this service runs torch "
            f"{torch.__version__}, which reads {SCHEMA_VERSION[0]}.0 to {SCHEMA_VERSION[0]}.{SCHEMA_VERSION[1]}. "
            "Export the model again with that torch.",
        )


def _schema_version(path: Path) -> tuple[int, int]:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if "/models/" in name and name.endswith(".json"))
            version = json.loads(archive.read(name))["schema_version"]
            return int(version["major"]), int(version["minor"])
    except (StopIteration, KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise EngineError(
            "invalid-model",
            "this is not a torch.export archive: it holds no readable models/*.json. Write one with "
            "torch.export.save(torch.export.export(model.eval(), example_inputs), 'model.pt2').",
        ) from error
