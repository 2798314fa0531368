"""``.safetensors``: eight bytes of length, a JSON header, and the data (https://huggingface.co/docs/safetensors)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import IO, Any, Literal

import numpy as np

from service.datasets.declared import MAX_ARRAYS, Declared, Unreadable, at

MAX_HEADER = 1024 * 1024
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "F32": "float32", "F64": "float64",
}  # fmt: skip


class Safetensors:
    """The header says where each array lies; the data are read where they are."""

    format: Literal["safetensors"] = "safetensors"

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self._header_size = int.from_bytes(file.read(8), "little") if self._size >= 8 else 0
        if not 2 <= self._header_size <= min(MAX_HEADER, self._size - 8):
            detail = "The file is neither an .npz archive nor a .safetensors file."
            raise Unreadable([at("", "unknown-format", detail)])

    def declared(self) -> list[Declared]:
        """Raises ``Unreadable`` for a header that is not one."""
        try:
            header = json.loads(self._file.read(self._header_size), object_pairs_hook=_without_duplicates)
        except (ValueError, RecursionError) as error:
            raise Unreadable([at("", "unreadable", "The .safetensors header is not JSON.")]) from error
        if not isinstance(header, dict) or len(header) > MAX_ARRAYS:
            detail = f"The .safetensors header names no arrays, or more than {MAX_ARRAYS}."
            raise Unreadable([at("", "unreadable", detail)])
        arrays = [self._declared(name, entry) for name, entry in header.items() if name != "__metadata__"]
        return _without_overlaps(arrays)

    @contextmanager
    def open(self, array: Declared) -> Iterator[IO[bytes]]:
        self._file.seek(array.offset)
        yield self._file

    def _declared(self, name: str, entry: Any) -> Declared:
        try:
            dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            sane = all(type(each) is int and each >= 0 for each in (*shape, start, end))
        except (TypeError, KeyError, ValueError):
            sane = False
        if not sane:
            fault = at(name, "unreadable", f"{name} has a header entry that is not one of safetensors.")
            return Declared(name, None, (), fault=fault)
        if dtype not in DTYPES:
            detail = f"{name} is {dtype}. Taken are {', '.join(sorted(DTYPES))}."
            return Declared(name, None, shape, fault=at(name, "unsupported-dtype", detail))
        offset = 8 + self._header_size + start
        array = Declared(name, np.dtype(DTYPES[dtype]).newbyteorder("<"), shape, offset)
        if end - start != array.nbytes or offset + array.nbytes > self._size:
            fault = at(name, "truncated", f"{name} declares {array.nbytes} bytes; the file does not hold them.")
            return Declared(name, array.dtype, shape, fault=fault)
        return array


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name appears twice")
    return dict(pairs)


def _without_overlaps(arrays: list[Declared]) -> list[Declared]:
    """Arrays that share bytes would let a small file stand for a large one. Raises ``Unreadable``."""
    ordered = sorted((each for each in arrays if not each.fault), key=lambda each: (each.offset, each.nbytes))
    for before, after in pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise Unreadable([at(after.name, "unreadable", f"{after.name} and {before.name} share bytes.")])
    return arrays
