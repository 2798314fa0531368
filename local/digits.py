"""Three small models, trained with fixed seeds on the handwritten digits that come with scikit-learn.

They stand for what people quantize: a multilayer perceptron, a convolutional network, and a transformer encoder that
reads each image as eight tokens, one per row. All reach 95 % on the held-out images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from sklearn.datasets import load_digits as sklearn_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

TEST_IMAGES = 512
SEED = 0


@dataclass(frozen=True)
class Digits:
    """``x``: float32 (samples, 8, 8) in [0, 1]; ``labels``: int64 (samples,)."""

    x_train: Tensor
    labels_train: Tensor
    x_test: Tensor
    labels_test: Tensor


def load_digits() -> Digits:
    """1797 images, 512 of them held out with the same share of each digit. Always the same split."""
    x, labels = sklearn_digits(return_X_y=True)
    x_train, x_test, labels_train, labels_test = train_test_split(
        (x / 16).astype(numpy.float32).reshape(-1, 8, 8),
        labels.astype(numpy.int64),
        test_size=TEST_IMAGES,
        random_state=SEED,
        stratify=labels,
    )
    return Digits(*map(torch.from_numpy, (x_train, labels_train, x_test, labels_test)))


class Mlp(nn.Module):
    """64 - 512 - 256 - 10."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(64, 512)
        self.hidden2 = nn.Linear(512, 256)
        self.classifier = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.hidden1(x.flatten(1)))
        x = torch.relu(self.hidden2(x))
        logits: Tensor = self.classifier(x)
        return logits


class Cnn(nn.Module):
    """Two convolutions, one pooling, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(64 * 4 * 4, 256)
        self.classifier = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x.unsqueeze(1)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = torch.relu(self.hidden(x.flatten(1)))
        logits: Tensor = self.classifier(x)
        return logits


class Transformer(nn.Module):
    """Each of the eight rows is a token; ``nn.TransformerEncoder`` brings ``nn.MultiheadAttention``."""

    def __init__(self, width: int = 128, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(torch.randn(8, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, dim_feedforward=4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.classifier = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.encoder(self.embed(x) + self.position)
        logits: Tensor = self.classifier(tokens.mean(1))
        return logits


Trained = tuple[nn.Module, Tensor]


def train_mlp() -> Trained:
    """The trained perceptron in eval mode, and an example batch."""
    return _train(Mlp, epochs=15)


def train_cnn() -> Trained:
    """The trained convolutional network in eval mode, and an example batch."""
    return _train(Cnn, epochs=8)


def train_transformer() -> Trained:
    """The trained transformer encoder in eval mode, and an example batch."""
    return _train(Transformer, epochs=20)


TRAININGS: dict[str, Callable[[], Trained]] = {"mlp": train_mlp, "cnn": train_cnn, "transformer": train_transformer}


def _train(build: Callable[[], nn.Module], epochs: int) -> Trained:
    digits = load_digits()
    return fit(build, digits.x_train, digits.labels_train, epochs), digits.x_test[:8].clone()


def fit(
    build: Callable[[], nn.Module], x: Tensor, labels: Tensor, epochs: int, batch: int = 64, peak_lr: float = 2e-3
) -> nn.Module:
    """The classifier of ``build``, trained and in eval mode: AdamW under a one-cycle schedule (Smith and
    Topin 2017). Leaves the caller's random state as it was."""
    with torch.random.fork_rng(), _one_thread():
        torch.manual_seed(SEED)
        module = build().train()
        optimizer = torch.optim.AdamW(module.parameters(), lr=peak_lr)
        steps = epochs * -(-len(x) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, total_steps=steps)
        for _ in range(epochs):
            for chosen in torch.split(torch.randperm(len(x)), batch):
                loss = nn.functional.cross_entropy(module(x[chosen]), labels[chosen])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
    return module.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Train with one thread: sums have the same order everywhere, and threads do not wait for each other. On two busy
    cores the transformer took 103 s with two threads, 14 s with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def predict(module: nn.Module, x: Tensor, batch: int = 64) -> Tensor:
    """The predicted class of each sample, int64 (samples,)."""
    with torch.no_grad():
        return torch.cat([module(part).argmax(1) for part in torch.split(x, batch)])


def accuracy(module: nn.Module, digits: Digits | None = None) -> float:
    """Share of the held-out images that are classified correctly."""
    digits = digits or load_digits()
    return float((predict(module, digits.x_test) == digits.labels_test).double().mean())


def export_pt2(module: nn.Module, example: Tensor, path: Path) -> Path:
    """Save ``module`` as a ``.pt2`` whose batch dimension is dynamic."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(module, (example,), dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, path)
    return path


def save_test_npz(path: Path, digits: Digits | None = None) -> Path:
    """Save the held-out images as ``x``, the name of the forward argument, and ``labels``."""
    digits = digits or load_digits()
    numpy.savez(path, x=digits.x_test.numpy(), labels=digits.labels_test.numpy())
    return path
