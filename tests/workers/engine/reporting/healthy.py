"""Twenty healthy models: well-initialised, on inputs of the kind they are made for. None deserves a warning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.workers.engine.models import Attention, Mixed
from tests.workers.engine.situations import architectures
from tests.workers.engine.situations.modules import Bag, First
from tests.workers.engine.situations.structure import residual
from tests.workers.engine.trained import Residual, Rows

Inputs = dict[str, Tensor]
Healthy = Callable[[], tuple[nn.Module, Inputs]]
SAMPLES = 8


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class UNet(nn.Module):
    """One step down and up again, the skip concatenated (Ronneberger et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.head(torch.cat([skip, self.up(self.deep(skip))], 1))


class Mixer(nn.Module):
    """One block of an MLP-Mixer (Tolstikhin et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.channels = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.norms = nn.ModuleList([nn.LayerNorm(16), nn.LayerNorm(16)])
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norms[1](x))
        return self.head(x.mean(1))


class Conformer(nn.Module):
    """Half a block: feed forward, then a depthwise convolution with a gate (Gulati et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.feed = nn.LayerNorm(16), nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16))
        self.gate = nn.Conv1d(16, 32, 1)
        self.depth = nn.Conv1d(16, 16, 5, padding=2, groups=16)
        self.batch_norm, self.point = nn.BatchNorm1d(16), nn.Conv1d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.feed(self.norm(x))
        y = nn.functional.glu(self.gate(x.transpose(1, 2)), 1)
        return x + self.point(nn.functional.silu(self.batch_norm(self.depth(y)))).transpose(1, 2)


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(64, 16), nn.Embedding(64, 16)
        self.left = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        self.right = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.left(self.users(user)) * self.right(self.items(item))).sum(-1, keepdim=True)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def mobile() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


def generator() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 128), nn.Unflatten(1, (8, 4, 4)), nn.ReLU(), nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.BatchNorm2d(8),
        nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


def waveform() -> nn.Module:
    return nn.Sequential(nn.Conv1d(1, 8, 5), nn.ReLU(), nn.Conv1d(8, 16, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
                         nn.Flatten(), nn.Linear(16, 4))  # fmt: skip


def normal(build: Callable[[], nn.Module], *shape: int, name: str = "x") -> Healthy:
    return lambda: (build(), {name: torch.randn(SAMPLES, *shape)})


def tokens(build: Callable[[], nn.Module], *names: str, below: int = 16, length: int = 5) -> Healthy:
    return lambda: (build(), {name: torch.randint(0, below, (SAMPLES, length)) for name in names})


def one_id(build: Callable[[], nn.Module], *names: str) -> Healthy:
    return lambda: (build(), {name: torch.randint(0, 64, (SAMPLES,)) for name in names})


def heard() -> tuple[nn.Module, Inputs]:
    inputs = {"input_features": torch.randn(SAMPLES, 8, 16), "decoder_input_ids": torch.randint(0, 32, (SAMPLES, 4))}
    return architectures.whisper(), inputs


def two_towers() -> tuple[nn.Module, Inputs]:
    return architectures.t5(), {name: torch.randint(0, 32, (SAMPLES, 6)) for name in ("input_ids", "decoder_input_ids")}


MODELS: dict[str, Healthy] = {
    "perceptron": normal(perceptron, 16, name="input"),
    "residual network": normal(Residual, 8, 8),
    "convolutions": normal(residual, 3, 8, 8, name="input"),
    "mobile network": normal(mobile, 3, 8, 8, name="input"),
    "transformer encoder": normal(Attention, 4, 8),
    "BERT": tokens(lambda: architectures.bert(return_dict=False), "input_ids", below=32),
    "GPT-2": tokens(architectures.gpt2, "input_ids", below=32),
    "T5": two_towers,
    "Llama": tokens(architectures.llama, "input_ids", below=32),
    "ViT": normal(architectures.vit, 3, 8, 8, name="pixel_values"),
    "Whisper": heard,
    "LSTM": normal(Rows, 8, 8),
    "GRU": normal(lambda: First(nn.GRU(8, 16, batch_first=True)), 5, 8),
    "autoencoder": normal(Autoencoder, 32),
    "U-Net": normal(UNet, 1, 8, 8),
    "bag of words": tokens(lambda: Bag("mean"), "ids"),
    "generator": normal(generator, 16, name="input"),
    "mixer": normal(Mixer, 8, 16),
    "conformer": normal(Conformer, 12, 16),
    "two towers": one_id(TwoTowers, "user", "item"),
    "waveform": normal(waveform, 1, 64, name="input"),
    "mixed": tokens(Mixed, "ids"),
}


def arrays(inputs: Inputs) -> dict[str, Any]:
    return {name: value.numpy() for name, value in inputs.items()}
