"""Data for the model: a dataset read batch by batch, or inputs made from the signature if there is none."""

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
UNREPORTED_SAMPLES = 8  # if no part of the report is asked for
SYNTHETIC_DYNAMIC_SIZE = 16  # for a dynamic dimension that is not the batch
SYNTHETIC_INTEGERS = 2  # exclusive upper bound: 0 and 1 are valid token ids everywhere


@dataclass(frozen=True)
class Batch:
    """``inputs`` in the order of the program's inputs, first axis = sample. Only the first ``count`` samples are real:
    the last batch may be padded to the size the model needs."""

    inputs: tuple[Tensor, ...]
    start: int
    count: int


@dataclass(frozen=True)
class Data:
    """Arrays of equal length, with their ``names``; ``labels`` int64 or float64 [samples, ...] or None; ``kind`` as in
    the report. ``rows``: if the model's inputs have no common first axis, how many rows of each array a batch takes."""

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
            yield from self._uneven_batches()
            return
        for start in range(0, self.samples, self.batch_size):
            count = min(self.batch_size, self.samples - start)
            rows = np.arange(start, start + (self.batch_size if self.fixed_batch else count))
            rows = np.minimum(rows, self.samples - 1)
            inputs = (torch.from_numpy(array[rows]) for array in self.arrays)
            yield Batch(tuple(map(Tensor.to, inputs, self.dtypes)), start, count)

    def _uneven_batches(self) -> Iterator[Batch]:
        for index in range(self.samples // self.batch_size):
            columns = zip(self.arrays, self.rows, self.dtypes, strict=True)
            inputs = (torch.from_numpy(array[index * rows :][:rows]).to(dtype) for array, rows, dtype in columns)
            yield Batch(tuple(inputs), index * self.batch_size, self.batch_size)


def read_evaluation(task: Task, folder: Path, inputs: tuple[InputSignature, ...]) -> Data:
    """The task's evaluation data; if it names none, its calibration data without labels; else synthetic data. If the
    report is off, only as many of the latter two as it takes to check an artifact."""
    evaluation, calibration, off = task.spec.evaluation, task.spec.calibration, task.spec.report.is_off
    if evaluation is not None and task.evaluation is not None:
        return read_data(folder / task.evaluation, inputs, evaluation.batch_size, evaluation.samples)
    if calibration is None or task.calibration is None:
        return synthesize_data(inputs, UNREPORTED_SAMPLES if off else SYNTHETIC_SAMPLES, task.spec.seed)
    limit = UNREPORTED_SAMPLES if off else calibration.samples
    data = read_data(folder / task.calibration, inputs, calibration.batch_size, limit)
    return replace(data, labels=None)


def read_calibration(task: Task, folder: Path, inputs: tuple[InputSignature, ...]) -> Data:
    """The task's calibration data; if it names none, its evaluation data."""
    calibration = task.spec.calibration
    if calibration is None or task.calibration is None:
        return read_evaluation(task, folder, inputs)
    return read_data(folder / task.calibration, inputs, calibration.batch_size, calibration.samples)


def read_data(path: Path, inputs: tuple[InputSignature, ...], batch_size: int, limit: int | None) -> Data:
    """At most ``limit`` samples of the dataset at ``path``."""
    size, fixed = choose_batch_size(inputs, batch_size)
    named = _read_arrays(path)
    labels = named.pop("labels", None)
    arrays = tuple(_array_for(signature, named, inputs) for signature in inputs)
    samples = min(len(array) for array in arrays) if arrays else 0
    samples = min(samples, limit) if limit else samples
    if not samples:
        raise EngineError("calibration-failed", "the dataset holds no samples")
    names = tuple(signature.name for signature in inputs)
    return Data(arrays, _dtypes(inputs), _labels(labels, samples), samples, size, "real", fixed, names=names)


def choose_batch_size(inputs: tuple[InputSignature, ...], wanted: int) -> tuple[int, bool]:
    """(batch size, whether every batch must have exactly that size), as the model's first dimensions allow."""
    shapes = [signature.shape for signature in inputs]
    fixed = [shape[0] for shape in shapes if shape and isinstance(shape[0], int)]
    if 0 in fixed:
        raise EngineError("invalid-model", "an input of the model has no rows; export it with a batch of one or more")
    if fixed:
        return int(fixed[0]), True
    bounds = [signature.dynamic[str(signature.shape[0])] for signature in inputs if signature.shape]
    low = max((lower for lower, _ in bounds), default=1)
    high = min((upper for _, upper in bounds if upper is not None), default=wanted)
    size = max(min(wanted, high), low, 1)
    return size, low > 1  # if one sample is too few, the last batch is padded


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
    """What the model takes. NumPy has no bfloat16: those inputs are kept as float32 and rounded here."""
    return tuple(getattr(torch, signature.dtype) for signature in inputs)


def is_npz(path: Path) -> bool:
    """By its first bytes, like the gateway: any file may end with the end of a zip archive."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _read_arrays(path: Path) -> dict[str, Array]:
    """The gateway has checked the file: if it cannot be read now, it is not the file that was checked."""
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
    """NumPy returns bytes for an entry that is not a ``.npy`` file. Raises ``ValueError``."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf" or not value.ndim:
        raise ValueError(f"{name} is not an array of numbers")


def _read_npz(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_safetensors(path: Path) -> dict[str, Array]:
    from safetensors.numpy import load_file

    return dict(load_file(path))


def synthesize_data(inputs: tuple[InputSignature, ...], samples: int, seed: int) -> Data:
    """Random inputs of the model's shapes, about ``samples`` of them, in whole batches."""
    size, fixed = choose_batch_size(inputs, min(DEFAULT_BATCH_SIZE, samples))
    batches = max(1, samples // size)
    generator = np.random.default_rng(seed)
    rows = tuple(_first_size(signature, size) for signature in inputs)
    pairs = zip(inputs, rows, strict=True)
    arrays = tuple(_random_array(signature, count * batches, generator) for signature, count in pairs)
    uneven = rows if len(set(rows)) > 1 else ()
    names = tuple(signature.name for signature in inputs)
    return Data(arrays, _dtypes(inputs), None, size * batches, size, "synthetic", fixed, uneven, names)


def _first_size(signature: InputSignature, batch_size: int) -> int:
    first = signature.shape[0] if signature.shape else None
    return first if isinstance(first, int) else batch_size


def _random_array(signature: InputSignature, samples: int, generator: np.random.Generator) -> Array:
    shape = [samples, *(_size(signature, dimension) for dimension in signature.shape[1:])]
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
