"""Data for the model: a dataset read batch by batch, or inputs made from the signature if there is none."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fewbit.contract.resources import InputSignature
from fewbit.runtime.torch_internals import pytree
from workers.engine.task import Task
from workers.errors import EngineError, first_line

Array = np.ndarray[Any, Any]

EXAMPLES = "examples.npz"  # in the folder: what the upload was exported with
DEFAULT_BATCH_SIZE = 32
SYNTHETIC_SAMPLES = 64
UNREPORTED_SAMPLES = 8  # if no part of the report is asked for
SYNTHETIC_DYNAMIC_SIZE = 16  # for a dynamic dimension that is not the batch
SYNTHETIC_INTEGERS = 2  # exclusive upper bound: 0 and 1 are valid token ids everywhere


@dataclass(frozen=True)
class Batch:
    """``inputs`` in the order of the program's inputs, first axis = sample, but for constant ones. Only the first
    ``count`` samples are real: the last batch may be padded to the size the model needs."""

    inputs: tuple[Tensor, ...]
    start: int
    count: int
    padded: int | None = None

    @property
    def size(self) -> int:
        """How many samples the model sees."""
        return self.count if self.padded is None else self.padded


@dataclass(frozen=True)
class Data:
    """Arrays of equal length, with their ``names``; ``labels`` int64 or float64 [samples, ...] or None; ``kind`` as in
    the report. ``rows``: if the model's inputs have no common first axis, how many rows of each array a batch takes.
    Those ``constant`` have no axis for samples, and go whole into every batch."""

    arrays: tuple[Array, ...]
    dtypes: tuple[torch.dtype, ...]
    labels: Array | None
    samples: int
    batch_size: int
    kind: Literal["real", "synthetic"]
    fixed_batch: bool
    rows: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()

    def batches(self) -> Iterator[Batch]:
        if self.rows:
            yield from self._uneven_batches()
            return
        for start in range(0, self.samples, self.batch_size):
            count = min(self.batch_size, self.samples - start)
            rows = np.arange(start, start + (self.batch_size if self.fixed_batch else count))
            rows = np.minimum(rows, self.samples - 1)
            inputs = (self._taken(index, array, rows) for index, array in enumerate(self.arrays))
            yield Batch(tuple(map(Tensor.to, inputs, self.dtypes)), start, count, len(rows))

    def part(self, start: int, stop: int) -> Data:
        """The samples ``start`` to ``stop``; ``start`` is the first one of a batch where ``rows`` are given."""
        skipped = self.rows or (self.batch_size,) * len(self.arrays)
        first = [start // self.batch_size * rows if self.rows else start for rows in skipped]
        arrays = tuple(
            array if self._is_whole(index) else array[begin:]
            for index, (array, begin) in enumerate(zip(self.arrays, first, strict=True))
        )
        return replace(self, arrays=arrays, samples=max(0, min(stop, self.samples) - start))

    def _is_whole(self, index: int) -> bool:
        return bool(self.constant) and self.names[index] in self.constant

    def _taken(self, index: int, array: Array, rows: Array) -> Tensor:
        """A copy: a program may write to its inputs."""
        return torch.from_numpy(np.array(array)) if self._is_whole(index) else torch.from_numpy(array[rows])

    def _uneven_batches(self) -> Iterator[Batch]:
        for index in range(self.samples // self.batch_size):
            columns = zip(self.arrays, self.rows, self.dtypes, strict=True)
            inputs = (torch.from_numpy(array[index * rows :][:rows].copy()).to(dtype) for array, rows, dtype in columns)
            yield Batch(tuple(inputs), index * self.batch_size, self.batch_size, self.batch_size)


def read_evaluation(task: Task, folder: Path, inputs: tuple[InputSignature, ...]) -> Data:
    """The task's evaluation data; if it names none, its calibration data without labels; else synthetic data. If the
    report is off, only as many of the latter two as it takes to check an artifact."""
    evaluation, calibration, off = task.spec.evaluation, task.spec.calibration, task.spec.report.is_off
    if evaluation is not None and task.evaluation is not None:
        path = folder / task.evaluation
        return read_data(path, inputs, evaluation.batch_size, evaluation.samples, evaluation.constant)
    if calibration is None or task.calibration is None:
        samples = UNREPORTED_SAMPLES if off else SYNTHETIC_SAMPLES
        return synthesize_data(inputs, samples, task.spec.seed, read_examples(folder))
    limit = UNREPORTED_SAMPLES if off else calibration.samples
    data = read_data(folder / task.calibration, inputs, calibration.batch_size, limit)
    return replace(data, labels=None)


def read_calibration(task: Task, folder: Path, inputs: tuple[InputSignature, ...]) -> Data:
    """The task's calibration data; if it names none, its evaluation data."""
    calibration = task.spec.calibration
    if calibration is None or task.calibration is None:
        return read_evaluation(task, folder, inputs)
    constant = task.spec.evaluation.constant if task.spec.evaluation else ()
    return read_data(folder / task.calibration, inputs, calibration.batch_size, calibration.samples, constant)


def read_data(
    path: Path,
    inputs: tuple[InputSignature, ...],
    batch_size: int,
    limit: int | None,
    declared: Collection[str] = (),
) -> Data:
    """At most ``limit`` samples of the dataset at ``path``. ``declared``: the inputs said to be constant."""
    named = _read_arrays(path)
    labels = named.pop("labels", None)
    names = tuple(signature.name for signature in inputs)
    arrays = tuple(_array_for(signature, named, inputs) for signature in inputs)
    lengths = {name: len(array) if array.ndim else 0 for name, array in zip(names, arrays, strict=True)}
    constant = constant_inputs(inputs, lengths, declared)
    size, fixed = choose_batch_size(_others(inputs, constant), batch_size)
    rows = () if constant else _fixed_rows(inputs)
    if rows:
        samples = size * min((len(array) // count for array, count in zip(arrays, rows, strict=True)), default=0)
    else:
        samples = min((lengths[name] for name in names if name not in constant), default=int(bool(names)))
        samples = min(samples, limit) if limit else samples
    if not samples:
        raise EngineError("calibration-failed", "the dataset holds no samples")
    return Data(arrays, _dtypes(inputs), _labels(labels, samples), samples, size, "real", fixed, rows, names, constant)


def constant_inputs(
    inputs: tuple[InputSignature, ...], lengths: Mapping[str, int], declared: Collection[str] = ()
) -> tuple[str, ...]:
    """The inputs without an axis for samples: those ``declared``, single numbers, and those of one fixed length, which
    their array has, beside others whose first axis is free."""
    free = any(isinstance(_first_size(signature), str) for signature in inputs if signature.name not in declared)

    def is_constant(signature: InputSignature) -> bool:
        first = _first_size(signature)
        fixed = free and isinstance(first, int) and lengths.get(signature.name) == first
        return first is None or signature.name in declared or fixed

    return tuple(signature.name for signature in inputs if is_constant(signature))


def _others(inputs: tuple[InputSignature, ...], constant: Collection[str]) -> tuple[InputSignature, ...]:
    return tuple(signature for signature in inputs if signature.name not in constant)


def _first_size(signature: InputSignature) -> int | str | None:
    """A number, the name of a free size, or None for a single number."""
    return signature.shape[0] if signature.shape else None


def _fixed_rows(inputs: tuple[InputSignature, ...]) -> tuple[int, ...]:
    """The length of each input if all are fixed and differ; else none."""
    rows = tuple(first for first in map(_first_size, inputs) if isinstance(first, int))
    return rows if len(rows) == len(inputs) and len(set(rows)) > 1 else ()


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
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise ValueError(f"{name} is not an array of numbers")


def _read_npz(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_safetensors(path: Path) -> dict[str, Array]:
    from safetensors.numpy import load_file

    return dict(load_file(path))


def write_examples(example_inputs: Any, inputs: tuple[InputSignature, ...], folder: Path) -> None:
    """Keep the example that the upload was exported with, if it has one that fits."""
    leaves = [leaf for leaf in pytree.tree_leaves(example_inputs or ()) if isinstance(leaf, Tensor)]
    if len(leaves) != len(inputs):
        return
    tensors = {signature.name: leaf.detach() for signature, leaf in zip(inputs, leaves, strict=True)}
    arrays: dict[str, Any] = {
        name: (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy() for name, tensor in tensors.items()
    }
    np.savez(folder / EXAMPLES, **arrays)


def read_examples(folder: Path) -> dict[str, Array]:
    return _read_npz(folder / EXAMPLES) if (folder / EXAMPLES).exists() else {}


def synthesize_data(
    inputs: tuple[InputSignature, ...], samples: int, seed: int, examples: Mapping[str, Array] | None = None
) -> Data:
    """Random inputs of the model's shapes, about ``samples`` of them, in whole batches. Ids, offsets, single numbers
    and whatever else is not a batch of floats repeat the upload's own example, if it has one."""
    fixed_sizes = {signature.name: first for signature in inputs if isinstance(first := _first_size(signature), int)}
    constant = constant_inputs(inputs, fixed_sizes)
    size, fixed = choose_batch_size(_others(inputs, constant), min(DEFAULT_BATCH_SIZE, samples))
    batches = max(1, samples // size)
    generator = np.random.default_rng(seed)
    rows = tuple(fixed_sizes.get(signature.name, size) for signature in inputs)
    arrays = tuple(
        _synthesize(signature, count, 1 if signature.name in constant else batches, generator, examples or {})
        for signature, count in zip(inputs, rows, strict=True)
    )
    uneven = rows if len(set(rows)) > 1 and not constant else ()
    names = tuple(signature.name for signature in inputs)
    return Data(arrays, _dtypes(inputs), None, size * batches, size, "synthetic", fixed, uneven, names, constant)


def _synthesize(
    signature: InputSignature, rows: int, batches: int, generator: np.random.Generator, examples: Mapping[str, Array]
) -> Array:
    """``batches`` times ``rows`` of one input."""
    random = _random_array(signature, rows * batches, generator)
    example = examples.get(signature.name)
    whole = not signature.shape or rows == signature.shape[0]
    if example is None or (signature.dtype.startswith(("float", "bfloat")) and signature.shape and not whole):
        return random
    if not signature.shape or not len(example):
        return example
    if whole:
        return np.concatenate([example] * batches) if len(example) == rows else random
    return np.concatenate([example] * -(-len(random) // len(example)))[: len(random)]


def _random_array(signature: InputSignature, samples: int, generator: np.random.Generator) -> Array:
    sizes = [samples, *(_size(signature, dimension) for dimension in signature.shape[1:])]
    shape = sizes if signature.shape else []
    if signature.dtype.startswith(("float", "bfloat")):
        dtype = "float32" if signature.dtype == "bfloat16" else signature.dtype
        return np.asarray(generator.standard_normal(shape)).astype(dtype)
    if signature.dtype == "bool":
        return np.ones(shape, dtype=bool)
    return np.asarray(generator.integers(0, SYNTHETIC_INTEGERS, shape)).astype(signature.dtype)


def _size(signature: InputSignature, dimension: int | str) -> int:
    if isinstance(dimension, int):
        return dimension
    low, high = signature.dynamic[dimension]
    return max(low, min(SYNTHETIC_DYNAMIC_SIZE, high or SYNTHETIC_DYNAMIC_SIZE))
