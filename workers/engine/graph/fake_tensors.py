"""Fake tensors, which say what a value is and hold none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

CPU = torch.device("cpu")


def fake_tensor(
    mode: FakeTensorMode, sizes: Sequence[Any], strides: Sequence[Any], dtype: torch.dtype, requires_grad: bool = False
) -> Tensor:
    """A CPU tensor of these sizes and strides, integers or symbols. What ``torch.empty_strided`` gives under ``mode``,
    made at once: a dispatcher takes eight times as long to find it out."""
    bare = torch.empty_strided(sizes, strides, dtype=dtype, device="meta", requires_grad=requires_grad)
    return FakeTensor(mode, bare, CPU)
