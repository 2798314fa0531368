"""Checks a zip file's structure before anything is read from it.

torch reads archives with miniz, we with ``zipfile``. A file that two readers understand differently could show one a
harmless model and the other a hostile one. So only the plain structure that torch writes is accepted: one directory at
the end, no comment, nothing in front, local headers that agree with the directory, no equal names, no overlaps.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from workers.errors import EngineError

MAX_ENTRIES = 100_000
_MAX_DIRECTORY_BYTES = 64 << 20
_MAX_RATIO = 100  # deflate reaches 1032, weights hardly 2
_SMALL = 1 << 20  # an entry up to this size may inflate by any ratio
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED, _DESCRIPTOR = 0x1, 0x8
_CHUNK = 1 << 20
_DAMAGE = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OverflowError, EOFError, struct.error,
    zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class Archive:
    """An archive whose structure has been checked. ``label`` says where it is, for messages."""

    file: BinaryIO
    zip: zipfile.ZipFile
    label: str

    @property
    def entries(self) -> list[zipfile.ZipInfo]:
        """Everything but folders. A folder with content counts as an entry: torch reads it like any other."""
        return [info for info in self.zip.infolist() if not info.is_dir() or info.file_size or info.compress_size]

    def head(self, info: zipfile.ZipInfo, size: int) -> bytes:
        """The entry's first ``size`` bytes, inflated."""
        with damage_as_error(self.label), self.zip.open(info) as stream:
            return stream.read(size)

    def read(self, info: zipfile.ZipInfo, limit: int) -> bytes:
        """The whole entry. Raises ``EngineError('invalid-model')`` above ``limit`` bytes."""
        if info.file_size > limit:
            name = f"{info.filename} in {self.label}"
            raise EngineError("invalid-model", f"{name} has {info.file_size} bytes; at most {limit} fit.")
        with damage_as_error(self.label):
            return self.zip.read(info)

    def stream(self, info: zipfile.ZipInfo) -> BinaryIO:
        """The entry as a seekable file, without a copy in memory when it is stored."""
        if info.compress_type == zipfile.ZIP_STORED:
            return Window(self.file, _data_start(self.file, info, self.label), info.file_size)
        return io.BytesIO(self.read(info, 256 << 20))


class Window(io.RawIOBase, BinaryIO):
    """A part of a file, as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        super().__init__()
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("before the start")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._at)
        take = left if size is None or size < 0 else min(size, left)
        self._file.seek(self._start + self._at)
        data = self._file.read(take)
        self._at += len(data)
        return data


def open_archive(file: BinaryIO, label: str) -> Archive:
    """The archive in ``file``. Raises ``EngineError('invalid-model')`` for one that is broken or a bomb,
    ``'unsafe-model'`` for one that two readers would understand differently."""
    count = _check_end(file, label)
    with damage_as_error(label):
        archive = Archive(file, zipfile.ZipFile(file), label)
        if len(archive.zip.infolist()) != count:
            raise EngineError("unsafe-model", f"{label} has a different number of entries than its directory declares.")
        _check_names(archive)
        _check_sizes(archive)
        _check_layout(archive)
        _check_inflation(archive)
    return archive


@contextmanager
def damage_as_error(label: str) -> Iterator[None]:
    """Turn what ``zipfile`` raises for damaged bytes into an ``EngineError``. It compares an entry's checksum only when
    the entry's last byte is read."""
    try:
        yield
    except (*_DAMAGE, OSError) as error:
        raise EngineError("invalid-model", f"{label} is a damaged zip archive: {error}.") from error


def _check_end(file: BinaryIO, label: str) -> int:
    """How many entries the directory declares. ``zipfile`` goes by the directory's size, torch by this number."""
    size = file.seek(0, io.SEEK_END)
    if size < _END.size:
        raise EngineError("invalid-model", f"{label} ends after {size} bytes: a truncated archive.")
    file.seek(size - _END.size)
    magic, _, _, _, count, length, offset, comment = _END.unpack(file.read(_END.size))
    plain = (count, length, offset)
    if magic != b"PK\x05\x06" or comment:
        raise EngineError(
            "invalid-model",
            f"{label} has no zip directory at its end: the file was cut off, or something was appended to it. "
            "Compare its size and sha256 with the original and upload it again.",
        )
    end = size - _END.size
    if count == 0xFFFF or length == 0xFFFFFFFF or offset == 0xFFFFFFFF or _has_zip64(file, end):
        count, length, offset, end = _end_64(file, end, label)
    if count > MAX_ENTRIES or length > _MAX_DIRECTORY_BYTES:
        raise EngineError("invalid-model", f"{label} declares {count} entries; at most {MAX_ENTRIES} are taken.")
    _check_agreement(plain, (count, length, offset), label)
    if offset + length != end:
        raise EngineError("unsafe-model", f"{label} has data between its zip directory and its end, or in front of it.")
    return int(count)


def _check_agreement(plain: tuple[int, ...], full: tuple[int, ...], label: str) -> None:
    """Readers with and without zip64 must see the same directory, or the latter none."""
    for declared, actual, placeholder in zip(plain, full, (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), strict=True):
        if declared not in (actual, placeholder):
            raise EngineError("unsafe-model", f"{label} declares two different zip directories.")


def _has_zip64(file: BinaryIO, end: int) -> bool:
    file.seek(max(0, end - 20))
    return file.read(4) == b"PK\x06\x07"


def _end_64(file: BinaryIO, end: int, label: str) -> tuple[int, int, int, int]:
    """Entry count, directory length, directory offset, and where the zip64 end record begins."""
    start = end - 20 - _END_64.size
    file.seek(max(0, start))
    record = file.read(_END_64.size)
    if start < 0 or not _has_zip64(file, end) or record[:4] != b"PK\x06\x06":
        raise EngineError("invalid-model", f"{label} is a damaged zip archive: its zip64 records do not fit.")
    fields = _END_64.unpack(record)
    return fields[7], fields[8], fields[9], start


def _check_names(archive: Archive) -> None:
    seen: set[str] = set()
    for info in archive.zip.infolist():
        name, where = info.filename, f"{info.filename!r} in {archive.label}"
        folded = name.rstrip("/").casefold()
        if folded in seen:
            raise EngineError(
                "unsafe-model", f"The entry {where} is there twice: readers disagree on which one counts."
            )
        seen.add(folded)
        if name != info.orig_filename or "\\" in name or any(ord(char) < 32 for char in name):
            raise EngineError("unsafe-model", f"The entry {where} has control characters or backslashes in its name.")
        if {"", ".", ".."} & set(name.rstrip("/").split("/")) or name[1:2] == ":":
            raise EngineError("unsafe-model", f"The entry {where} does not name a place in the archive.")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise EngineError("unsafe-model", f"The entry {where} is a link or a device, not a file.")
        if info.flag_bits & _ENCRYPTED:
            raise EngineError("invalid-model", f"The entry {where} is encrypted.")


def _check_sizes(archive: Archive) -> None:
    size = archive.file.seek(0, io.SEEK_END)
    for info in archive.zip.infolist():
        _check_size(info)
    total = sum(info.file_size for info in archive.zip.infolist())
    if total > max(64 * _SMALL, 20 * size):
        raise EngineError("invalid-model", f"{archive.label} would inflate {size} bytes to {total}: a zip bomb.")


def _check_size(info: zipfile.ZipInfo) -> None:
    name, packed, size = repr(info.filename), info.compress_size, info.file_size
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise EngineError("invalid-model", f"{name} is compressed by method {info.compress_type}; use deflate or none.")
    if info.compress_type == zipfile.ZIP_STORED and size != packed:
        raise EngineError("unsafe-model", f"{name} declares two different sizes for the same bytes.")
    if size > max(_SMALL, _MAX_RATIO * packed):
        raise EngineError("invalid-model", f"{name} would inflate {packed} bytes to {size}: a zip bomb.")


def _check_layout(archive: Archive) -> None:
    """Entries follow each other from the first byte on, and their local headers agree with the directory."""
    free = 0
    for info in sorted(archive.zip.infolist(), key=lambda info: info.header_offset):
        if info.header_offset < free:
            raise EngineError("unsafe-model", f"{info.filename!r} overlaps the entry before it.")
        if free == 0 and info.header_offset != 0:
            raise EngineError("unsafe-model", f"{archive.label} has data in front of its first entry.")
        free = _data_start(archive.file, info, archive.label) + info.compress_size
    if free > archive.zip.start_dir:
        raise EngineError("unsafe-model", f"The last entry of {archive.label} reaches into the directory.")


def _data_start(file: BinaryIO, info: zipfile.ZipInfo, label: str) -> int:
    file.seek(info.header_offset)
    header = file.read(_LOCAL.size)
    magic, _, flags, method, _, _, _, packed, size, name_length, extra_length = _LOCAL.unpack(header)
    name = file.read(name_length)
    described = bool(flags & _DESCRIPTOR) or 0xFFFFFFFF in (packed, size)
    if magic != b"PK\x03\x04" or name != _raw_name(info) or method != info.compress_type:
        raise EngineError("unsafe-model", f"{info.filename!r} in {label} has another name in its local header.")
    if not described and (packed, size) != (info.compress_size, info.file_size):
        raise EngineError("unsafe-model", f"{info.filename!r} in {label} has another size in its local header.")
    return int(info.header_offset + _LOCAL.size + name_length + extra_length)


def _raw_name(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")


def _check_inflation(archive: Archive) -> None:
    """Declared sizes may lie: each compressed entry is inflated once, a chunk at a time, and counted."""
    for info in archive.entries:
        if info.compress_type == zipfile.ZIP_DEFLATED and _inflated_size(archive, info) != info.file_size:
            raise EngineError("invalid-model", f"{info.filename!r} does not inflate to the size it declares.")


def _inflated_size(archive: Archive, info: zipfile.ZipInfo) -> int:
    packed = Window(archive.file, _data_start(archive.file, info, archive.label), info.compress_size)
    inflater, size = zlib.decompressobj(-15), 0
    while (chunk := packed.read(_CHUNK)) and size <= info.file_size:
        while chunk and size <= info.file_size:
            size += len(inflater.decompress(chunk, _CHUNK))
            chunk = inflater.unconsumed_tail
    return size + (0 if size > info.file_size else len(inflater.flush()))
