"""Data for the model: a dataset read batch by batch, or inputs made from the signature when there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fewbit.contract.resources import InputSignature
from workers.engine.task import Task
from workers.errors import EngineError, first_line

Array = np.ndarray[Any, Any]

DEFAULT_BATCH_SIZE = 32
SYNTHETIC_SAMPLES = 64
UNREPORTED_SAMPLES = 8  # where no part of the report is asked for
SYNTHETIC_DYNAMIC_SIZE = 16  # for a dynamic dimension that is not the batch
SYNTHETIC_INTEGERS = 2  # exclusive upper bound: 0 and 1 are valid token ids everywhere


@dataclass(frozen=True)
class Batch:
    """``inputs`` in the order of the program's inputs, first axis = sample. Of the last one, padded to the size the
    model needs, only the first ``count`` samples are real."""

    inputs: tuple[Tensor, ...]
    start: int
    count: int


@dataclass(frozen=True)
class Data:
    """Named arrays of equal length; ``labels`` int64 or float64 [samples, ...] or None; ``kind`` as the report says it.
    ``rows``: where the model's inputs have no common first axis, how many rows of each array one batch takes. ``names``
    of the arrays."""

    arrays: tuple[Array, ...]
    dtypes: tuple[torch.dtype, ...]
    labels: Array | None
    samples: int
    batch_size: int
    kind: Literal["real", "synthetic"]
    fixed_batch: bool
    rows: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def batches(self) -> Iterator[Batch]:
        if self.rows:
            yield from self._uneven()
            return
        for start in range(0, self.samples, self.batch_size):
            count = min(self.batch_size, self.samples - start)
            rows = np.arange(start, start + (self.batch_size if self.fixed_batch else count))
            rows = np.minimum(rows, self.samples - 1)
            inputs = (torch.from_numpy(array[rows]) for array in self.arrays)
            yield Batch(tuple(map(Tensor.to, inputs, self.dtypes)), start, count)

    def _uneven(self) -> Iterator[Batch]:
        for index in range(self.samples // self.batch_size):
            parts = zip(self.arrays, self.rows, self.dtypes, strict=True)
            inputs = (torch.from_numpy(array[index * rows :][:rows]).to(dtype) for array, rows, dtype in parts)
            yield Batch(tuple(inputs), index * self.batch_size, self.batch_size)


def read_evaluation(task: Task, folder: Path, inputs: tuple[InputSignature, ...]) -> Data:
    """The task's evaluation data; its calibration data, without labels, where it names none for evaluation; synthetic
    when it names none at all. Where the report is off, no more of either than shows that an artifact is right."""
    wanted, off = task.spec.evaluation, task.spec.report.is_off
    if wanted is not None and task.evaluation is not None:
        return read_data(folder / task.evaluation, inputs, wanted.batch_size, wanted.samples)
    if task.spec.calibration is None or task.calibration is None:
        return synthetic(inputs, UNREPORTED_SAMPLES if off else SYNTHETIC_SAMPLES, task.spec.seed)
    limit = UNREPORTED_SAMPLES if off else task.spec.calibration.samples
    seen = read_data(folder / task.calibration, inputs, task.spec.calibration.batch_size, limit)
    return replace(seen, labels=None)


def read_calibration(task: Task, folder: Path, inputs: tuple[InputSignature, ...]) -> Data:
    """The task's calibration data; its evaluation data where it names none for calibration."""
    wanted = task.spec.calibration
    if wanted is None or task.calibration is None:
        return read_evaluation(task, folder, inputs)
    return read_data(folder / task.calibration, inputs, wanted.batch_size, wanted.samples)


def read_data(path: Path, inputs: tuple[InputSignature, ...], batch_size: int, limit: int | None) -> Data:
    """The dataset at ``path``, at most ``limit`` samples of it."""
    size, fixed = batch_of(inputs, batch_size)
    named = _read_arrays(path)
    labels = named.pop("labels", None)
    arrays = tuple(_array_for(each, named, inputs) for each in inputs)
    samples = min(len(array) for array in arrays) if arrays else 0
    samples = min(samples, limit) if limit else samples
    if not samples:
        raise EngineError("calibration-failed", "the dataset holds no samples")
    names = tuple(each.name for each in inputs)
    return Data(arrays, _dtypes(inputs), _labels(labels, samples), samples, size, "real", fixed, names=names)


def batch_of(inputs: tuple[InputSignature, ...], wanted: int) -> tuple[int, bool]:
    """(batch size, whether every batch must have exactly that size), as the model's first dimensions allow."""
    fixed = [each.shape[0] for each in inputs if each.shape and isinstance(each.shape[0], int)]
    if 0 in fixed:
        raise EngineError("invalid-model", "an input of the model has no rows; export it with a batch of one or more")
    if fixed:
        return int(fixed[0]), True
    bounds = [each.dynamic[str(each.shape[0])] for each in inputs if each.shape]
    low = max((lower for lower, _ in bounds), default=1)
    high = min((upper for _, upper in bounds if upper is not None), default=wanted)
    size = max(min(wanted, high), low, 1)
    return size, low > 1  # a least batch above one: pad the last


def _array_for(signature: InputSignature, named: dict[str, Array], inputs: tuple[InputSignature, ...]) -> Array:
    if signature.name in named:
        return named[signature.name]
    if len(inputs) == 1 and len(named) == 1:
        return next(iter(named.values()))
    raise EngineError(
        "calibration-failed", f"the dataset has no array named {signature.name!r}; it has {sorted(named)}"
    )


def _labels(labels: Array | None, samples: int) -> Array | None:
    if labels is None or not labels.ndim or labels.dtype.kind not in "iubf":
        return None
    return labels[:samples].astype(np.float64 if labels.dtype.kind == "f" else np.int64)


def _dtypes(inputs: tuple[InputSignature, ...]) -> tuple[torch.dtype, ...]:
    """What the model takes. NumPy knows no bfloat16: those inputs are kept as float32 and rounded here."""
    return tuple(getattr(torch, each.dtype) for each in inputs)


def is_npz(path: Path) -> bool:
    """By its first bytes, as the gateway told it: an archive's end may stand at the end of any file."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _read_arrays(path: Path) -> dict[str, Array]:
    """The gateway has looked through it: what cannot be read now is not what it looked at."""
    try:
        arrays = _read_npz(path) if is_npz(path) else _read_safetensors(path)
        for name, value in arrays.items():
            _check_numbers(name, value)
        return arrays
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib, NumPy and safetensors raise many kinds
        raise EngineError("calibration-failed", f"the dataset cannot be read: {first_line(error)}") from error


def _check_numbers(name: str, value: object) -> None:
    """NumPy returns bytes for an entry that is no ``.npy`` file. Raises ``ValueError``."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf" or not value.ndim:
        raise ValueError(f"{name} is no array of numbers")


def _read_npz(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_safetensors(path: Path) -> dict[str, Array]:
    from safetensors.numpy import load_file

    return dict(load_file(path))


def synthetic(inputs: tuple[InputSignature, ...], samples: int, seed: int) -> Data:
    """Random inputs of the model's shapes, some ``samples`` as its batch size allows."""
    size, fixed = batch_of(inputs, min(DEFAULT_BATCH_SIZE, samples))
    batches = max(1, samples // size)
    generator = np.random.default_rng(seed)
    rows = tuple(each.shape[0] if each.shape and isinstance(each.shape[0], int) else size for each in inputs)
    arrays = tuple(_random(each, count * batches, generator) for each, count in zip(inputs, rows, strict=True))
    uneven = rows if len(set(rows)) > 1 else ()
    return Data(arrays, _dtypes(inputs), None, size * batches, size, "synthetic", fixed, uneven,
                tuple(each.name for each in inputs))  # fmt: skip


def _random(signature: InputSignature, samples: int, generator: np.random.Generator) -> Array:
    shape = [samples, *(_size(signature, each) for each in signature.shape[1:])]
    if signature.dtype.startswith(("float", "bfloat")):
        dtype = "float32" if signature.dtype == "bfloat16" else signature.dtype
        return generator.standard_normal(shape).astype(dtype)
    if signature.dtype == "bool":
        return np.ones(shape, dtype=bool)
    return generator.integers(0, SYNTHETIC_INTEGERS, shape).astype(signature.dtype)


def _size(signature: InputSignature, dimension: int | str) -> int:
    if isinstance(dimension, int):
        return dimension
    low, high = signature.dynamic[dimension]
    return max(low, min(SYNTHETIC_DYNAMIC_SIZE, high or SYNTHETIC_DYNAMIC_SIZE))
