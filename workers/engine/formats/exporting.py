"""Exporting a module on one example, with as many free sizes as the module allows.

The first attempt asks for a free batch (from one sample on) and free sequences. Every failed attempt is followed by
one that asks for less; the last asks for no free size.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from workers.errors import EngineError, first_line

Arguments = Mapping[str, Tensor]
"""One example: tensors by forward argument, in forward's order; their first axis counts samples."""

Shapes = dict[str, dict[int, Any]] | None
ADVICE = (
    "Export it where its code is, and upload the .pt2: "
    "torch.export.save(torch.export.export(model.eval(), (example_input,)), 'model.pt2')."
)
_SEQUENCES = frozenset({"input_values"})  # in addition to integers of two axes, which are tokens


def export(
    module: nn.Module, example: Arguments, call: Callable[..., Any], *, by_name: bool = False, fixed: bool = False
) -> ExportedProgram:
    """``call(**example)`` on ``module``, which owns the parameters, as a program whose inputs have the example's names.

    ``by_name``: the program is called with keywords, else by position. ``fixed``: all sizes are those of the example.
    Raises ``EngineError('export-failed')``.
    """
    _take_exactly(module, list(example), call)
    failure: Exception | None = None
    for shapes in (None,) if fixed else _shape_attempts(example):
        try:
            return _export_once(module, example, shapes, by_name=by_name)
        except MemoryError:
            raise
        except Exception as error:  # torch raises many kinds here; the first tells most about the model
            failure = failure or error
    assert failure is not None  # there is always one attempt
    raise EngineError(
        "export-failed",
        f"torch.export cannot follow this model on {_describe(example)}: {first_line(failure)}. {ADVICE}",
    ) from failure


def _describe(example: Arguments) -> str:
    """``x float32 [2, 8]``."""
    return ", ".join(
        f"{name} {str(value.dtype).removeprefix('torch.')} {list(value.shape)}" for name, value in example.items()
    )


def _take_exactly(module: nn.Module, names: Sequence[str], call: Callable[..., Any]) -> None:
    """Give ``module`` a forward with only these arguments: torch.export reads the signature, and would treat
    ``**kwargs`` as one argument."""

    def forward(*arguments: Tensor, **keywords: Tensor) -> Any:
        return call(**dict(zip(names, arguments, strict=False)), **keywords)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    forward.__dict__["__signature__"] = signature
    module.forward = forward


def _export_once(module: nn.Module, example: Arguments, shapes: Shapes, *, by_name: bool) -> ExportedProgram:
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernels hide the layers of stock transformers
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # they are about the user's model, and the user does not see them here
            if by_name:
                return torch.export.export(module, (), kwargs=dict(example), dynamic_shapes=shapes, strict=False)
            positional = None if shapes is None else tuple(shapes[name] for name in example)
            return torch.export.export(module, tuple(example.values()), dynamic_shapes=positional, strict=False)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def _shape_attempts(example: Arguments) -> Iterator[Shapes]:
    batch = Dim("batch", min=1)
    sequences = {name for name, value in example.items() if _is_sequence(name, value)}
    if sequences:
        yield {name: {0: batch, **({1: Dim.AUTO} if name in sequences else {})} for name in example}
        yield {name: {0: Dim.AUTO, **({1: Dim.AUTO} if name in sequences else {})} for name in example}
    yield {name: {0: batch} for name in example}
    yield {name: {0: Dim.AUTO} for name in example}
    yield None


def _is_sequence(name: str, value: Tensor) -> bool:
    return value.dim() == 2 and (value.dtype is torch.int64 or name in _SEQUENCES)
