"""Every kind of upload becomes a ``Program``. ``READERS`` has one entry per kind.

    pt2            is an exported program already
    transformers   pretrained.py   a folder of config.json and safetensors; examples are made from the config
    module         stock.py        torch.save of torch.nn classes; the example is two samples of the dataset
    torchscript    torchscript.py  torch.jit.save; likewise

Everything opened here was scanned before (``workers/intake/scan.py``), which also tells its kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fewbit.contract.resources import InputSignature, ModelFormat, ModelLayer
from fewbit.runtime.program import Program
from workers.engine.formats.pretrained import inspect_pretrained, open_pretrained, pretrained_program
from workers.engine.formats.stock import open_stock, stock_layers, stock_program
from workers.engine.formats.torchscript import script_layers, script_program
from workers.engine.graph.layers import find_layers
from workers.engine.graph.program import load, signature
from workers.engine.reporting.layer_rows import model_layers
from workers.engine.task import Inspection
from workers.errors import EngineError

__all__ = ["inspect_upload", "open_module", "open_program"]

InputsAndLayers = tuple[tuple[InputSignature, ...], tuple[ModelLayer, ...]]


@dataclass(frozen=True)
class Reader:
    """How one kind is read. ``program``: from the upload and the dataset, if there is one; ``inspect``: its inputs and
    layer table, without any data; ``module``: the module that ``torch.ao`` takes, if the kind has one."""

    program: Callable[[Path, Path | None], Program]
    inspect: Callable[[Path], InputsAndLayers]
    module: Callable[[Path], nn.Module] | None = None


def open_program(path: Path, format: ModelFormat, dataset: Path | None) -> Program:
    """The upload as a program. ``dataset`` (evaluation, else calibration) gives the example inputs if the upload has
    none, and decides which arguments the program takes. Raises ``EngineError``."""
    return READERS[format].program(path, dataset)


def open_module(path: Path, format: ModelFormat) -> nn.Module:
    """The upload as a module in eval mode, for ``backend: eager``. Raises ``EngineError('invalid-model')`` for a kind
    without a module."""
    reader = READERS[format].module
    if reader is None:
        raise EngineError("invalid-model", f"a {format} upload holds no nn.Module; backend eager takes {_MODULES}.")
    return reader(path)


def inspect_upload(path: Path, format: ModelFormat) -> Inspection:
    """The upload's inputs and its layer table. Raises ``EngineError``."""
    inputs, layers = READERS[format].inspect(path)
    return Inspection(format=format, inputs=inputs, layers=layers)


def _program_layers(program: Program) -> tuple[ModelLayer, ...]:
    layers, _ = find_layers(program)
    return model_layers(layers)


def _inspect_exported(path: Path) -> InputsAndLayers:
    program = load(path)
    return signature(program), _program_layers(program)


def _inspect_pretrained(path: Path) -> InputsAndLayers:
    program, inputs = inspect_pretrained(path)
    return inputs, _program_layers(program)


READERS: dict[ModelFormat, Reader] = {
    "pt2": Reader(lambda path, _: load(path), _inspect_exported),
    "transformers": Reader(pretrained_program, _inspect_pretrained, open_pretrained),
    "module": Reader(stock_program, lambda path: ((), stock_layers(path)), open_stock),
    "torchscript": Reader(script_program, lambda path: ((), script_layers(path))),
}
_MODULES = " or ".join(name for name, reader in READERS.items() if reader.module)
