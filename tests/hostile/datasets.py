"""Datasets that lie: pickles for arrays, headers that claim, archives and safetensors that share bytes."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from typing import Any

import numpy as np

from tests.service.uploads import archive, npy, npz, safetensors_file
from tests.workers.uploads import Hostile

ONES = np.ones(2, np.float32)


def headed(header: str, data: bytes = bytes(4), version: int = 1) -> bytes:
    """An .npz of one array with this header."""
    text = header.encode()
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return archive(("x.npy", b"\x93NUMPY" + bytes([version, 0]) + length + text + data))


def shaped(shape: str, descr: str = "'<f4'", order: str = "False", data: bytes = bytes(4)) -> bytes:
    return headed(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n", data)


def in_directory(offset: int, value: bytes) -> bytes:
    """The second of two arrays has another directory entry."""
    content = bytearray(npz(x=ONES, y=ONES))
    at = content.rindex(b"PK\x01\x02") + offset
    content[at : at + len(value)] = value
    return bytes(content)


def tensors(data: bytes = bytes(4), **entries: Any) -> bytes:
    return safetensors_file(entries, data)


def pickled() -> bytes:
    return pickle.dumps(Hostile(os.system, "touch /tmp/canary"), protocol=2)


X = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
UNREADABLE, TRUNCATED, DTYPE = "unreadable", "truncated", "unsupported-dtype"
HOSTILE: dict[str, tuple[str, bytes]] = {
    "a pickle for an array": (UNREADABLE, archive(("x.npy", pickled()))),
    "objects": ("object-array", archive(("x.npy", npy(np.array([Hostile(os.system, "true")], dtype=object))))),
    "objects in a structure": ("object-array", archive(("x.npy", npy(np.zeros(1, [("a", "O")]))))),
    "objects that claim to be numbers": (TRUNCATED, archive(
        ("x.npy", npy(np.array([None] * 8, dtype=object)).replace(b"'|O'", b"'<i8'")))),
    "a structure six hundred deep": (UNREADABLE, shaped("(1,)", "[('a', " * 600 + "'f4'" + ")]" * 600)),
    "a structure of arrays": (UNREADABLE, shaped("(1,)", "('<f4', (1000, 1000, 1000))")),
    "items of 2 GB": (DTYPE, shaped("(0,)", "'V2000000000'", data=b"")),
    "strings": (DTYPE, shaped("(1,)", "'<U1'")),
    "times": (DTYPE, shaped("(1,)", "'<M8[7D]'", data=bytes(8))),
    "a dtype that is code": (UNREADABLE, shaped("(1,)", "__import__('os').system('true')")),
    "a dtype that is a set": (UNREADABLE, shaped("(1,)", "{1, 2}")),
    "an order that is none": (UNREADABLE, shaped("(1,)", order="'C'")),
    "columns first, and too short": (TRUNCATED, shaped("(4, 4)", order="True")),
    "a negative shape": (UNREADABLE, shaped("(-1,)")),
    "a true shape": (UNREADABLE, shaped("(True,)")),
    "a shape of 2^64": (UNREADABLE, shaped(f"({1 << 64},)")),
    "a shape of nothing and too many digits to print": (UNREADABLE, shaped(f"(0, 0x{'f' * 8000})", data=b"")),
    "samples of too many digits to print": (UNREADABLE, shaped(f"(0x{'f' * 8000}, 0)", data=b"")),
    "two thousand axes": (UNREADABLE, shaped(f"({'1,' * 2000})")),
    "a header of 4 GB": (UNREADABLE, archive(("x.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff"))),
    "a header of a megabyte": (UNREADABLE, headed(" " * (1 << 20), version=2)),
    "a terabyte": (TRUNCATED, shaped(f"({1 << 38},)")),
    "a terabyte by its directory": ("too-large", in_directory(24, b"\xfe\xff\xff\xff")),
    "something of nothing": ("too-large", in_directory(20, b"\x00\x00\x00\x00\x00\x00\x00\x7f")),
    "entries that share bytes": (UNREADABLE, in_directory(42, b"\x00\x00\x00\x00")),
    "an entry beyond the end": (UNREADABLE, in_directory(42, b"\xff\xff\xff\x7f")),
    "encrypted": (UNREADABLE, in_directory(8, b"\x01\x00")),
    "another method": (UNREADABLE, in_directory(10, b"\x63\x00")),
    "a wrong checksum": (UNREADABLE, in_directory(16, b"\x00\x01\x02\x03")),
    "a name with an escape": (UNREADABLE, archive(("\x1b[31m.npy", npy(ONES)))),
    "a name that turns around": (UNREADABLE, archive(("a\u202eb.npy", npy(ONES)))),
    "a name of sixty thousand letters": (UNREADABLE, archive(("x" * 60_000 + ".npy", npy(ONES)))),
    "no name": (UNREADABLE, archive((".npy", npy(ONES)))),
    "a path": (UNREADABLE, archive(("../../x.npy", npy(ONES)))),
    "ten thousand entries": ("too-many-arrays", archive(
        *((f"{number}.npy", b"") for number in range(10_000)), method=zipfile.ZIP_STORED)),
    "a directory of more than a megabyte": (TRUNCATED, archive(
        *((f"{number:040}.npy", b"") for number in range(15_000)), method=zipfile.ZIP_STORED)),
    "safetensors: a dtype that is a list": (UNREADABLE, tensors(x=X | {"dtype": ["F32"]})),
    "safetensors: a dtype that is code": (DTYPE, tensors(x=X | {"dtype": "posix.system"})),
    "safetensors: half a surrogate pair": (UNREADABLE, safetensors_file(
        b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(4))),
    "safetensors: a line break": (UNREADABLE, tensors(**{"a\nb": X})),
    "safetensors: a hole": (UNREADABLE, tensors(bytes(12), x=X, y=X | {"data_offsets": [8, 12]})),
    "safetensors: bytes behind": (UNREADABLE, tensors(bytes(8), x=X)),
    "safetensors: shared bytes": (UNREADABLE, tensors(x=X, y=X)),
    "safetensors: NaN": (UNREADABLE, safetensors_file(
        b'{"x": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', bytes(4))),
    "safetensors: a shape of 2^64": (UNREADABLE, tensors(x=X | {"shape": [1 << 64]})),
    "safetensors: nothing of 10^4000": (UNREADABLE, tensors(
        b"", x=X | {"shape": [0, 10**4000], "data_offsets": [0, 0]})),
    "safetensors: two thousand axes": (UNREADABLE, tensors(x=X | {"shape": [1] * 2000})),
    "safetensors: metadata of numbers": (UNREADABLE, tensors(x=X, __metadata__={"a": 1})),
    "safetensors: UTF-16": (UNREADABLE, safetensors_file(
        '{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'.encode("utf-16-le"), bytes(4))),
    "safetensors: a space in front": (UNREADABLE, safetensors_file(
        b' {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(4))),
    "safetensors: deep": (UNREADABLE, safetensors_file(b'{"a":' * 50_000 + b"1" + b"}" * 50_000)),
    "safetensors: a header of 2^64": ("unknown-format", b"\xff" * 8 + b"{}"),
}  # fmt: skip
