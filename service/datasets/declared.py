"""What both readers of dataset files return: arrays as their headers declare them, and why a file cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.contract.problems import FieldError
from fewbit.untrusted.safetensors_header import MAX_AXES, MAX_SIZE

MAX_ARRAYS = 1000
MAX_NAME = 256


class Unreadable(Exception):
    """The file cannot be used. ``errors``: every reason that was found."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__("; ".join(error.message for error in errors))
        self.errors = tuple(errors)


@dataclass(frozen=True)
class Declared:
    """One array as its header declares it. ``fault`` is why its data cannot be looked at."""

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    offset: int = 0
    columns_first: bool = False
    fault: FieldError | None = None

    @property
    def nbytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * (self.dtype.itemsize if self.dtype else 0)


def check_names(names: Iterable[str]) -> None:
    """Names are shown, stored and written into logs. Raises ``Unreadable``."""
    for name in names:
        if not name.isprintable() or not 0 < len(name) <= MAX_NAME:
            detail = f"{name[:80]!r} is no name for an array: take 1 to {MAX_NAME} printable characters."
            raise Unreadable([at("", "unreadable", detail)])


def is_shape(shape: Sequence[object]) -> bool:
    """Whether NumPy could hold it. A larger number has no decimal digits to be shown, either."""
    return len(shape) <= MAX_AXES and all(type(size) is int and 0 <= size <= MAX_SIZE for size in shape)


def at(name: str, code: str, message: str) -> FieldError:
    """An error of one array."""
    escaped = name.replace("~", "~0").replace("/", "~1")
    return FieldError(pointer=f"/{escaped}" if name else "", code=code, message=message)
