"""Five models trained on real data that ships with scikit-learn and Python: nothing is downloaded, seeds are fixed.

Four read handwritten digits: a perceptron, a residual network with batch norm, an LSTM over the rows of the image, and
a transformer encoder. The fifth reads English: it says which library a sentence of documentation comes from.
"""

from __future__ import annotations

import importlib
import inspect
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from local.digits import Mlp, Transformer, fit, load_digits

SEED = 0

LIBRARIES = {
    "numpy": ("numpy", "numpy.linalg", "numpy.random"),
    "torch": ("torch", "torch.nn", "torch.nn.functional"),
    "scipy": ("scipy.optimize", "scipy.special"),
    "sklearn": ("sklearn.linear_model", "sklearn.ensemble", "sklearn.metrics"),
}
SENTENCES = 3000  # of each library
WORDS = 24  # read of each sentence
VOCABULARY = 3000  # 0 pads, 1 stands for rare words


@dataclass(frozen=True)
class Split:
    """``x`` with the sample first; ``labels`` int64 (samples,). Train and test share no sample."""

    x_train: Tensor
    labels_train: Tensor
    x_test: Tensor
    labels_test: Tensor


@dataclass(frozen=True)
class Trained:
    """A module in eval mode, and the data it was trained and is judged on."""

    module: nn.Module
    data: Split


class Block(nn.Module):
    """Two convolutions with batch norm around a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Residual(nn.Module):
    """A stem and two residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.block1 = Block(16, 32, stride=2)
        self.block2 = Block(32, 64, stride=2)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x.unsqueeze(1))))
        x = self.block2(self.block1(x))
        return self.classifier(x.mean((2, 3)))


class Rows(nn.Module):
    """Each of the eight rows is a step of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 64, num_layers=2, batch_first=True)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.lstm(x)[0][:, -1])


class Reader(nn.Module):
    """The mean of the words' vectors, and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(VOCABULARY, 64, mode="mean", padding_idx=0)
        self.hidden = nn.Linear(64, 128)
        self.classifier = nn.Linear(128, len(LIBRARIES))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.hidden(self.words(x))))


def digits() -> Split:
    """``x`` float32 (samples, 8, 8): 1285 images to train on, 512 to be judged on."""
    loaded = load_digits()
    return Split(loaded.x_train, loaded.labels_train, loaded.x_test, loaded.labels_test)


def documentation() -> Split:
    """``x`` int64 (samples, 24): sentences of docstrings, the library as label; a quarter is held out."""
    labelled = [
        (sentence, label) for label, modules in enumerate(LIBRARIES.values()) for sentence in sentences(modules)
    ]
    random.Random(SEED).shuffle(labelled)
    held_out = len(labelled) // 4
    known = vocabulary([words for words, _ in labelled[held_out:]])
    x = torch.tensor([numbered(words, known) for words, _ in labelled])
    labels = torch.tensor([label for _, label in labelled])
    return Split(x[held_out:], labels[held_out:], x[:held_out], labels[:held_out])


def sentences(modules: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Distinct sentences of five words or more from the docstrings of everything public in these modules."""
    found: dict[tuple[str, ...], None] = {}
    for module in map(importlib.import_module, modules):
        for name in sorted(name for name in vars(module) if not name.startswith("_")):
            text = inspect.getdoc(getattr(module, name)) or ""
            for sentence in re.split(r"(?<=[.!?])\s+|\n\n", text):
                words = tuple(re.findall(r"[a-z]+", sentence.lower()))[:WORDS]
                found |= {words: None} if len(words) >= 5 else {}
    return random.Random(SEED).sample(list(found), SENTENCES)


def vocabulary(read: list[tuple[str, ...]]) -> dict[str, int]:
    """The most frequent words, numbered from 2."""
    counted = Counter(word for words in read for word in words)
    return {word: number for number, (word, _) in enumerate(counted.most_common(VOCABULARY - 2), start=2)}


def numbered(words: tuple[str, ...], known: dict[str, int]) -> list[int]:
    return [known.get(word, 1) for word in words] + [0] * (WORDS - len(words))


def train(build: Callable[[], nn.Module], data: Split, epochs: int) -> Trained:
    return Trained(fit(build, data.x_train, data.labels_train, epochs), data)


TRAININGS: dict[str, Callable[[], Trained]] = {
    "perceptron": lambda: train(Mlp, digits(), epochs=15),
    "residual": lambda: train(Residual, digits(), epochs=10),
    "lstm": lambda: train(Rows, digits(), epochs=80),
    "transformer": lambda: train(lambda: Transformer(width=64), digits(), epochs=40),
    "reader": lambda: train(Reader, documentation(), epochs=12),
}
