"""Programs that read one weight in several ways, or a layer in an odd shape or dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.workers.engine.programs.program import SmallProgram, ids, linear, module, normals


def both_orientations(self: Any, x: Tensor) -> Tensor:
    return self.fc(x) @ self.fc.weight


def transposed_and_not(self: Any, x: Tensor) -> Tensor:
    return F.linear(x, self.fc.weight) + x @ self.fc.weight


def table_and_head(self: Any, x: Tensor) -> Tensor:
    return F.linear(self.e(x), self.e.weight)


def both_sides(self: Any, x: Tensor) -> Tensor:
    return x @ self.fc.weight + self.fc.weight @ x


def matrix_and_kernel(self: Any, x: Tensor) -> Tensor:
    y = F.conv1d(x, self.fc.weight.unsqueeze(-1))
    return y + self.fc(x.transpose(1, 2)).transpose(1, 2)


def einsum_and_linear(self: Any, x: Tensor) -> Tensor:
    return torch.einsum("bi,io->bo", x, self.fc.weight) + self.fc(x)


def vector_gate(self: Any, x: Tensor) -> Tensor:
    return self.fc(x) * torch.sigmoid(self.g(x.mean(0)))


def only_vectors(self: Any, x: Tensor) -> Tensor:
    return self.g(torch.relu(self.fc(x.mean(0)))) + x


def autocast_with_cast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = self.a(x).float()
        return self.b(y)


def autocast_then_float(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = self.a(x)
    return self.b(y.float())


USES = (
    SmallProgram(
        "weight read in two orientations",
        lambda: module(both_orientations, fc=linear(16, 16, bias=False)),
        normals((32, 16)),
    ),
    SmallProgram(
        "weight and its transpose, one input",
        lambda: module(transposed_and_not, fc=linear(16, 16, bias=False)),
        normals((32, 16)),
    ),
    SmallProgram(
        "table that is the head too", lambda: module(table_and_head, e=nn.Embedding(40, 16)), ids(32, 7, below=40)
    ),
    SmallProgram(
        "weight on both sides",
        lambda: module(both_sides, fc=linear(16, 16, bias=False)),
        normals((16, 16)),
        free=(),
    ),
    SmallProgram(
        "weight of a linear and a convolution",
        lambda: module(matrix_and_kernel, fc=linear(16, 16, bias=False)),
        normals((32, 16, 9)),
    ),
    SmallProgram(
        "weight of a linear and an einsum",
        lambda: module(einsum_and_linear, fc=linear(16, 16)),
        normals((32, 16)),
    ),
    SmallProgram(
        "gate from a vector", lambda: module(vector_gate, fc=linear(16, 4), g=linear(16, 4)), normals((32, 16))
    ),
    SmallProgram("vectors only", lambda: module(only_vectors, fc=linear(16, 32), g=linear(32, 16)), normals((32, 16))),
    SmallProgram(
        "autocast with a cast inside",
        lambda: module(autocast_with_cast, a=linear(16, 16), b=linear(16, 4)),
        normals((32, 16)),
        missing={"onnx": "gives no bfloat16"},
    ),
    SmallProgram(
        "autocast, then float",
        lambda: module(autocast_then_float, a=linear(16, 16), b=linear(16, 4)),
        normals((32, 16)),
    ),
)
