"""A module of ``torch.nn`` classes only, as ``torch.save(model)`` writes it: loaded without running code from it.

The scan has read the pickle, and let it through because every name in it is allowed by ``workers.intake``. Here torch's
restricted unpickler gets the same names and no others: an attack would have to get past both.
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
from workers.engine.formats.examples import Argument, example_from_dataset, float_dtype
from workers.engine.formats.exporting import export
from workers.errors import EngineError, first_line
from workers.intake.stock_modules import ACTIVATIONS, MODULES

_NAME = re.compile(r"[\w.-]{0,512}")  # names end up in generated source


def open_stock(path: Path) -> nn.Module:
    """The module, in eval mode. Raises ``EngineError('invalid-model')`` when torch cannot load it."""
    try:
        with torch.serialization.safe_globals(_allowed_globals()):
            module = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(module, nn.Module):
            raise EngineError("invalid-model", f"the upload holds a {type(module).__name__}, not a module.")
        check_names(module)
        return module.eval()
    except (MemoryError, EngineError):
        raise
    except Exception as error:  # torch raises many kinds here, and the user can fix all of them in the file
        raise EngineError(
            "invalid-model", f"torch {torch.__version__} cannot load this module: {first_line(error)}"
        ) from error


def stock_program(path: Path, dataset: Path | None) -> Program:
    """The module as a program, on two samples of the dataset. Raises ``EngineError('export-failed')`` without one."""
    module = open_stock(path)
    accepted = forward_arguments(module)
    example = example_from_dataset(require_dataset(dataset, accepted), accepted, float_dtype(module))
    return program_of(export(module, example, module.forward))


def stock_layers(path: Path) -> tuple[ModelLayer, ...]:
    """The layer table as far as the modules tell: the exact one needs the program, which needs an example."""
    return tuple(layer_table(open_stock(path)))


def forward_arguments(module: nn.Module) -> tuple[Argument, ...]:
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = (parameter for parameter in parameters if parameter.kind in kinds)
    return tuple(Argument(parameter.name, parameter.default is parameter.empty) for parameter in positional)


def require_dataset(dataset: Path | None, accepted: tuple[Argument, ...]) -> Path:
    """The dataset; raises ``EngineError`` without one. The gateway refuses such jobs too, but may be bypassed."""
    if dataset is None:
        names = ", ".join(f"{argument.name}=..." for argument in accepted if argument.required)
        raise EngineError(
            "export-failed",
            "this upload does not say what its inputs look like, so the job needs a dataset: "
            f"numpy.savez('evaluation.npz', {names}), then POST /datasets, and name it in evaluation.dataset.",
        )
    return dataset


def layer_table(module: nn.Module) -> Iterator[ModelLayer]:
    """One row for each weight that a layer multiplies by, in the order of the modules."""
    for path, child in module.named_modules():
        kind = stock_class(child)
        if kind == "MultiheadAttention":
            yield from _projections(path, child)
        elif kind in OPERATORS:
            own = list(child.parameters(recurse=False))
            yield _row(path, kind, max(own, key=Tensor.numel), own)


def check_names(module: nn.Module) -> None:
    """Raises ``EngineError('unsafe-model')`` for a submodule, parameter or buffer whose name is not an identifier."""
    names = [*dict(module.named_modules()), *dict(module.named_parameters()), *dict(module.named_buffers())]
    invalid = next((name for name in names if not _NAME.fullmatch(name)), None)
    if invalid is not None:
        raise EngineError("unsafe-model", f"a submodule or parameter is called {invalid[:200]!r}, which is not a name.")


def stock_class(module: nn.Module) -> str:
    """The name of the stock class; a scripted module remembers it."""
    return str(getattr(module, "original_name", type(module).__name__))


def shown_class(kind: str) -> str:
    """The class in the layer table. Attention computes its last projection itself, whatever class that has."""
    known = {"NonDynamicallyQuantizableLinear": "MultiheadAttention"}.get(kind, kind)
    return f"torch.nn.{known}" if kind in OPERATORS else known


def _projections(path: str, attention: nn.Module) -> Iterator[ModelLayer]:
    """Attention stores the projections of query, key and value in one matrix or in three; the fourth is a module."""
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


def _allowed_globals() -> list[Any]:
    return [_resolve(name) for name in sorted(MODULES | ACTIVATIONS)] + [set]


def _resolve(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)
