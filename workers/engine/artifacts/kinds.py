"""The kinds of artifact: how each is written, and how it is loaded again by someone who has nothing of this project."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

import fewbit.runtime
from fewbit.runtime.calling import Signature, signature_of
from fewbit.runtime.script import Call
from workers.engine.artifacts.onnx import load_onnx, save_onnx
from workers.engine.artifacts.pt2 import save_pt2
from workers.engine.artifacts.safetensors import check_safetensors, save_safetensors
from workers.engine.artifacts.torchscript import save_torchscript
from workers.engine.graph.pt2_reader import fast_reading, read_exported_file
from workers.engine.graph.torch_internals import pytree
from workers.engine.quantization.reference import Reference

Run = Callable[[Sequence[Tensor]], list[Any]]
"""Flat inputs to flat outputs."""


@dataclass(frozen=True)
class Kind:
    """One kind. ``save`` returns the calls that the layers make in it, in the order of a forward pass, as torch's
    profiler sees them. ``loaders``: every documented way to load it, by name, the one that is measured first; none
    where the file holds no program: its content is held to be right by ``check``, which raises."""

    name: str
    file: str
    save: Callable[[Reference, Path], tuple[Call, ...]]
    loaders: Mapping[str, Callable[[Path], Run]]
    check: Callable[[Path], None] | None = None

    @property
    def runs(self) -> bool:
        """Whether the file holds a program."""
        return bool(self.loaders)

    @property
    def loader(self) -> str:
        """The way to load it that accuracy, kernels and latency are measured with."""
        return next(iter(self.loaders))


def load_torchscript(path: Path) -> Run:
    read: Any = torch.jit.load  # it has no types
    module = read(path)
    return lambda inputs: pytree.tree_leaves(module(*inputs))


def load_pt2(path: Path) -> Run:
    return run_exported(read_exported_file(path))


def run_exported(exported: ExportedProgram) -> Run:
    return _flatten_inputs(exported.module(check_guards=False), signature_of(exported))


def load_runtime(path: Path) -> Run:
    with fast_reading(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that it runs in float arithmetic
        model = fewbit.runtime.load(path)
    return _flatten_inputs(model, model.signature)


def _flatten_inputs(module: Callable[..., Any], signature: Signature) -> Run:
    def run(inputs: Sequence[Tensor]) -> list[Any]:
        arguments, keywords = signature.arguments(inputs)
        return pytree.tree_leaves(module(*arguments, **keywords))

    return run


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("torchscript", "model.ts.pt", save_torchscript, {"torch.jit.load": load_torchscript}),
        Kind("pt2", "model.pt2", save_pt2, {"torch.export.load": load_pt2, "fewbit.runtime.load": load_runtime}),
        Kind("onnx", "model.onnx", save_onnx, {"onnxruntime": load_onnx}),
        Kind("safetensors", "model.safetensors", save_safetensors, {}, check_safetensors),
    )
}
