"""``.safetensors``: eight bytes of length, a JSON header, and the data (https://huggingface.co/docs/safetensors)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Literal

import numpy as np

from service.datasets.declared import MAX_ARRAYS, Declared, Unreadable, at, check_names, is_shape

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
            text = self._file.read(self._header_size).decode()
            header = json.loads(text, object_pairs_hook=_without_duplicates)
        except (ValueError, RecursionError) as error:
            raise Unreadable([at("", "unreadable", "The .safetensors header is not JSON.")]) from error
        if not isinstance(header, dict) or not text.startswith("{") or len(header) > MAX_ARRAYS:
            detail = f"The .safetensors header names no arrays, or more than {MAX_ARRAYS}."
            raise Unreadable([at("", "unreadable", detail)])
        _check_metadata(header.pop("__metadata__", {}))
        check_names(header)
        return self._in_order([self._declared(name, entry) for name, entry in header.items()])

    @contextmanager
    def open(self, array: Declared) -> Iterator[IO[bytes]]:
        self._file.seek(array.offset)
        yield self._file

    def _declared(self, name: str, entry: Any) -> Declared:
        try:
            dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            sane = isinstance(dtype, str) and is_shape(shape) and is_shape((start, end))
        except (TypeError, KeyError, ValueError):
            sane = False
        if not sane:
            fault = at(name, "unreadable", f"{name} has a header entry that is not one of safetensors.")
            return Declared(name, None, (), fault=fault)
        if dtype not in DTYPES:
            detail = f"{name} is {dtype[:80]!r}. Taken are {', '.join(sorted(DTYPES))}."
            return Declared(name, None, shape, fault=at(name, "unsupported-dtype", detail))
        offset = 8 + self._header_size + start
        array = Declared(name, np.dtype(DTYPES[dtype]).newbyteorder("<"), shape, offset)
        if end - start != array.nbytes or offset + array.nbytes > self._size:
            fault = at(name, "truncated", f"{name} declares {array.nbytes} bytes; the file does not hold them.")
            return Declared(name, array.dtype, shape, fault=fault)
        return array

    def _in_order(self, arrays: list[Declared]) -> list[Declared]:
        """The library reads arrays only that fill the file without a gap, and without sharing bytes, which would let a
        small file stand for a large one. Raises ``Unreadable``."""
        if any(each.fault for each in arrays):
            return arrays
        free = 8 + self._header_size
        for each in sorted(arrays, key=lambda each: (each.offset, each.nbytes)):
            if each.offset != free:
                what = "shares bytes with another array" if each.offset < free else "has a gap before it"
                raise Unreadable([at(each.name, "unreadable", f"{each.name} {what}.")])
            free += each.nbytes
        if free != self._size:
            raise Unreadable([at("", "unreadable", f"The file has {self._size - free} bytes that belong to no array.")])
        return arrays


def _check_metadata(metadata: Any) -> None:
    """Raises ``Unreadable``."""
    if not isinstance(metadata, dict) or not all(isinstance(each, str) for each in metadata.values()):
        raise Unreadable([at("", "unreadable", "__metadata__ of a .safetensors file maps strings to strings.")])


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name appears twice")
    return dict(pairs)
