"""The two models of the contest, with random weights: times do not depend on them, decibels do, and then only rank."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers.source import Inputs, Source

VOCABULARY = 30522
SAMPLES = 128
OUTLIER_SHARE, OUTLIER_GAIN = 0.01, 30.0


def encoder() -> Source:
    """BERT, 6 layers of 384, on random token ids without padding."""
    return _text("encoder", _bert())


def encoder_with_outliers() -> Source:
    """The same with 1 % of the channels of every LayerNorm but the last 30 times larger. The last one's would be the
    output, and their power all of its power."""
    bert = _bert()
    norms = [submodule for submodule in bert.modules() if isinstance(submodule, nn.LayerNorm)]
    for norm in norms[:-1]:
        planted = torch.randperm(len(norm.weight))[: round(OUTLIER_SHARE * len(norm.weight))]
        norm.weight.data[planted] *= OUTLIER_GAIN
    return _text("outliers", bert)


def cnn() -> Source:
    """A residual network of 3 stages, 0.38 million parameters, on smooth random images of 32 x 32."""
    torch.manual_seed(0)
    module = ResidualNetwork()
    with torch.no_grad():
        for seed in range(10):  # so that the batch norms have seen such images
            module.train()(_images(64, 100 + seed))
    return Source(
        name="cnn",
        module=module.eval(),
        names=("x",),
        calibration=(_images(SAMPLES, 0),),
        evaluation=(_images(256, 1),),
        timed={"16": (_images(16, 2),), "1": (_images(1, 2),)},
        dynamic={0: ("batch", 1, 1024)},
        transformer=False,
    )


class LastHiddenState(nn.Module):
    """The one tensor of a Transformers encoder that all peers can return."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


class Block(nn.Module):
    """Two 3 x 3 convolutions, added to their input or to its 1 x 1 projection."""

    def __init__(self, channels: int, wanted: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wanted, 3, stride, 1, bias=False)
        self.norm1, self.relu1 = nn.BatchNorm2d(wanted), nn.ReLU()
        self.conv2 = nn.Conv2d(wanted, wanted, 3, 1, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(wanted), nn.ReLU()
        projection = nn.Sequential(nn.Conv2d(channels, wanted, 1, stride, bias=False), nn.BatchNorm2d(wanted))
        self.shortcut = nn.Identity() if channels == wanted else projection

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu1(self.norm1(self.conv1(x)))
        out: Tensor = self.relu2(self.norm2(self.conv2(inner)) + self.shortcut(x))
        return out


class ResidualNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.body = nn.Sequential(Block(32, 32, 1), Block(32, 64, 2), Block(64, 64, 1), Block(64, 128, 2))
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.stem(x)).mean((2, 3)))
        return out


def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    bert: nn.Module = BertModel(config, add_pooling_layer=False)
    for norm in (submodule for submodule in bert.modules() if isinstance(submodule, nn.LayerNorm)):
        norm.weight.data = torch.exp(0.2 * torch.randn_like(norm.weight))  # mild: half of them within 13 % of 1
    return bert.eval()


def _text(name: str, bert: nn.Module) -> Source:
    return Source(
        name=name,
        module=LastHiddenState(bert).eval(),
        names=("input_ids", "attention_mask"),
        calibration=_tokens(SAMPLES, 64, 0),
        evaluation=_tokens(64, 64, 1),
        timed={"8 x 64": _tokens(8, 64, 2), "1 x 64": _tokens(1, 64, 2), "32 x 128": _tokens(32, 128, 2)},
        dynamic={0: ("batch", 1, 1024), 1: ("tokens", 2, 512)},
        transformer=True,
    )


def _tokens(samples: int, length: int, seed: int) -> Inputs:
    ids = torch.from_numpy(np.random.default_rng(seed).integers(0, VOCABULARY, (samples, length)))
    return ids, torch.ones_like(ids)


def _images(samples: int, seed: int) -> Tensor:
    noise = torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(noise, size=32, mode="bicubic")
