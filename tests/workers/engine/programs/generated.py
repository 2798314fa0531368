"""Programs drawn by hypothesis: layers, views, writes, reuse, odd shapes, one operator after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies
from torch import Tensor, nn
from torch.nn import functional as F

from tests.workers.engine.programs.program import SmallProgram

WIDTH = 16
Step = Callable[[Any, Tensor, list[Tensor]], Tensor]
"""(the module, the value so far [batch, length, WIDTH], all values before it) -> the next value, of the same shape."""


def _fill_column(_: Any, x: Tensor, __: list[Tensor]) -> Tensor:
    x[..., 3] = 0.5
    return x


def _fill_through_view(_: Any, x: Tensor, __: list[Tensor]) -> Tensor:
    x.transpose(1, 2)[:, 2].mul_(0.5)
    return x


def _add_half(_: Any, x: Tensor, __: list[Tensor]) -> Tensor:
    x[..., :8] += x[..., 8:]
    return x


def _write_slice(self: Any, x: Tensor, _: list[Tensor]) -> Tensor:
    padded = torch.zeros_like(x)
    padded[:, 1:] = self.a(x[:, :-1])
    return padded


def _relu_in_place(_: Any, x: Tensor, __: list[Tensor]) -> Tensor:
    return x.relu_()


def _masked_fill(_: Any, x: Tensor, __: list[Tensor]) -> Tensor:
    return x.masked_fill_(x > 1.0, 1.0)


def _attention(self: Any, x: Tensor, _: list[Tensor]) -> Tensor:
    q, k, v = self.qkv(x).chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v)


def _heads(self: Any, x: Tensor, _: list[Tensor]) -> Tensor:
    batch, length, _width = x.shape
    q, k, v = (part.view(batch, length, 2, 8).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, WIDTH)


def _convolution(self: Any, x: Tensor, _: list[Tensor]) -> Tensor:
    return self.conv(x.transpose(1, 2)).transpose(1, 2)


def _recurrent(self: Any, x: Tensor, _: list[Tensor]) -> Tensor:
    return self.gru(x)[0]


def _gate_from_mean(self: Any, x: Tensor, _: list[Tensor]) -> Tensor:
    return x * torch.sigmoid(self.b(x.mean((0, 1))))


STEPS: dict[str, Step] = {
    "linear": lambda self, x, _: self.a(x),
    "second linear": lambda self, x, _: self.b(x),
    "weight": lambda self, x, _: x @ self.a.weight,
    "transposed weight": lambda self, x, _: x @ self.a.weight.t(),
    "functional": lambda self, x, _: F.linear(x, self.b.weight),
    "einsum": lambda self, x, _: torch.einsum("bsd,df->bsf", x, self.a.weight),
    "convolution": _convolution,
    "recurrent": _recurrent,
    "attention": _attention,
    "heads": _heads,
    "gate": _gate_from_mean,
    "norm": lambda self, x, _: self.norm(x),
    "gelu": lambda _, x, __: F.gelu(x),
    "silu": lambda _, x, __: F.silu(x),
    "relu": lambda _, x, __: torch.relu(x),
    "tanh": lambda _, x, __: torch.tanh(x),
    "sigmoid": lambda _, x, __: torch.sigmoid(x),
    "softmax": lambda _, x, __: x.softmax(-1),
    "hardswish": lambda _, x, __: F.hardswish(x),
    "elu": lambda _, x, __: F.elu(x),
    "softplus": lambda _, x, __: F.softplus(x),
    "leaky relu": lambda _, x, __: F.leaky_relu(x),
    "clamp": lambda _, x, __: x.clamp(-1, 1),
    "abs": lambda _, x, __: x.abs(),
    "square": lambda _, x, __: x.square() * 0.1,
    "exp": lambda _, x, __: x.clamp(-3, 1).exp(),
    "sine": lambda _, x, __: torch.sin(x),
    "first again": lambda _, x, before: x + before[0],
    "last again": lambda _, x, before: x + before[-1],
    "times first": lambda _, x, before: x * torch.tanh(before[0]),
    "maximum": lambda _, x, before: torch.maximum(x, before[0]),
    "where": lambda _, x, before: torch.where(x > 0, x, before[0]),
    "flip": lambda _, x, __: x.flip(-1),
    "roll": lambda _, x, __: x.roll(1, -1),
    "halves swapped": lambda _, x, __: torch.cat([x[..., 8:], x[..., :8]], -1),
    "stacked": lambda _, x, before: torch.stack([x, before[0]]).mean(0),
    "viewed": lambda _, x, __: x.reshape(x.shape[0], -1).view(x.shape),
    "unflattened": lambda _, x, __: x.unflatten(-1, (4, 4)).transpose(-1, -2).flatten(-2),
    "expanded": lambda _, x, __: x + x.mean(1, keepdim=True).expand_as(x),
    "padded": lambda _, x, __: F.pad(x, (1, 0))[..., :-1],
    "cumulative": lambda _, x, __: x.cumsum(1) * 0.2,
    "gathered": lambda _, x, __: x[:, :, torch.arange(WIDTH - 1, -1, -1)],
    "column filled": _fill_column,
    "view filled": _fill_through_view,
    "half added": _add_half,
    "slice written": _write_slice,
    "relu in place": _relu_in_place,
    "filled where masked": _masked_fill,
}


class Generated(nn.Module):
    def __init__(self, steps: Sequence[str]) -> None:
        super().__init__()
        self.steps = tuple(steps)
        self.start, self.a, self.b = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.qkv, self.norm = nn.Linear(WIDTH, 3 * WIDTH), nn.LayerNorm(WIDTH)
        self.conv, self.gru = nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        before = [self.start(x)]
        value = before[0] + 0.0
        for name in self.steps:
            value = STEPS[name](self, value, before)
            before.append(value)
        return self.a(value) + x


@dataclass(frozen=True)
class Drawn:
    """What hypothesis drew."""

    steps: tuple[str, ...]
    length: int
    batch: int
    method: str

    def program(self) -> SmallProgram:
        return SmallProgram(
            " > ".join(self.steps),
            lambda: Generated(self.steps),
            lambda: (torch.randn(self.batch, self.length, WIDTH),),
        )


DRAWN = strategies.builds(
    Drawn,
    steps=strategies.lists(strategies.sampled_from(sorted(STEPS)), min_size=1, max_size=8).map(tuple),
    length=strategies.integers(2, 9),
    batch=strategies.integers(2, 40),
    method=strategies.sampled_from(("dynamic", "static", "weight_only")),
)
