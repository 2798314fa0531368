"""``.safetensors``: eight bytes of length, a JSON header, and the data (https://huggingface.co/docs/safetensors)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Literal

import numpy as np

from fewbit.untrusted.safetensors_header import (
    PREFIX_BYTES,
    Tensor,
    first_misplaced,
    header_length,
    parse_header,
    parse_tensor,
)
from service.datasets.declared import MAX_ARRAYS, Declared, Unreadable, at, check_names

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
        try:
            self._header_size = header_length(file.read(PREFIX_BYTES), self._size, MAX_HEADER)
        except ValueError as error:
            detail = "The file is neither an .npz archive nor a .safetensors file."
            raise Unreadable([at("", "unknown-format", detail)]) from error

    def declared(self) -> list[Declared]:
        """Raises ``Unreadable`` for a header that is not one."""
        try:
            header = parse_header(self._file.read(self._header_size))
        except (ValueError, RecursionError) as error:
            detail = f"The .safetensors header is not JSON: {str(error)[:300]}."
            raise Unreadable([at("", "unreadable", detail)]) from error
        if len(header) > MAX_ARRAYS:
            detail = f"The .safetensors header names more than {MAX_ARRAYS} arrays."
            raise Unreadable([at("", "unreadable", detail)])
        _check_metadata(header.pop("__metadata__", {}))
        check_names(header)
        tensors = [_tensor(name, entry) for name, entry in header.items()]
        arrays = [tensor if isinstance(tensor, Declared) else self._declared(tensor) for tensor in tensors]
        if not any(array.fault for array in arrays):
            self._check_layout([tensor for tensor in tensors if isinstance(tensor, Tensor)])
        return arrays

    @contextmanager
    def open(self, array: Declared) -> Iterator[IO[bytes]]:
        self._file.seek(array.offset)
        yield self._file

    def _declared(self, tensor: Tensor) -> Declared:
        name = tensor.name
        if tensor.dtype not in DTYPES:
            detail = f"{name} is {tensor.dtype[:80]!r}. Taken are {', '.join(sorted(DTYPES))}."
            return Declared(name, None, tensor.shape, fault=at(name, "unsupported-dtype", detail))
        offset = PREFIX_BYTES + self._header_size + tensor.start
        array = Declared(name, np.dtype(DTYPES[tensor.dtype]).newbyteorder("<"), tensor.shape, offset)
        if not tensor.is_as_long_as_its_shape or offset + array.nbytes > self._size:
            fault = at(name, "truncated", f"{name} declares {array.nbytes} bytes; the file does not hold them.")
            return Declared(name, array.dtype, tensor.shape, fault=fault)
        return array

    def _check_layout(self, tensors: list[Tensor]) -> None:
        """Raises ``Unreadable``."""
        if misplaced := first_misplaced(tensors):
            tensor, free = misplaced
            what = "shares bytes with another array" if tensor.start < free else "has a gap before it"
            raise Unreadable([at(tensor.name, "unreadable", f"{tensor.name} {what}.")])
        end = PREFIX_BYTES + self._header_size + max((tensor.end for tensor in tensors), default=0)
        if end != self._size:
            raise Unreadable([at("", "unreadable", f"The file has {self._size - end} bytes that belong to no array.")])


def _tensor(name: str, entry: Any) -> Tensor | Declared:
    """A ``Declared`` with its fault for an entry that is none."""
    fault = Declared(
        name, None, (), fault=at(name, "unreadable", f"{name} has a header entry that is not one of safetensors.")
    )
    try:
        tensor = parse_tensor(name, entry)
    except ValueError:
        return fault
    return fault if tensor.is_negative else tensor


def _check_metadata(metadata: Any) -> None:
    """Raises ``Unreadable``."""
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Unreadable([at("", "unreadable", "__metadata__ of a .safetensors file maps strings to strings.")])
