"""``.npz``: a zip of ``.npy`` files. Its directory is checked before a single byte is unpacked."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import IO, Literal

from numpy.lib import format as npy

from service.datasets.declared import MAX_ARRAYS, Declared, Unreadable, at, check_names, is_shape

MAX_HEADER = 10_000  # NumPy's own default; a header is a short Python literal
MAX_RATIO = 1100  # deflate cannot pack tighter than 1032 to 1 (zlib's own figure): a greater ratio is a lie
MAX_DIRECTORY = 1024 * 1024
MAX_COMMENT = 65_535
END, END_SIZE = b"PK\x05\x06", 22  # end of central directory record (APPNOTE.TXT 4.3.16)
LOCAL_SIZE = 30  # local file header, without its name (4.3.7)
END64, END64_SIZE, LOCATOR64_SIZE = b"PK\x06\x06", 56, 20  # (4.3.14, 4.3.15)
METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
BROKEN = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError),  # the archive
    *(ValueError, TypeError, SyntaxError, RuntimeError, MemoryError),  # a header that is no plain literal
)


class Npz:
    """Members are read one at a time, as streams."""

    format: Literal["npz"] = "npz"

    def __init__(self, file: IO[bytes]) -> None:
        try:
            _check_directory(file)
            self._archive = zipfile.ZipFile(file)
        except BROKEN as error:
            detail = f"The .npz archive cannot be read: {error}. It may be truncated; save and send it again."
            raise Unreadable([at("", "truncated", detail)]) from error

    def declared(self) -> list[Declared]:
        """Raises ``Unreadable`` for an archive that is not what ``numpy.savez`` writes."""
        members = self._archive.infolist()
        if len(members) > MAX_ARRAYS:
            raise Unreadable(
                [at("", "too-many-arrays", f"The file holds {len(members)} arrays; at most {MAX_ARRAYS}.")]
            )
        names = [member.filename for member in members]
        check_names(map(_name, names))
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise Unreadable([at(_name(name), "duplicate", f"{name} is in the archive twice.") for name in doubled])
        _check_overlaps(members)
        return [self._declared(member) for member in members]

    @contextmanager
    def open(self, array: Declared) -> Iterator[IO[bytes]]:
        """What breaks while the block reads is ``Unreadable``."""
        try:
            with self._archive.open(f"{array.name}.npy") as stream:
                stream.read(array.offset)
                yield stream
        except BROKEN as error:
            detail = f"{array.name} cannot be unpacked: {_short(error)}"
            raise Unreadable([at(array.name, "truncated", detail)]) from error

    def _declared(self, member: zipfile.ZipInfo) -> Declared:
        name = _name(member.filename)
        fault = _fault_of_member(member)
        if fault:
            return Declared(name, None, (), fault=at(name, *fault))
        try:
            with self._archive.open(member) as stream:
                return _header(name, member, stream)
        except BROKEN as error:
            return Declared(name, None, (), fault=at(name, "unreadable", f"{name} is not a .npy file: {_short(error)}"))


def _check_directory(file: IO[bytes]) -> None:
    """``zipfile`` reads the whole directory into memory, so its size is bounded first. Raises ``BadZipFile``."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END_SIZE - MAX_COMMENT))
    tail = file.read()
    plain = tail[-END_SIZE:]  # zipfile looks here first, and then for the last signature
    at = len(tail) - END_SIZE if plain.startswith(END) and plain.endswith(b"\0\0") else tail.rfind(END)
    if at < 0 or at + END_SIZE > len(tail):
        raise zipfile.BadZipFile("the directory at its end is missing")
    directory = int.from_bytes(tail[at + 12 : at + 16], "little")
    end64 = tail[max(0, at - LOCATOR64_SIZE - END64_SIZE) : at]
    if end64.startswith(END64):
        directory = max(directory if directory != 0xFFFFFFFF else 0, int.from_bytes(end64[40:48], "little"))
    if directory > MAX_DIRECTORY:
        raise zipfile.BadZipFile(f"its directory claims {directory} bytes")


def _check_overlaps(members: list[zipfile.ZipInfo]) -> None:
    """Members that share bytes would let a small file stand for a large one. Raises ``Unreadable``."""
    for before, after in pairwise(sorted(members, key=lambda member: member.header_offset)):
        if before.header_offset + LOCAL_SIZE + len(before.filename) + before.compress_size > after.header_offset:
            detail = f"{after.filename} and {before.filename} share bytes."
            raise Unreadable([at(_name(after.filename), "unreadable", detail)])


def _header(name: str, member: zipfile.ZipInfo, stream: IO[bytes]) -> Declared:
    """Raises ``ValueError`` for a header NumPy would not write."""
    version = npy.read_magic(stream)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"format version {version}")
    shape, columns_first, dtype = readers[version](stream, max_header_size=MAX_HEADER)
    if not is_shape(shape):
        raise ValueError("it has no shape that an array can have")
    array = Declared(name, dtype, shape, stream.tell(), columns_first)
    if not dtype.hasobject and array.nbytes != member.file_size - array.offset:
        held = member.file_size - array.offset
        fault = at(name, "truncated", f"{name} declares {array.nbytes} bytes and holds {held}.")
        return Declared(name, dtype, shape, fault=fault)
    return array


def _fault_of_member(member: zipfile.ZipInfo) -> tuple[str, str] | None:
    if not member.filename.endswith(".npy") or "/" in member.filename:
        return "unreadable", f"{member.filename} is not an array; numpy.savez writes names that end in .npy."
    if member.flag_bits & 0x1:
        return "unreadable", f"{member.filename} is encrypted."
    if member.compress_type not in METHODS:
        return "unreadable", f"{member.filename} is packed by a method NumPy does not use."
    times = member.file_size // max(member.compress_size, 1)
    if times > MAX_RATIO and member.file_size > npy.ARRAY_ALIGN:
        return "too-large", f"{member.filename} claims to unpack to {times} times its size."
    return None


def _name(filename: str) -> str:
    return filename.removesuffix(".npy")


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
