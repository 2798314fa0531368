"""Reading a ``.pt2``, and what its graph says about itself: its inputs, and the module that made each node."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from fewbit.contract.resources import InputSignature
from fewbit.runtime.program import Program, program_of
from workers.engine.graph.pt2_reader import read_exported_file
from workers.engine.graph.torch_internals import SCHEMA_VERSION
from workers.errors import EngineError, first_line

WRITTEN_AS = "fewbit_written_as"  # in a node's metadata: the operator of the user's graph that it stands for


def load(path: Path) -> Program:
    """Read a ``.pt2``. Raises ``EngineError('invalid-model')`` when it is none this torch can read."""
    _require_schema(path)
    try:
        exported = read_exported_file(path)
    except Exception as error:  # torch raises many kinds here; the file is the user's, so all are theirs to fix
        raise EngineError(
            "invalid-model", f"torch {torch.__version__} cannot load this .pt2: {first_line(error)}"
        ) from error
    if any("vmap" in str(node.target) for node in exported.graph.nodes if node.op == "call_function"):
        raise EngineError(
            "invalid-model",
            "the graph switches torch.vmap on and off, which no other process can replay; write the batch axis out and "
            "export again.",
        )
    return program_of(exported)


def signature(program: Program) -> tuple[InputSignature, ...]:
    """The forward arguments a caller gives. Raises ``EngineError('invalid-model')`` when one is not a tensor."""
    return tuple(_input_signature(node, program.exported) for node in program.inputs)


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
