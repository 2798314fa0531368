"""One situation: a small model, what to feed it, and what a true report says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Example = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Situation:
    """``example`` gives the positional inputs of one batch, ``keywords`` the rest; with ``dynamic`` the first dimension
    of all of them is free. ``code`` is the code in the catalogue of reasons that the stock routes would deserve here.
    ``gemms`` is the least number of layers with a constant operand, embeddings aside; ``float_layers`` maps those that
    must stay float to the code of their true reason. ``decompose``: the program goes through ``run_decompositions()``
    before it is saved. ``artifacts``: the kinds that can hold this program."""

    name: str
    code: str
    build: Callable[[], nn.Module]
    example: Example
    keywords: Mapping[str, Tensor] = field(default_factory=dict)
    dynamic: bool = True
    gemms: int = 1
    float_layers: Mapping[str, str] = field(default_factory=dict)
    decompose: bool = False
    artifacts: tuple[str, ...] = ("torchscript", "pt2")


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Example:
    """One input of standard normal values."""
    return lambda: (torch.randn(*shape).to(dtype),)


def normals(*shapes: tuple[int, ...]) -> Example:
    """Several inputs of standard normal values."""
    return lambda: tuple(torch.randn(*shape) for shape in shapes)


def ids(*shape: int, below: int = 16) -> Example:
    """One int64 input with values in [0, ``below``)."""
    return lambda: (torch.randint(0, below, shape),)
