"""A module on packed weights as TorchScript, which is the only way out for one: followed on a batch, or compiled.

Following a run keeps the sizes of that run wherever the module's own code looks at them, so the script is held against
the module on other sizes before anybody gets it. Compiling keeps the code, where TorchScript knows all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fewbit.contract.resources import InputSignature
from fewbit.runtime.script import Call, of_layers
from workers.errors import EngineError, first_line

Inputs = tuple[Tensor, ...]

LAYER_OPERATORS = re.compile(r"(linear|conv\w*|mm|matmul|bmm|mv|lstm|gru|rnn|embedding|embedding_bag|bilinear)(_|$)")
"""The last part of the name of an operator that a layer can be a call of, with what the kernels' names add to it."""
PATHS = frozenset(
    {"prim::ListConstruct", "prim::ListUnpack", "prim::TupleUnpack", "aten::t", "aten::transpose", "aten::permute",
     "aten::numpy_T", "aten::detach", "aten::split", "aten::chunk", "aten::unflatten", "aten::squeeze"}
)  # fmt: skip
"""Calls that pass a weight on."""

RUN_AS = {"aten::addmm": "aten::mm"}  # TorchScript takes these apart before it runs them


class Positional(nn.Module):
    """``model`` called as the program is: its inputs by position. Of a dict it gives the tensors: caches and the like
    have no place in an artifact."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = list(names)

    def forward(self, *inputs: Tensor) -> Any:
        outputs = self.model(**dict(zip(self.names, inputs, strict=True)))
        if isinstance(outputs, Mapping):
            return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}
        return outputs


@dataclass(frozen=True)
class Owners:
    """Whose weight an attribute is. ``floats``: by the attribute's path, the layers that read it as it is; ``packed``:
    by the path of a module, or of a packed weight, the layer that was quantized there."""

    floats: Mapping[str, tuple[str, ...]]
    packed: Mapping[str, str]

    def layer(self, path: str, operator: str) -> str | None:
        """The layer that reads the attribute at ``path`` in a call of ``operator``. A tied table is read by two."""
        layers = self.floats.get(path, ())
        if len(layers) > 1:
            return layers[0] if "embedding" in operator else layers[-1]
        return layers[0] if layers else self._packed_at(path)

    def _packed_at(self, path: str) -> str | None:
        while path:
            if path in self.packed:
                return self.packed[path]
            path = path.rpartition(".")[0]
        return None


def scripted(module: Positional, inputs: Inputs, signature: Sequence[InputSignature]) -> torch.jit.ScriptModule:
    """``module`` as TorchScript, its free sizes free. Raises ``EngineError('quantization-failed')`` when neither way
    gives what the module gives."""
    expected = [(inputs, pytree.tree_leaves(module(*inputs))), *_on_other_sizes(module, inputs, signature)]
    failures = []
    for way in (_followed, _compiled):
        try:
            script = way(module, inputs)
            for each, outputs in expected:
                _require_same(script, each, outputs)
            return script
        except MemoryError:
            raise
        except Exception as error:  # torch raises many kinds here, and so does the user's module
            failures.append(first_line(error))
    raise EngineError(
        "quantization-failed",
        f"the quantized module has no TorchScript form. torch.jit.trace: {failures[0]} torch.jit.script: {failures[1]} "
        "Post the job with backend: graph, which needs neither.",
    )


def other_sizes(inputs: Inputs, signature: Sequence[InputSignature]) -> Iterator[Inputs]:
    """``inputs`` with one free size after the other changed by one. Sizes that are computed from each other are left
    alone: one of them cannot change by itself."""
    names = list(dict.fromkeys(size for each in signature for size in each.shape if isinstance(size, str)))
    if not all(map(str.isidentifier, names)):
        return
    for name in names:
        low, high = next(each.dynamic[name] for each in signature if name in each.shape)
        pairs = zip(inputs, signature, strict=True)
        changed = tuple(_resized(value, _axes(each, name), low, high) for value, each in pairs)
        if any(new is not old for new, old in zip(changed, inputs, strict=True)):
            yield changed


def calls_of(script: torch.jit.ScriptModule, owners: Owners) -> tuple[Call, ...]:
    """The calls that ``script`` makes to operators that layers run on, in the order of a forward pass."""
    around = "model." if script.original_name == Positional.__name__ else ""
    return of_layers(
        Call(RUN_AS.get(node.kind(), node.kind()), _owner(node, owners, around))
        for node in _nodes(script.inlined_graph)
        if LAYER_OPERATORS.search(node.kind().rpartition("::")[2])
    )


def _followed(module: Positional, inputs: Inputs) -> torch.jit.ScriptModule:
    options = {"check_trace": False, "strict": False}  # checked on other sizes too; a dict may be an output
    return torch.jit.trace(module, inputs, **options)  # type: ignore[no-untyped-call,no-any-return]


def _compiled(module: Positional, _inputs: Inputs) -> torch.jit.ScriptModule:
    """TorchScript knows no dict of arguments, so this is the model itself."""
    return torch.jit.script(module.model)


def _on_other_sizes(
    module: Positional, inputs: Inputs, signature: Sequence[InputSignature]
) -> Iterator[tuple[Inputs, list[Any]]]:
    """What the module gives on sizes that it takes: a size may be less free than torch.export believes."""
    for each in other_sizes(inputs, signature):
        with suppress(Exception):
            yield each, pytree.tree_leaves(module(*each))


def _require_same(script: nn.Module, inputs: Inputs, expected: Sequence[Any]) -> None:
    for got, wanted in zip(pytree.tree_leaves(script(*inputs)), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4, equal_nan=True)


def _axes(given: InputSignature, name: str) -> list[int]:
    return [axis for axis, size in enumerate(given.shape) if size == name]


def _resized(value: Tensor, axes: Sequence[int], low: int, high: int | None) -> Tensor:
    """One less along ``axes`` where ``low`` allows it, else one more: there may be a longest sequence nobody knows."""
    for axis in axes:
        size = value.shape[axis]
        if size > max(low, 1):
            value = value.narrow(axis, 0, size - 1)
        elif high is None or size < high:
            value = torch.cat([value, value.narrow(axis, 0, 1)], axis)
    return value


# --- Whose call a node is ---------------------------------------------------------------------------------------------


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _owner(node: Any, owners: Owners, around: str) -> str | None:
    paths = (path.removeprefix(around) for value in node.inputs() for path in _attributes(value))
    found = (owners.layer(path, node.kind()) for path in paths)
    return next((layer for layer in found if layer is not None), None)


def _attributes(value: Any) -> list[str]:
    """The attributes a value is made of, by their paths."""
    node = value.node()
    if node.kind() == "prim::GetAttr":
        return [_path(node)]
    return [path for each in node.inputs() for path in _attributes(each)] if node.kind() in PATHS else []


def _path(node: Any) -> str:
    owner, name = next(node.inputs()).node(), str(node.s("name"))
    return f"{_path(owner)}.{name}" if owner.kind() == "prim::GetAttr" else name
