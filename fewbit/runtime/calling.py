"""Calling an exported program with flat tensors: what its caller nests and names, made of leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from fewbit.runtime.torch_internals import pytree

TENSOR = object()


@dataclass(frozen=True)
class Signature:
    """``leaves``: one for each flat argument, ``TENSOR`` or the value that export fixed; ``structure``: of positional
    and keyword arguments."""

    leaves: tuple[Any, ...]
    structure: pytree.TreeSpec

    def arguments(self, inputs: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``inputs``, in the order of the flat arguments that are tensors, as ``forward`` takes them."""
        given = iter(inputs)
        leaves = [next(given) if leaf is TENSOR else leaf for leaf in self.leaves]
        arguments, keywords = pytree.tree_unflatten(leaves, self.structure)
        return tuple(arguments), dict(keywords)


def signature_of(exported: ExportedProgram) -> Signature:
    specs = [spec for spec in exported.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    leaves = tuple(spec.arg.value if isinstance(spec.arg, ConstantArgument) else TENSOR for spec in specs)
    return Signature(leaves, exported.call_spec.in_spec)
