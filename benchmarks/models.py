"""Models and data to measure with. Weights are random: speed does not depend on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """A sentence encoder of MiniLM's shape: 6 layers, 384 wide."""

    def __init__(self, width: int = 384, depth: int = 6, heads: int = 12, vocabulary: int = 8000) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.encoder(self.embed(x)).mean(1)
        return pooled


def mlp_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)).eval()


def export(module: nn.Module, example: Tensor, path: Path) -> Path:
    batch = torch.export.Dim("batch", min=1, max=1024)
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=({0: batch},)), path)
    return path


def mlp(path: Path) -> Path:
    return export(mlp_module(), torch.randn(2, 64), path)


def samples(path: Path) -> Path:
    random = np.random.default_rng(0)
    np.savez(path, x=random.normal(size=(500, 64)).astype(np.float32), labels=random.integers(0, 10, 500))
    return path


def sentences(path: Path) -> Path:
    np.savez(path, x=np.random.default_rng(0).integers(0, 8000, (64, 64)))
    return path
