"""A module of ``torch.nn`` classes only, as ``torch.save(model)`` writes it: loaded without running code of its own.

The scan has read the pickle and let it through because every name in it is in ``workers.intake``. Here torch's
restricted unpickler is given the same names and no other, so that both would have to be wrong at once.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.contract.resources import ModelLayer
from fewbit.runtime.program import Program, program_of
from workers.engine.formats.examples import Argument, float_dtype, from_dataset
from workers.engine.formats.exporting import export
from workers.errors import EngineError, first_line
from workers.intake.stock_modules import ACTIVATIONS, MODULES

_NAME = re.compile(r"[\w.-]{0,512}")  # names end up in generated source


def open_stock(path: Path) -> nn.Module:
    """The module, in eval mode. Raises ``EngineError('invalid-model')`` when torch cannot load it."""
    try:
        with torch.serialization.safe_globals(_allowed()):
            module = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(module, nn.Module):
            raise EngineError("invalid-model", f"the upload holds a {type(module).__name__}, not a module.")
        check_names(module)
        return module.eval()
    except (MemoryError, EngineError):
        raise
    except Exception as error:  # torch raises many kinds here, and the file is the user's: each is his to mend
        raise EngineError(
            "invalid-model", f"torch {torch.__version__} cannot load this module: {first_line(error)}"
        ) from error


def stock_program(path: Path, dataset: Path | None) -> Program:
    """The module as a program, on two samples of the dataset. Raises ``EngineError('export-failed')`` without one."""
    module = open_stock(path)
    accepted = arguments_of(module)
    example = from_dataset(require(dataset, accepted), accepted, float_dtype(module))
    return program_of(export(module, example, module.forward))


def stock_layers(path: Path) -> tuple[ModelLayer, ...]:
    """The layer table as far as the modules tell it: the exact one comes with the program, which needs an example."""
    return tuple(table(open_stock(path)))


def arguments_of(module: nn.Module) -> tuple[Argument, ...]:
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(Argument(each.name, each.default is each.empty) for each in parameters if each.kind in kinds)


def require(dataset: Path | None, accepted: tuple[Argument, ...]) -> Path:
    """The gateway refuses such a job; this is for everybody else."""
    if dataset is None:
        names = ", ".join(f"{each.name}=..." for each in accepted if each.required)
        raise EngineError(
            "export-failed",
            "this upload does not say what its inputs look like, so the job needs a dataset: "
            f"numpy.savez('evaluation.npz', {names}), then POST /datasets, and name it in evaluation.dataset.",
        )
    return dataset


def table(module: nn.Module) -> Iterator[ModelLayer]:
    """One row for each weight that a layer multiplies by, in the order of the modules."""
    for path, each in module.named_modules():
        kind = class_of(each)
        if kind == "MultiheadAttention":
            yield from _projections(path, each)
        elif kind in OPERATORS:
            own = list(each.parameters(recurse=False))
            yield _row(path, kind, max(own, key=Tensor.numel), own)


def check_names(module: nn.Module) -> None:
    """Raises ``EngineError('unsafe-model')`` for a submodule, parameter or buffer called by what is no name."""
    names = [*dict(module.named_modules()), *dict(module.named_parameters()), *dict(module.named_buffers())]
    strange = next((name for name in names if not _NAME.fullmatch(name)), None)
    if strange is not None:
        raise EngineError("unsafe-model", f"a submodule or parameter is called {strange[:200]!r}: no name, but text.")


def class_of(module: nn.Module) -> str:
    """The stock class's name; a scripted module still knows what it was."""
    return str(getattr(module, "original_name", type(module).__name__))


def shown_class(kind: str) -> str:
    """As the layer table names it. Attention computes its last projection itself, whatever class that has."""
    known = {"NonDynamicallyQuantizableLinear": "MultiheadAttention"}.get(kind, kind)
    return f"torch.nn.{known}" if kind in OPERATORS else known


def _projections(path: str, attention: nn.Module) -> Iterator[ModelLayer]:
    """Attention keeps the projections of query, key and value in one matrix, or in three; the fourth is a module."""
    own = dict(attention.named_parameters(recurse=False))
    for name, weight in own.items():
        if name.endswith("proj_weight"):
            full = f"{path}.{name}".lstrip(".").removesuffix("_weight")
            biases = [own["in_proj_bias"]] if name == "in_proj_weight" and "in_proj_bias" in own else []
            yield _row(full, "MultiheadAttention", weight, [weight, *biases])


def _row(name: str, kind: str, weight: Tensor, own: Sequence[Tensor]) -> ModelLayer:
    op = OPERATORS[kind]
    return ModelLayer(
        name=name,
        type=shown_class(kind),
        op=op,
        shape=tuple(weight.shape),
        parameters=sum(map(Tensor.numel, own)),
        quantizable=weight.dtype.is_floating_point,
    )


OPERATORS = {
    **dict.fromkeys(("Linear", "NonDynamicallyQuantizableLinear", "MultiheadAttention"), "aten.linear"),
    **{f"Conv{rank}d": f"aten.conv{rank}d" for rank in (1, 2, 3)},
    **{f"ConvTranspose{rank}d": f"aten.conv_transpose{rank}d" for rank in (1, 2, 3)},
    **{"Embedding": "aten.embedding", "EmbeddingBag": "aten.embedding_bag", "Bilinear": "aten.bilinear"},
    **{"LSTM": "aten.lstm", "GRU": "aten.gru", "RNN": "aten.rnn_tanh"},
    **{"LSTMCell": "aten.lstm_cell", "GRUCell": "aten.gru_cell", "RNNCell": "aten.rnn_tanh_cell"},
}


def _allowed() -> list[Any]:
    return [_resolved(name) for name in sorted(MODULES | ACTIVATIONS)] + [set]


def _resolved(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)
