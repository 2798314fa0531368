"""The header of a ``.safetensors`` file: eight bytes that say how long it is, and a JSON object. The tensors fill the
rest of the file without a gap (https://huggingface.co/docs/safetensors)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fewbit.untrusted.json_objects import unique_keys

PREFIX_BYTES = 8
MAX_AXES, MAX_SIZE = 64, 2**63 - 1
"""Of a shape: NumPy's and torch's own limits."""
BITS = {  # of safetensors 0.8, without the types of less than a byte
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """What the header says of one tensor. ``start`` and ``end`` count from the end of the header, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def is_negative(self) -> bool:
        return self.end < self.start or min(self.start, self.end, *self.shape) < 0

    @property
    def is_as_long_as_its_shape(self) -> bool:
        """False for a dtype that is not in ``BITS``, too."""
        return 8 * (self.end - self.start) == BITS.get(self.dtype, -1) * math.prod(self.shape)


def header_length(prefix: bytes, file_size: int, limit: int) -> int:
    """In bytes. Raises ``ValueError`` for what is no safetensors file, or has a header of more than ``limit`` bytes."""
    length = int.from_bytes(prefix, "little") if len(prefix) == PREFIX_BYTES else 0
    if not 2 <= length <= min(limit, file_size - PREFIX_BYTES):
        raise ValueError(f"its header would have {length} bytes")
    return length


def parse_header(data: bytes) -> dict[str, Any]:
    """Entries by name, ``__metadata__`` among them. Raises ``ValueError`` and ``RecursionError``."""
    header = json.loads(data.decode(), object_pairs_hook=unique_keys)
    if not isinstance(header, dict) or not data.startswith(b"{"):
        raise ValueError("it is not a JSON object")
    return header


def parse_tensor(name: str, entry: Any) -> Tensor:
    """Raises ``ValueError`` for an entry without the three fields, and for sizes that are no integers of 64 bits. They
    may be negative, and the dtype unknown."""
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("it has no dtype, shape and data_offsets") from error
    sizes = (start, end, *shape)
    if not isinstance(dtype, str) or len(shape) > MAX_AXES or not all(map(_is_size, sizes)):
        raise ValueError("its dtype, shape or data_offsets cannot be")
    return Tensor(name, dtype, shape, start, end)


def _is_size(value: object) -> bool:
    return type(value) is int and abs(value) <= MAX_SIZE


def first_misplaced(tensors: Iterable[Tensor]) -> tuple[Tensor, int] | None:
    """The first tensor that does not begin where the one before it ends, and where that is. Tensors that share bytes
    would let a small file stand for a large one."""
    free = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != free:
            return tensor, free
        free = tensor.end
    return None
