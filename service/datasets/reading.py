"""What is in a dataset file: every array's name, dtype and shape, and that its numbers are finite.

Two readers, both safe on any bytes: ``.npz`` through ``zipfile`` and NumPy's header parser (never its unpickler), and
``.safetensors`` through its JSON header. Sizes are checked as declared before anything is unpacked, data is scanned
in pieces, and all errors are collected before the file is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np

from fewbit.contract.problems import FieldError
from fewbit.contract.resources import ArraySignature
from service.datasets import npz, safetensors
from service.datasets.declared import Declared, Unreadable, at

PIECE = 4 * 1024 * 1024
SMALL, MAX_TIMES = 256 * 1024 * 1024, 100  # a larger file unpacks to a hundred times its bytes; numbers do to ten
ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # the second: an archive of nothing
ALLOWED = frozenset(  # what torch takes too
    {"bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"}
)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Contents:
    """A usable dataset."""

    format: Literal["npz", "safetensors"]
    samples: int
    arrays: tuple[ArraySignature, ...]


class Source(Protocol):
    """A file of arrays."""

    @property
    def format(self) -> Literal["npz", "safetensors"]: ...

    def declared(self) -> list[Declared]:
        """Every array's header. Raises ``Unreadable``."""
        ...

    def open(self, array: Declared) -> AbstractContextManager[IO[bytes]]:
        """A stream that starts at the array's first byte. Reading it may raise ``Unreadable``."""
        ...


def read(path: Path, max_unpacked: int) -> Contents:
    """Look through the whole file. Raises ``Unreadable``."""
    with path.open("rb") as file:
        source: Source = npz.Npz(file) if file.read(4) in ZIP else safetensors.Safetensors(file)
        arrays = source.declared()
        faults = [*_faults_of_headers(arrays, min(max_unpacked, max(SMALL, MAX_TIMES * path.stat().st_size)))]
        if not faults:
            faults = [fault for array in arrays for fault in _faults_of_data(source, array)]
    if faults:
        raise Unreadable(faults)
    signatures = (ArraySignature(name=array.name, dtype=str(array.dtype), shape=array.shape) for array in arrays)
    return Contents(source.format, arrays[0].shape[0], tuple(sorted(signatures, key=lambda signature: signature.name)))


def _faults_of_headers(arrays: Sequence[Declared], max_unpacked: int) -> Iterator[FieldError]:
    if not arrays:
        yield at("", "empty", "The file holds no arrays.")
    if sum(array.nbytes for array in arrays) > max_unpacked:
        yield at("", "too-large", f"The arrays unpack to more than {max_unpacked} bytes.")
    for array in arrays:
        if fault := array.fault or _fault_of_header(array):
            yield fault
    yield from _faults_of_lengths([array for array in arrays if array.shape])
    if arrays and all(array.name == "labels" for array in arrays):
        yield at("", "no-inputs", "The file holds labels only. Add the model's inputs as named arrays.")


def _fault_of_header(array: Declared) -> FieldError | None:
    name, dtype = array.name, array.dtype
    if dtype is not None and dtype.hasobject:
        fix = f"Save numbers, not Python objects, for example {name}.astype(numpy.float32)."
        return at(name, "object-array", f"{name} is an object array, and nothing here is ever unpickled. {fix}")
    if dtype is None or dtype.newbyteorder("=").name not in ALLOWED or not dtype.isnative:
        shown = "a dtype NumPy does not know" if dtype is None else dtype.str
        return at(name, "unsupported-dtype", f"{name} is {shown}. Taken are {', '.join(sorted(ALLOWED))}.")
    if not array.shape:
        return at(name, "no-sample-axis", f"{name} is a single number. The first axis must count samples.")
    if 0 in array.shape:
        return at(name, "empty", f"{name} has shape {list(array.shape)}, so it holds nothing.")
    return None


def _faults_of_lengths(arrays: Sequence[Declared]) -> Iterator[FieldError]:
    """The length most arrays have is taken for the right one."""
    lengths = [array.shape[0] for array in arrays]
    usual = max(lengths, key=lengths.count, default=0)
    agreeing = next((array.name for array in arrays if array.shape[0] == usual), "")
    for array in arrays:
        if array.shape[0] != usual:
            message = f"{array.name} has {array.shape[0]} samples, but {agreeing} has {usual}. All must have as many."
            yield at(array.name, "unequal-length", message)


def _faults_of_data(source: Source, array: Declared) -> tuple[FieldError, ...]:
    try:
        with source.open(array) as stream:
            fault = _fault_of_data(stream, array)
    except Unreadable as error:
        return error.errors
    return (fault,) if fault else ()


def _fault_of_data(stream: IO[bytes], array: Declared) -> FieldError | None:
    """Read all of it, whatever the dtype: what a file declares and what it holds may differ."""
    assert array.dtype is not None
    size, held = array.dtype.itemsize, 0
    for piece in _pieces(stream, array.nbytes, size):
        bad = _first_not_finite(np.frombuffer(piece, array.dtype))
        if bad is not None:
            return _not_finite(array, held // size + bad[0], bad[1])
        held += len(piece)
    if held < array.nbytes:
        return at(array.name, "truncated", f"{array.name} declares {array.nbytes} bytes and holds {held}.")
    return None


def _pieces(stream: IO[bytes], total: int, itemsize: int) -> Iterator[bytes]:
    """``total`` bytes in pieces of whole items; less when the stream ends before."""
    while total > 0:
        piece = stream.read(min(total, PIECE))  # PIECE is a multiple of every item size
        piece = piece[: len(piece) - len(piece) % itemsize]
        if not piece:
            return
        total -= len(piece)
        yield piece


def _first_not_finite(values: Array) -> tuple[int, float] | None:
    """Index and value of the first NaN or infinity."""
    if values.dtype.kind != "f":
        return None
    finite = np.isfinite(values)
    if finite.all():
        return None
    index = int(np.argmin(finite))
    return index, float(values[index])


def _not_finite(array: Declared, index: int, value: float) -> FieldError:
    order: Literal["F", "C"] = "F" if array.columns_first else "C"
    place = [int(position) for position in np.unravel_index(index, array.shape, order=order)]
    message = f"{array.name} holds {value} in sample {place[0]}, at {place}. Only finite numbers are taken."
    return at(array.name, "not-finite", message)
