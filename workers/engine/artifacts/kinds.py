"""The kinds of artifact: how each is written, and how it is loaded again by someone who has nothing of this project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from fewbit.runtime.script import Call
from workers.engine.artifacts.onnx import load_onnx, save_onnx
from workers.engine.artifacts.pt2 import save_pt2
from workers.engine.artifacts.safetensors import check_safetensors, save_safetensors
from workers.engine.artifacts.torchscript import save_torchscript
from workers.engine.graph.pt2_reader import read_exported
from workers.engine.quantization.reference import Reference

Run = Callable[[Sequence[Tensor]], list[Any]]
"""Flat inputs to flat outputs."""


@dataclass(frozen=True)
class Kind:
    """One kind. ``save`` returns the calls that the layers make in it, in the order of a forward pass, as torch's
    profiler sees them. ``load`` is None where the file holds no program: its content is held to be right by ``check``,
    which raises."""

    name: str
    file: str
    save: Callable[[Reference, Path], tuple[Call, ...]]
    load: Callable[[Path], Run] | None
    check: Callable[[Path], None] | None = None


def load_torchscript(path: Path) -> Run:
    module = torch.jit.load(path)  # type: ignore[no-untyped-call]
    return lambda inputs: pytree.tree_leaves(module(*inputs))


def load_pt2(path: Path) -> Run:
    with path.open("rb") as file:
        exported = read_exported(file)
    module = exported.module(check_guards=False)
    specs = [spec for spec in exported.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    in_spec = exported.call_spec.in_spec

    def run(inputs: Sequence[Tensor]) -> list[Any]:
        given = iter(inputs)
        leaves = [spec.arg.value if isinstance(spec.arg, ConstantArgument) else next(given) for spec in specs]
        arguments, keywords = pytree.tree_unflatten(leaves, in_spec)
        return pytree.tree_leaves(module(*arguments, **keywords))

    return run


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("torchscript", "model.ts.pt", save_torchscript, load_torchscript),
        Kind("pt2", "model.pt2", save_pt2, load_pt2),
        Kind("onnx", "model.onnx", save_onnx, load_onnx),
        Kind("safetensors", "model.safetensors", save_safetensors, None, check_safetensors),
    )
}
