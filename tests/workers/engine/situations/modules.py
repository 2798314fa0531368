"""Every module of ``torch.nn`` that holds a matrix, as itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.workers.engine.situations.situation import Example, Situation, ids, normal, normals


class First(nn.Module):
    """Of a module that returns several things, the first."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class Steps(nn.Module):
    """A recurrent cell over the second dimension, its state kept by hand."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return state[0] if isinstance(state, tuple) else state


class Attend(nn.Module):
    """``nn.MultiheadAttention`` of the first input to the others; of one input to itself."""

    def __init__(self, need_weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, **options)
        self.need_weights = need_weights

    def forward(self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None) -> Tensor:
        key = query if key is None else key
        value = key if value is None else value
        return self.attention(query, key, value, need_weights=self.need_weights)[0]


class Bag(nn.Module):
    """Two ids a bag, and a linear on top."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(16, 8, mode=mode)
        self.head = nn.Linear(8, 4)

    def forward(self, ids: Tensor, weights: Tensor | None = None) -> Tensor:
        return self.head(self.table(ids, per_sample_weights=weights))


class LogProbabilities(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(16, 40, cutoffs=[8, 20], div_value=2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.softmax.log_prob(x)


def embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(16, 8, padding_idx=0), nn.Linear(8, 4))


def encoder_layer(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, **options)


def decoder() -> nn.Module:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 32, batch_first=True), 2)


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2, enable_nested_tensor=False)


def transformer(**options: Any) -> nn.Module:
    return nn.Transformer(16, 4, 1, 1, 32, **options)


def bag(mode: str) -> Situation:
    return Situation(f"EmbeddingBag {mode}", "embedding-qconfig", lambda: Bag(mode), ids(3, 2))


def weighed_ids() -> tuple[Tensor, ...]:
    return torch.randint(0, 16, (3, 2)), torch.rand(3, 2)


def recurrent(name: str, module: Callable[[], nn.Module], example: Example | None = None, **more: Any) -> Situation:
    return Situation(name, "not-linear-type", lambda: First(module()), example or normal(3, 5, 8), **more)


def convolution(name: str, module: Callable[[], nn.Module], *shape: int, **more: Any) -> Situation:
    return Situation(name, "not-linear-type", module, normal(*shape), **more)


RECURRENT = (
    recurrent("LSTM", lambda: nn.LSTM(8, 8, batch_first=True)),
    recurrent("LSTM, steps first", lambda: nn.LSTM(8, 8), dynamic=False),
    recurrent("LSTM, two layers both ways", lambda: nn.LSTM(8, 8, 2, batch_first=True, bidirectional=True)),
    recurrent("LSTM, projected", lambda: nn.LSTM(8, 8, batch_first=True, proj_size=4)),
    recurrent("LSTM without bias", lambda: nn.LSTM(8, 8, batch_first=True, bias=False)),
    recurrent("GRU", lambda: nn.GRU(8, 8, batch_first=True)),
    recurrent("GRU, two layers both ways", lambda: nn.GRU(8, 8, 2, batch_first=True, bidirectional=True)),
    recurrent("RNN", lambda: nn.RNN(8, 8, batch_first=True)),
    recurrent("RNN with relu", lambda: nn.RNN(8, 8, batch_first=True, nonlinearity="relu")),
    recurrent("LSTM without batch", lambda: nn.LSTM(8, 8), normal(5, 8), dynamic=False),
    Situation("LSTMCell", "not-linear-type", lambda: Steps(nn.LSTMCell(8, 8)), normal(3, 4, 8)),
    Situation("GRUCell", "not-linear-type", lambda: Steps(nn.GRUCell(8, 8)), normal(3, 4, 8)),
    Situation("RNNCell", "not-linear-type", lambda: Steps(nn.RNNCell(8, 8)), normal(3, 4, 8)),
)

CONVOLUTIONS = (
    convolution("Conv1d", lambda: nn.Conv1d(4, 8, 3), 3, 4, 10),
    convolution("Conv2d", lambda: nn.Conv2d(4, 8, 3, padding=1), 3, 4, 6, 6),
    convolution("Conv3d", lambda: nn.Conv3d(4, 8, 3, padding=1), 3, 4, 4, 4, 4),
    convolution("Conv2d 1x1", lambda: nn.Conv2d(8, 8, 1), 3, 8, 4, 4),
    convolution("Conv1d 1x1", lambda: nn.Conv1d(8, 8, 1, bias=False), 3, 8, 5),
    convolution("Conv2d, strided", lambda: nn.Conv2d(4, 8, 3, stride=2), 3, 4, 9, 9),
    convolution("Conv2d, grouped", lambda: nn.Conv2d(8, 8, 3, groups=2), 3, 8, 6, 6),
    convolution("Conv2d, depthwise", lambda: nn.Conv2d(8, 8, 3, groups=8, padding=1), 3, 8, 6, 6),
    convolution("Conv1d, depthwise", lambda: nn.Conv1d(8, 8, 3, groups=8, padding=1), 3, 8, 6),
    convolution("Conv2d, dilated", lambda: nn.Conv2d(4, 8, 3, dilation=2, padding=2), 3, 4, 8, 8),
    convolution("Conv2d, same", lambda: nn.Conv2d(4, 8, 3, padding="same"), 3, 4, 6, 6),
    convolution("Conv1d, same, even kernel", lambda: nn.Conv1d(4, 8, 4, padding="same"), 3, 4, 10),
    convolution("Conv2d, valid", lambda: nn.Conv2d(4, 8, 3, padding="valid"), 3, 4, 6, 6),
    convolution("Conv2d, reflected", lambda: nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), 3, 4, 6, 6),
    convolution("Conv2d, circular", lambda: nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular"), 3, 4, 6, 6),
    convolution("Conv2d, oblong", lambda: nn.Conv2d(4, 8, (1, 5), stride=(1, 2), padding=(0, 2)), 3, 4, 6, 8),
    convolution("Conv2d without batch", lambda: nn.Conv2d(4, 8, 3), 4, 6, 6, dynamic=False),
    convolution("ConvTranspose1d", lambda: nn.ConvTranspose1d(4, 8, 3, stride=2), 3, 4, 6),
    convolution("ConvTranspose2d", lambda: nn.ConvTranspose2d(4, 8, 3, 2, 1, output_padding=1), 3, 4, 5, 5),
    convolution("ConvTranspose2d, grouped", lambda: nn.ConvTranspose2d(8, 8, 3, groups=2), 3, 8, 5, 5),
    convolution("ConvTranspose3d", lambda: nn.ConvTranspose3d(4, 8, 3), 3, 4, 3, 3, 3),
)

ATTENTION = (
    Situation("MultiheadAttention", "mha", lambda: Attend(batch_first=True), normal(3, 5, 16), gemms=2),
    Situation("MultiheadAttention, steps first", "mha", Attend, normal(5, 3, 16), gemms=2, dynamic=False),
    Situation("MultiheadAttention with weights", "mha", lambda: Attend(True, batch_first=True), normal(3, 5, 16),
              gemms=2),
    Situation("MultiheadAttention across", "mha", lambda: Attend(batch_first=True),
              normals((3, 5, 16), (3, 7, 16)), gemms=2),
    Situation("MultiheadAttention, kdim and vdim", "mha", lambda: Attend(batch_first=True, kdim=8, vdim=12),
              normals((3, 5, 16), (3, 7, 8), (3, 7, 12)), gemms=4),
    Situation("MultiheadAttention, bias_kv", "mha", lambda: Attend(batch_first=True, add_bias_kv=True, bias=False),
              normal(3, 5, 16), gemms=2),
    Situation("TransformerEncoderLayer", "fastpath", encoder_layer, normal(3, 5, 16), gemms=4),
    Situation("TransformerEncoderLayer, norm first", "fastpath",
              lambda: encoder_layer(norm_first=True, activation="gelu"), normal(3, 5, 16), gemms=4),
    Situation("TransformerEncoder", "fastpath", encoder, normal(3, 5, 16), gemms=8),
    Situation("TransformerDecoder", "fastpath", decoder, normals((3, 5, 16), (3, 7, 16)), gemms=12),
    Situation("Transformer", "fastpath", lambda: transformer(batch_first=True), normals((3, 5, 16), (3, 7, 16)),
              gemms=10),
    Situation("Transformer, steps first", "fastpath", transformer, normals((5, 3, 16), (5, 3, 16)), gemms=10,
              dynamic=False),
)  # fmt: skip

OTHERS = (
    Situation("Bilinear", "not-linear-type", lambda: nn.Bilinear(8, 6, 4), normals((3, 8), (3, 6))),
    Situation("Embedding", "embedding-qconfig", embedding, ids(3, 5)),
    *(bag(mode) for mode in ("sum", "mean", "max")),
    Situation("EmbeddingBag with weights", "embedding-qconfig", lambda: Bag("sum"), weighed_ids),
    Situation("AdaptiveLogSoftmaxWithLoss", "functional", LogProbabilities, normal(3, 16), gemms=5),
)

MODULES = (*RECURRENT, *CONVOLUTIONS, *ATTENTION, *OTHERS)
