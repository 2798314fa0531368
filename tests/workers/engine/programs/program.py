"""One small program: how it is built, what it is called with, and what a job on it may end in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SmallProgram:
    """``example`` gives the inputs; those of ``free`` have a free first axis (None: all of them). ``missing``: the
    kinds that have no form for it, and what the finding must say; ``random``: it draws numbers, so that nothing can be
    compared."""

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], tuple[Tensor, ...]]
    free: tuple[str, ...] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    methods: tuple[str, ...] = ("dynamic", "static", "weight_only")
    smooth: Any = None
    decompose: bool = False
    random: bool = False
    least_db: float = 30.0


def module(forward: Callable[..., Any], /, **held: nn.Module | Tensor) -> nn.Module:
    """A module with this forward. Tensors become buffers."""
    made: nn.Module = type("Small", (nn.Module,), {"forward": forward})()
    for name, value in held.items():
        if isinstance(value, nn.Module):
            made.add_module(name, value)
        else:
            made.register_buffer(name, value)
    return made


def linear(inputs: int, outputs: int, **keywords: Any) -> nn.Linear:
    return nn.Linear(inputs, outputs, **keywords)


def normals(*shapes: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(torch.randn(shape) for shape in shapes)


def ids(*shape: int, below: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randint(0, below, shape),)
