"""Programs that write: in place, through a view, into a buffer, into a parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.workers.engine.programs.program import SmallProgram, ids, linear, module, normals

NO_STATE = "keeps no state"


def slice_before_read(self: Any, x: Tensor) -> Tensor:
    padded = torch.zeros_like(x)
    padded[:, :5] = self.a(x[:, 2:])
    return self.o(padded)


def read_write_read(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    z = self.o(y)
    y[:, 0] = 9.0
    return torch.cat([z, self.o(y)], 1)


def write_through_transpose(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    y.t()[3].mul_(2.0)
    return self.o(y)


def write_through_view(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    y.view(-1)[::2].fill_(0.5)
    return self.o(y)


def add_into_layer_input(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    z = self.o(y)
    y += 1.0
    return z + self.o(y)


def relu_after_read(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    z = self.o(y)
    return z + self.o(y.relu_())


def masked_fill(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    z = self.o(y)
    y.masked_fill_(x > 0.5, 0.0)
    return z * self.o(y)


def index_put(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    y[:, torch.tensor([1, 3, 5])] = x[:, :3]
    return self.o(y)


def loop_of_writes(self: Any, x: Tensor) -> Tensor:
    outputs = torch.empty(x.shape[0], 4, 16)
    state = torch.zeros(x.shape[0], 16)
    for step in range(4):
        state = torch.tanh(self.a(x[:, step]) + state)
        outputs[:, step] = state
    return self.o(outputs)


def write_into_input(self: Any, x: Tensor) -> Tensor:
    x[:, 0] = 0.0
    return self.o(self.a(x))


def split_and_write(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    y[:, :8].add_(y[:, 8:])
    return self.o(y)


def renormalized_table(self: Any, x: Tensor) -> Tensor:
    return self.o(self.e(x)).mean(1)


def step_counter(self: Any, x: Tensor) -> Tensor:
    self.n.add_(1)
    return self.a(x)


def counter_that_counts(self: Any, x: Tensor) -> Tensor:
    self.n.add_(1)
    return self.a(x) * self.n


def running_mean(self: Any, x: Tensor) -> Tensor:
    self.mean.mul_(0.9).add_(0.1 * x.mean(0))
    return self.a(x - self.mean)


def cache_at_position(self: Any, x: Tensor) -> Tensor:
    self.cache[:, 1:] = self.cache[:, :-1].clone()
    self.cache[:, 0] = self.a(x).mean(0)
    return self.o(x) + self.cache.sum(1)


def _pair(outputs: int = 4) -> dict[str, nn.Module]:
    return {"a": linear(16, 16), "o": linear(16, outputs)}


WRITES = (
    SmallProgram("slice written before it is read", lambda: module(slice_before_read, **_pair()), normals((32, 7, 16))),
    SmallProgram("read, written, read again", lambda: module(read_write_read, **_pair()), normals((32, 16))),
    SmallProgram("written through a transpose", lambda: module(write_through_transpose, **_pair()), normals((32, 16))),
    SmallProgram("written through a view", lambda: module(write_through_view, **_pair()), normals((32, 16))),
    SmallProgram("added to between reads", lambda: module(add_into_layer_input, **_pair()), normals((32, 16))),
    SmallProgram("relu in place between reads", lambda: module(relu_after_read, **_pair()), normals((32, 16))),
    SmallProgram("filled where masked", lambda: module(masked_fill, **_pair()), normals((32, 16))),
    SmallProgram("put at indices", lambda: module(index_put, **_pair()), normals((32, 16))),
    SmallProgram("steps written into an empty tensor", lambda: module(loop_of_writes, **_pair()), normals((32, 4, 16))),
    SmallProgram(
        "input written",
        lambda: module(write_into_input, **_pair()),
        normals((32, 16)),
        missing={"onnx": "cannot write to its inputs"},
    ),
    SmallProgram("half written from the other", lambda: module(split_and_write, **_pair()), normals((32, 16))),
    SmallProgram(
        "embedding with a largest norm",
        lambda: module(renormalized_table, e=nn.Embedding(30, 16, max_norm=1.0), o=linear(16, 4)),
        ids(64, 9, below=30),
    ),
    SmallProgram(
        "step counter",
        lambda: module(step_counter, a=linear(16, 4), n=torch.zeros(())),
        normals((32, 16)),
        missing={"onnx": NO_STATE},
    ),
    SmallProgram(
        "counter in the output",
        lambda: module(counter_that_counts, a=linear(16, 4), n=torch.zeros((), dtype=torch.int64)),
        normals((32, 16)),
        missing={"onnx": NO_STATE},
    ),
    SmallProgram(
        "running mean",
        lambda: module(running_mean, a=linear(16, 4), mean=torch.zeros(16)),
        normals((32, 16)),
        missing={"onnx": NO_STATE},
    ),
    SmallProgram(
        "cache shifted and written",
        lambda: module(cache_at_position, a=linear(16, 4), o=linear(16, 4), cache=torch.zeros(4, 3)),
        normals((32, 16)),
        missing={"onnx": NO_STATE},
    ),
)
