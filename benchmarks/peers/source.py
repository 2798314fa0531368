"""What every peer starts from: one float model, its calibration samples, and the inputs it is measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CALIBRATION_BATCH = 8

Inputs = tuple[Tensor, ...]
"""One batch: the forward arguments in order, first axis = sample."""

Array = np.ndarray[Any, Any]

Run = Callable[[Inputs], Array]
"""A batch to the model's only output, as float32."""


@dataclass(frozen=True)
class Source:
    """``module`` is in eval mode. ``timed`` are the batches whose latency is taken, by label; ``dynamic`` gives the
    bounds of each changing dimension of every input. ``transformer``: NNCF wants to be told."""

    name: str
    module: nn.Module
    names: tuple[str, ...]
    calibration: Inputs
    evaluation: Inputs
    timed: Mapping[str, Inputs]
    dynamic: Mapping[int, tuple[str, int, int]]
    transformer: bool

    def calibration_batches(self) -> Iterator[Inputs]:
        yield from _batches(self.calibration)

    def evaluation_batches(self) -> Iterator[Inputs]:
        yield from _batches(self.evaluation)

    def named(self, inputs: Inputs) -> dict[str, Array]:
        return {name: value.numpy() for name, value in zip(self.names, inputs, strict=True)}


def _batches(inputs: Inputs) -> Iterator[Inputs]:
    yield from zip(*(torch.split(value, CALIBRATION_BATCH) for value in inputs), strict=True)


def save_float(source: Source, folder: Path) -> None:
    """The float model in the two forms that peers read: ``float.pt2`` and ``float.onnx``, batch (and length) free."""
    example = tuple(inputs[:2].clone() for inputs in source.calibration)  # a view would take all samples into the file
    bounds = {axis: torch.export.Dim(name, min=low, max=high) for axis, (name, low, high) in source.dynamic.items()}
    free = dict.fromkeys(source.dynamic, torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        exported = torch.export.export(source.module, example, dynamic_shapes=(bounds,) * len(example))
        torch.export.save(exported, folder / "float.pt2")
        torch.onnx.export(
            source.module,
            example,
            folder / "float.onnx",
            dynamic_shapes=(free,) * len(example),
            input_names=list(source.names),
            external_data=False,
            verbose=False,
        )


def save_fixed(source: Source, folder: Path) -> None:
    """The program at the calibration batch's shape, ``fixed.pt2``: NNCF 3.4 raises IndexError on a free length."""
    with torch.no_grad():
        exported = torch.export.export(source.module, next(source.calibration_batches()))
    torch.export.save(exported, folder / "fixed.pt2")


def sqnr_db(source: Source, run: Run) -> float:
    """10 log10(signal power / error power) of the output over the whole evaluation set; inf when they are equal."""
    signal = error = 0.0
    for inputs in source.evaluation_batches():
        with torch.no_grad():
            reference = source.module(*inputs).double().numpy()
        signal += float(np.square(reference).sum())
        error += float(np.square(reference - run(inputs)).sum())
    return 10 * float(np.log10(signal / error)) if error else float("inf")
