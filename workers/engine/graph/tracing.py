"""A tensor function as graph nodes: traced once for all inputs it gives the same calls on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import fx

from workers.engine.graph.torch_internals import is_operator, make_fx

PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73)

STAND_INS = (0.37411, 0.61057, 0.82193, 0.93481)
"""What numbers are while a function is traced; none of them is a constant of any function."""

ELEMENTWISE = "fewbit_elementwise"
"""In the metadata of a traced call: whether its result has the shape and dtype of its first argument."""

TensorFunction = Callable[..., Any]
Prototype = tuple[tuple[int, ...], torch.dtype]
Function = TypeVar("Function", bound=TensorFunction)

_by_size: set[TensorFunction] = set()


@dataclass(frozen=True)
class Number:
    """A place in a traced call for the number of this name."""

    name: str


def depends_on_sizes(function: Function) -> Function:
    """Mark a function that needs the sizes themselves; all others see only which sizes are equal, and which are 1."""
    _by_size.add(function)
    return function


def traced(
    function: TensorFunction, nodes: Iterable[fx.Node], numbers: Iterable[str] = (), **settings: Any
) -> fx.Graph:
    """The calls that ``function`` makes on the values of ``nodes``. Composite operators stay whole. ``numbers`` are the
    names of floats that it only computes with: they stay open, as ``Number``. ``settings`` are hashable."""
    prototypes = _prototypes([node.meta["val"] for node in nodes], exact=function in _by_size)
    graph: fx.Graph = _traced(function, prototypes, tuple(numbers), tuple(settings.items()))
    return graph


@cache
def _traced(
    function: TensorFunction,
    prototypes: tuple[Prototype, ...],
    numbers: tuple[str, ...],
    settings: tuple[tuple[str, Any], ...],
) -> Any:
    """On the meta device, which computes nothing."""
    tensors = [torch.empty(sizes, dtype=dtype, device="meta") for sizes, dtype in prototypes]
    stand_ins = dict(zip(numbers, STAND_INS, strict=False))
    with torch.no_grad():
        graph = make_fx(partial(function, **stand_ins, **dict(settings)), pre_dispatch=True)(*tensors).graph
    places = {value: Number(name) for name, value in stand_ins.items()}
    for step in graph.nodes:
        step.args = tuple(places.get(given, given) if isinstance(given, float) else given for given in step.args)
        step.meta[ELEMENTWISE] = _keeps_first_argument(step)
    return graph


def _prototypes(values: list[torch.Tensor], exact: bool) -> tuple[Prototype, ...]:
    """Each size that is free, or every size but 1, becomes a prime of its own."""
    known: dict[str, int] = {}

    def size_of(size: Any) -> int:
        if isinstance(size, int) and (exact or size == 1):
            return size
        return known.setdefault(str(size), PRIMES[len(known)])

    return tuple((tuple(map(size_of, value.shape)), value.dtype) for value in values)


def _keeps_first_argument(step: fx.Node) -> bool:
    first = step.args[0] if step.args else None
    if not isinstance(first, fx.Node) or not is_operator(step.target) or torch.Tag.pointwise not in step.target.tags:
        return False
    result, operand = step.meta["val"], first.meta["val"]
    return bool(result.shape == operand.shape and result.dtype is operand.dtype)
