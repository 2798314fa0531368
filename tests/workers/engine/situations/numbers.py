"""Numbers and shapes: dtypes, strides, ranks, and weights that are hard to scale."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.workers.engine.situations.situation import Situation, ids, normal


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 4))


def weight(change: Callable[[Tensor], object]) -> Callable[[], nn.Module]:
    """Two layers, the weight of the first changed in place."""

    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        with torch.no_grad():
            change(model[0].weight)
        return model

    return build


def holding(parameter: Callable[[], Tensor], bias: bool = True) -> Callable[[], nn.Module]:
    """nn.Linear(8, 8) with this weight."""

    def build() -> nn.Module:
        layer = nn.Linear(8, 8, bias=bias)
        layer.weight = nn.Parameter(parameter())
        return nn.Sequential(layer)

    return build


class MixedPrecision(nn.Module):
    """One bfloat16 layer in a float32 model."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8).bfloat16()
        self.outer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x.bfloat16()).float())


class Integers(nn.Module):
    """An exact product of counts next to a float layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("counts", torch.randint(-3, 4, (4, 8)))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.linear(x, self.counts).float())


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rotate = nn.Linear(8, 8, dtype=torch.complex64)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rotate(x.to(torch.complex64)).real)


class Strided(nn.Module):
    """The input of the layer is a transposed view."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.transpose(1, 2))


class Empty(nn.Module):
    """Zero features in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(8, 0)
        self.widen = nn.Linear(0, 4)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + self.widen(self.narrow(x))


def towering_bias() -> nn.Module:
    layer = nn.Linear(8, 8)
    nn.init.constant_(layer.bias, 1e4)
    return nn.Sequential(layer)


def same_sign(inputs: int) -> nn.Module:
    """Every product has the same sign: what wraps in int32 or saturates in int16 shows here."""
    model = nn.Linear(inputs, 2)
    nn.init.uniform_(model.weight, 0.9, 1.0)
    return nn.Sequential(model)


def positive(inputs: int) -> tuple[Tensor, ...]:
    return (torch.rand(3, inputs) + 1.0,)


def spiked_input() -> tuple[Tensor, ...]:
    """One channel a hundred times the others, as in large language models."""
    x = torch.randn(3, 5, 16)
    x[..., 3] *= 100
    return (x,)


NUMBERS = (
    Situation("float16", "dtype", lambda: mlp().half(), normal(3, 8, dtype=torch.float16), gemms=2),
    Situation("bfloat16", "dtype", lambda: mlp().bfloat16(), normal(3, 8, dtype=torch.bfloat16), gemms=2),
    Situation("float64", "dtype", lambda: mlp().double(), normal(3, 8, dtype=torch.float64), gemms=2),
    Situation("float64 convolution", "dtype", lambda: nn.Conv2d(4, 8, 3).double(),
              normal(3, 4, 6, 6, dtype=torch.float64)),
    Situation("one bfloat16 layer", "dtype", MixedPrecision, normal(3, 8), gemms=2),
    Situation("complex", "dtype", Complex, normal(3, 8), gemms=2, float_layers={"rotate": "dtype"}),
    Situation("transposed weight", "strides", holding(lambda: torch.randn(8, 8).t()), normal(3, 8)),
    Situation("every second row", "strides", holding(lambda: torch.randn(16, 8)[::2]), normal(3, 8)),
    Situation("expanded weight", "strides", holding(lambda: torch.randn(8, 1).expand(8, 8)), normal(3, 8)),
    Situation("transposed input", "strides", Strided, normal(3, 5, 8)),
    Situation("integer linear", "input-dtype", Integers, ids(3, 8, below=5), gemms=2,
              float_layers={"counts": "input-dtype"}),
    Situation("one dimension", "shape", lambda: nn.Sequential(nn.Linear(8, 4)), normal(8), dynamic=False),
    Situation("five dimensions", "shape", lambda: nn.Sequential(nn.Linear(8, 4)), normal(2, 2, 2, 2, 8)),
    Situation("zero features", "shape", Empty, normal(3, 8), gemms=3,
              float_layers={"narrow": "shape", "widen": "shape"}),
    Situation("samples without steps", "shape", mlp, normal(3, 0, 8), gemms=2),
    Situation("one sample", "shape", mlp, normal(1, 8), dynamic=False, gemms=2),
    Situation("140,000 in_features of one sign", "shape", lambda: same_sign(140_000), lambda: positive(140_000)),
    Situation("odd sizes", "shape", lambda: nn.Sequential(nn.Linear(7, 13, bias=False), nn.Linear(13, 1)), normal(3, 7),
              gemms=2),
    Situation("NaN weight", "nan-inf", weight(lambda w: w[2, 3].fill_(float("nan"))), normal(3, 16), gemms=2,
              float_layers={"0": "nan-inf"}),
    Situation("infinite weight", "nan-inf", weight(lambda w: w[2, 3].fill_(float("inf"))), normal(3, 16), gemms=2,
              float_layers={"0": "nan-inf"}),
    Situation("outlier weight", "outlier", weight(lambda w: w[2, 3].fill_(1e4)), normal(3, 16), gemms=2),
    Situation("outlier channel", "outlier", weight(lambda w: w[:, 5].mul_(200)), normal(3, 16), gemms=2),
    Situation("outlier activations", "outlier", weight(lambda w: w), spiked_input, gemms=2),
    Situation("tiny weights", "numeric", holding(lambda: torch.randn(8, 8) * 1e-8, bias=False), normal(3, 8)),
    Situation("minute weights", "numeric", holding(lambda: torch.randn(8, 8) * 1e-35, bias=False), normal(3, 8)),
    Situation("huge weights", "numeric", holding(lambda: torch.randn(8, 8) * 1e30), normal(3, 8)),
    Situation("zero weights", "numeric", weight(Tensor.zero_), normal(3, 16), gemms=2),
    Situation("a row of zeros", "numeric", weight(lambda w: w[2].zero_()), normal(3, 16), gemms=2),
    Situation("towering bias", "numeric", towering_bias, normal(3, 8)),
    Situation("same sign", "saturation", lambda: same_sign(512), lambda: positive(512)),
    Situation("frozen", "numeric", lambda: mlp().requires_grad_(False), normal(3, 8), gemms=2),
    Situation("steps of a batch", "dynamic-shape", mlp, normal(3, 6, 8), gemms=2),
)  # fmt: skip
