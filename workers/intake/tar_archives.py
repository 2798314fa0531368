"""Reads a tar file forward, entry by entry, compressed by gzip or not, without trusting its headers.

``tarfile`` reads extended headers of any size into memory and follows links when extracting. Here headers are bounded,
entries must be plain files with plain names, and a stream that inflates too far is refused.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from workers.errors import EngineError
from workers.intake.zip_archives import MAX_ENTRIES

BLOCK = tarfile.BLOCKSIZE
_MOST_EXTENDED = 64 << 10  # a pax or GNU long-name header holds a path and some times
_LEAST_LIMIT, _MAX_RATIO = 64 << 20, 20  # as for zip archives; weights hardly compress to half
_CHUNK = 1 << 20
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_PAX, _GLOBAL_PAX, _LONG_NAME = tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME


class EntryContent:
    """One entry's content, readable once and forward only."""

    def __init__(self, source: _Source, size: int) -> None:
        self._source, self.left = source, size

    def read(self, size: int) -> bytes:
        data = self._source.read(min(size, self.left))
        self.left -= len(data)
        return data

    def skip(self) -> None:
        while self.read(_CHUNK):
            pass


def is_tar(head: bytes) -> bool:
    """By the magic of POSIX and GNU tar, or of gzip, whose content is only known once it is read."""
    return head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar"


def tar_entries(path: Path) -> Iterator[tuple[str, int, EntryContent]]:
    """(name, size in bytes, content) of every file, in order.

    Raises ``EngineError('invalid-model')`` for an archive that is broken or a bomb, ``'unsafe-model'`` for links,
    devices and names that lead out of it.
    """
    with path.open("rb") as file:
        source = _source(file, path.stat().st_size)
        seen: set[str] = set()
        while (header := _next_header(source)) is not None:
            content = EntryContent(source, header.size)
            _check(header, seen)
            if header.type in _FILES:
                yield _plain_name(header.name), header.size, content
            content.skip()
            source.read(-header.size % BLOCK)


def _plain_name(name: str) -> str:
    return name.removeprefix("./")


def _check(header: tarfile.TarInfo, seen: set[str]) -> None:
    name, where = _plain_name(header.name.rstrip("/")), repr(header.name[:200])
    if header.type == tarfile.DIRTYPE and name in ("", "."):
        return
    if header.type not in (*_FILES, tarfile.DIRTYPE):
        raise EngineError("unsafe-model", f"The entry {where} is a link or a device, not a file.")
    if any(ord(char) < 32 for char in name) or "\\" in name or {"", ".", ".."} & set(name.split("/")):
        raise EngineError("unsafe-model", f"The entry {where} does not name a place in the archive.")
    if name.casefold() in seen:
        raise EngineError("unsafe-model", f"The entry {where} is there twice: readers disagree on which one counts.")
    seen.add(name.casefold())
    if len(seen) > MAX_ENTRIES:
        raise EngineError("invalid-model", f"The upload holds more than {MAX_ENTRIES} entries.")


def _next_header(source: _Source) -> tarfile.TarInfo | None:
    """The next entry's header, extended headers applied; ``None`` at the end."""
    extended: dict[str, str] = {}
    while True:
        block = source.read(BLOCK)
        if not block:
            raise _damaged("its end blocks are missing")
        if not any(block):
            source.drain()
            return None
        header = _parse_header(block)
        if header.type in (_PAX, _GLOBAL_PAX, _LONG_NAME):
            data = _extended(source, header)
            if header.type != _GLOBAL_PAX:  # global headers hold comments only
                extended |= {"path": _text(data.rstrip(b"\0"))} if header.type == _LONG_NAME else _pax_records(data)
            continue
        if any(key.startswith("GNU.sparse") for key in extended):
            raise EngineError("invalid-model", "The tar archive has sparse files; pack it without.")
        header.name = extended.get("path", header.name)
        header.size = _number(extended.get("size", str(header.size)))
        return header


def _parse_header(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise _damaged(str(error)) from error


def _extended(source: _Source, header: tarfile.TarInfo) -> bytes:
    if not 0 <= header.size <= _MOST_EXTENDED:
        raise _damaged(f"an extended header of {header.size} bytes")
    data = source.read(header.size)
    source.read(-header.size % BLOCK)
    return data


def _pax_records(data: bytes) -> dict[str, str]:
    """The records of a pax header: ``length key=value\\n``, where the length includes its own digits."""
    found: dict[str, str] = {}
    while data:
        digits, _, _ = data.partition(b" ")
        length = _number(digits.decode("ascii", "replace"))
        record, data = data[len(digits) + 1 : length], data[length:]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise _damaged("an extended header that cannot be read")
        found[_text(key)] = _text(value[:-1])
    return found


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _number(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 19:
        raise _damaged(f"the size {text[:40]!r}")
    return int(text)


def _damaged(what: str) -> EngineError:
    return EngineError("invalid-model", f"The upload is a damaged tar archive: {what}.")


class _Source:
    """The bytes of the tar stream, inflated if need be, up to a limit."""

    def __init__(self, file: BinaryIO, limit: int, inflate: bool) -> None:
        self._file, self._left, self._buffer = file, limit, b""
        self._inflater = zlib.decompressobj(31) if inflate else None

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes, or none at the end of the stream."""
        chunks: list[bytes] = []
        wanted = size
        while wanted and (data := self._read_some(wanted)):
            chunks.append(data)
            wanted -= len(data)
        if wanted and wanted != size:
            raise _damaged("it ends too early")
        return b"".join(chunks)

    def drain(self) -> None:
        """Read to the end, where gzip's checksum is."""
        while self._read_some(_CHUNK):
            pass

    def _read_some(self, size: int) -> bytes:
        data = self._file.read(size) if self._inflater is None else self._inflate(size)
        self._left -= len(data)
        if self._left < 0:
            raise EngineError("invalid-model", "The upload would inflate too far: a tar bomb.")
        return data

    def _inflate(self, size: int) -> bytes:
        assert self._inflater is not None
        while not self._inflater.eof:
            packed = self._buffer or self._file.read(_CHUNK)
            if not packed:
                raise _damaged("its gzip stream ends too early")
            try:
                data = self._inflater.decompress(packed, size)
            except zlib.error as error:
                raise _damaged(str(error)) from error
            self._buffer = self._inflater.unconsumed_tail
            if data:
                return data
        return b""


def _source(file: BinaryIO, size: int) -> _Source:
    inflate = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return _Source(file, max(_LEAST_LIMIT, _MAX_RATIO * size), inflate)
