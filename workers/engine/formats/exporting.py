"""A module and one example become an exported program, as dynamic as the module allows.

The batch is asked to be free from one sample on. A model that fixes it, or a sequence that cannot vary, costs an
attempt each: the next one asks for less, and the last for nothing.
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
"""One example: tensors by forward argument, in forward's order; the first axis of each counts samples."""

Shapes = dict[str, dict[int, Any]] | None
ADVICE = (
    "Export it where its code is, and upload the .pt2: "
    "torch.export.save(torch.export.export(model.eval(), (example_input,)), 'model.pt2')."
)
_SEQUENCES = frozenset({"input_values"})  # besides integers of two axes, which are tokens


def export(
    module: nn.Module, example: Arguments, call: Callable[..., Any], *, by_name: bool = False, fixed: bool = False
) -> ExportedProgram:
    """``call(**example)`` on ``module``, which owns the parameters, as a program whose inputs have the example's names.

    ``by_name``: callers of the program give keywords, else positions. ``fixed``: every size is the example's. Raises
    ``EngineError('export-failed')``.
    """
    _take_exactly(module, list(example), call)
    failure: Exception | None = None
    for shapes in (None,) if fixed else _attempts(example):
        try:
            return _exported(module, example, shapes, by_name=by_name)
        except MemoryError:
            raise
        except Exception as error:  # torch raises many kinds here; the first says most about the model
            failure = failure or error
    assert failure is not None  # there is always one attempt
    raise EngineError(
        "export-failed",
        f"torch.export cannot follow this model on {_shown(example)}: {first_line(failure)}. {ADVICE}",
    ) from failure


def _shown(example: Arguments) -> str:
    """``x float32 [2, 8]``."""
    return ", ".join(
        f"{name} {str(value.dtype).removeprefix('torch.')} {list(value.shape)}" for name, value in example.items()
    )


def _take_exactly(module: nn.Module, names: Sequence[str], call: Callable[..., Any]) -> None:
    """Give ``module`` a forward of these arguments only: torch.export reads the signature, and would take ``**kwargs``
    for one argument of its own."""

    def forward(*arguments: Tensor, **keywords: Tensor) -> Any:
        return call(**dict(zip(names, arguments, strict=False)), **keywords)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in names]
    )
    module.forward = forward


def _exported(module: nn.Module, example: Arguments, shapes: Shapes, *, by_name: bool) -> ExportedProgram:
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernels hide the layers of stock transformers
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about the user's model, which the user does not see here
            if by_name:
                return torch.export.export(module, (), kwargs=dict(example), dynamic_shapes=shapes, strict=False)
            positional = None if shapes is None else tuple(shapes[name] for name in example)
            return torch.export.export(module, tuple(example.values()), dynamic_shapes=positional, strict=False)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def _attempts(example: Arguments) -> Iterator[Shapes]:
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
