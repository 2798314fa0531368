"""A module with packed weights as TorchScript, the only format it can be saved in: traced on a batch, or compiled.

Tracing freezes the sizes of the traced batch wherever the module's code looks at them, so the script is compared with
the module on other sizes before it is delivered. Compiling keeps the code, if TorchScript supports all of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
"""The last part of the name of an operator that a layer can be a call of; kernels add a suffix to it."""
PASS_THROUGH = frozenset(
    {"prim::ListConstruct", "prim::ListUnpack", "prim::TupleUnpack", "aten::t", "aten::transpose", "aten::permute",
     "aten::numpy_T", "aten::detach", "aten::split", "aten::chunk", "aten::unflatten", "aten::squeeze"}
)  # fmt: skip
"""Calls between an attribute and the operator that reads it as a weight."""

RUN_AS = {"aten::addmm": "aten::mm"}  # TorchScript takes these apart before it runs them


class Positional(nn.Module):
    """``model`` called like the program: inputs by position. Of a dict it returns the tensors only: an artifact has no
    place for caches and the like."""

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
class WeightOwners:
    """The layers that an attribute is the weight of. ``floats``: by the attribute's path, the layers that read it in
    float; ``packed``: by the path of a module or packed weight, the layer that was quantized there."""

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


def to_torchscript(module: Positional, inputs: Inputs, signature: Sequence[InputSignature]) -> torch.jit.ScriptModule:
    """``module`` as TorchScript that keeps free sizes free. Raises ``EngineError('quantization-failed')`` if neither
    tracing nor compiling gives the module's outputs."""
    expected = [(inputs, pytree.tree_leaves(module(*inputs))), *_run_on_other_sizes(module, inputs, signature)]
    failures = []
    for make_script in (_trace, _compile):
        try:
            script = make_script(module, inputs)
            for given, outputs in expected:
                _require_same(script, given, outputs)
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
    """``inputs`` with one free size after another changed by one. Sizes that are computed from each other are skipped:
    one of them cannot change by itself."""
    names = list(dict.fromkeys(size for given in signature for size in given.shape if isinstance(size, str)))
    if not all(map(str.isidentifier, names)):
        return
    for name in names:
        low, high = next(given.dynamic[name] for given in signature if name in given.shape)
        pairs = zip(inputs, signature, strict=True)
        changed = tuple(_resize(value, _axes(given, name), low, high) for value, given in pairs)
        if any(new is not old for new, old in zip(changed, inputs, strict=True)):
            yield changed


def layer_calls(script: torch.jit.ScriptModule, owners: WeightOwners) -> tuple[Call, ...]:
    """The calls that ``script`` makes to operators that layers run on, in the order of a forward pass."""
    prefix = "model." if script.original_name == Positional.__name__ else ""
    return of_layers(
        Call(RUN_AS.get(node.kind(), node.kind()), _owner(node, owners, prefix))
        for node in _nodes(script.inlined_graph)
        if LAYER_OPERATORS.search(node.kind().rpartition("::")[2])
    )


def _trace(module: Positional, inputs: Inputs) -> torch.jit.ScriptModule:
    trace: Callable[..., torch.jit.ScriptModule] = torch.jit.trace
    return trace(module, inputs, check_trace=False, strict=False)  # checked on other sizes too; a dict may be an output


def _compile(module: Positional, _inputs: Inputs) -> torch.jit.ScriptModule:
    """The model without ``Positional``: TorchScript cannot pass a dict of arguments."""
    return torch.jit.script(module.model)


def _run_on_other_sizes(
    module: Positional, inputs: Inputs, signature: Sequence[InputSignature]
) -> Iterator[tuple[Inputs, list[Any]]]:
    """The module's outputs on other sizes that it accepts: a size may be less free than torch.export believes."""
    for resized in other_sizes(inputs, signature):
        with suppress(Exception):
            yield resized, pytree.tree_leaves(module(*resized))


def _require_same(script: nn.Module, inputs: Inputs, expected: Sequence[Any]) -> None:
    for actual, output in zip(pytree.tree_leaves(script(*inputs)), expected, strict=True):
        torch.testing.assert_close(actual, output, rtol=1e-3, atol=1e-4, equal_nan=True)


def _axes(given: InputSignature, name: str) -> list[int]:
    return [axis for axis, size in enumerate(given.shape) if size == name]


def _resize(value: Tensor, axes: Sequence[int], low: int, high: int | None) -> Tensor:
    """One less along ``axes`` where ``low`` allows it, else one more: a longest sequence may not be recorded."""
    for axis in axes:
        size = value.shape[axis]
        if size > max(low, 1):
            value = value.narrow(axis, 0, size - 1)
        elif high is None or size < high:
            value = torch.cat([value, value.narrow(axis, 0, 1)], axis)
    return value


# --- The layer that a call belongs to ---------------------------------------------------------------------------------


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _owner(node: Any, owners: WeightOwners, prefix: str) -> str | None:
    paths = (path.removeprefix(prefix) for value in node.inputs() for path in _attributes(value))
    layers = (owners.layer(path, node.kind()) for path in paths)
    return next((layer for layer in layers if layer is not None), None)


def _attributes(value: Any) -> list[str]:
    """The paths of the attributes that a value is made of."""
    node = value.node()
    if node.kind() == "prim::GetAttr":
        return [_path(node)]
    if node.kind() not in PASS_THROUGH:
        return []
    return [path for argument in node.inputs() for path in _attributes(argument)]


def _path(node: Any) -> str:
    owner, name = next(node.inputs()).node(), str(node.s("name"))
    return f"{_path(owner)}.{name}" if owner.kind() == "prim::GetAttr" else name
