"""Programs whose inputs are unlike each other, or unlike what quantization expects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.workers.engine.programs.program import SmallProgram, linear, module, normals


def bag_with_offsets(self: Any, ids: Tensor, offsets: Tensor) -> Tensor:
    return self.o(self.t(ids, offsets))


def scalar_beside_batch(self: Any, x: Tensor, w: Tensor) -> Tensor:
    return x + self.a(x) * w


def bank_beside_batch(self: Any, x: Tensor, bank: Tensor) -> Tensor:
    return self.a(x) @ self.b(bank).t()


def perceptron(self: Any, x: Tensor) -> Tensor:
    return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


INPUTS = (
    SmallProgram(
        "bag with offsets",
        lambda: module(bag_with_offsets, t=nn.EmbeddingBag(300, 16, mode="sum"), o=linear(16, 4)),
        lambda: (torch.randint(0, 300, (20,)), torch.tensor([0, 4, 9, 15])),
        free=(),
    ),
    SmallProgram(
        "scalar beside a batch",
        lambda: module(scalar_beside_batch, a=linear(16, 16)),
        lambda: (torch.randn(4, 16), torch.tensor(0.7)),
        free=("x",),
    ),
    SmallProgram(
        "bank beside a batch",
        lambda: module(bank_beside_batch, a=linear(16, 8), b=linear(16, 8)),
        normals((32, 16), (5, 16)),
        free=("x",),
    ),
    SmallProgram(
        "scales of raw features",
        lambda: module(perceptron, a=linear(12, 64), b=linear(64, 64), c=linear(64, 4)),
        lambda: (torch.randn(64, 12) * torch.logspace(-3, 5, 12),),
        smooth={"alpha": "auto"},
        methods=("dynamic",),
    ),
)
