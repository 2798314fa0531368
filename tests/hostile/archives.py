"""Zip and tar archives that lie about what is in them."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.hostile.case import INVALID, READY, UNSAFE, Build, Case, cases, changed, entry, honest, written
from tests.workers import packed, uploads

_END, _DIRECTORY, _LOCAL = b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04"
_END_64 = struct.Struct("<4sQ2H2L4Q")


def _in_last(signature: bytes, offset: int, value: bytes) -> Build:
    """Change the last record of a kind."""

    def change(data: bytearray) -> None:
        at = data.rindex(signature) + offset
        data[at : at + len(value)] = value

    return changed(change)


def _in_front(data: bytes) -> Build:
    return changed(lambda honest: honest.__setitem__(slice(0, 0), data))


def _behind(data: bytes) -> Build:
    return changed(lambda honest: honest.extend(data))


def _with_comment(data: bytearray) -> None:
    """A comment that is an archive's end itself: which end counts?"""
    comment = bytes(data[-22:])
    data[-2:] = len(comment).to_bytes(2, "little")
    data += comment


def _without_a_directory_entry(data: bytearray) -> None:
    """The end says one entry fewer than the directory has: readers that count and readers that measure disagree."""
    count = int.from_bytes(data[-14:-12], "little") - 1
    data[-14:-10] = count.to_bytes(2, "little") * 2


def _with_zip64_end(entries: int, size: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        at, offset = len(data) - 22, int.from_bytes(data[-6:-2], "little")
        record = _END_64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, size, offset)
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
        end = bytearray(data[-22:])
        end[8:20] = b"\xff" * 12
        data[at:] = record + locator + end

    return change


def _zip64_extra(data: bytearray) -> None:
    """The last directory entry says its size is in an extra field, which says 2^60."""
    at = data.rindex(_DIRECTORY)
    extra = struct.pack("<HHQ", 1, 8, 1 << 60)
    name = int.from_bytes(data[at + 28 : at + 30], "little")
    data[at + 24 : at + 28] = b"\xff\xff\xff\xff"
    data[at + 30 : at + 32] = len(extra).to_bytes(2, "little")
    data[at + 46 + name : at + 46 + name] = extra
    length = int.from_bytes(data[-10:-6], "little") + len(extra)
    data[-10:-6] = length.to_bytes(4, "little")


def _another_size(data: bytearray) -> None:
    """Without the flag that says the sizes come later."""
    local = data.rindex(_LOCAL)
    data[local + 6] &= ~0x08
    data[local + 18 : local + 22] = b"\x01\x00\x00\x00"


def _descriptor(data: bytearray) -> None:
    """Sizes come behind the data, says the header in front of it; behind it is another entry."""
    local = data.rindex(_LOCAL)
    data[local + 6] |= 0x08
    data[local + 14 : local + 26] = bytes(12)


def _twice(folder: Path, canary: Path) -> Path:
    data = honest(folder).read_bytes()
    return written(data + data)(folder, canary)


def _many(folder: Path, _canary: Path) -> Path:
    path = uploads.rewritten(honest(folder), folder / "model", lambda _, old: old)
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        for number in range(100_001):
            archive.writestr(f"{root}/{number}", b"")
    return path


def _bomb_in_a_payload(folder: Path, _canary: Path) -> Path:
    inner = uploads.zip_of(
        {"archive/data.pkl": b"\x80\x02).", "archive/data/0": bytes(200 << 20)}, zipfile.ZIP_DEFLATED
    )
    return uploads.with_entry(honest(folder), folder / "model", "data/constants/tensor_7", inner)


def _tar(kind: bytes, name: str = "config.json", link: str = "/etc/passwd") -> Build:
    return lambda folder, _: packed.tarred({name: b""}, folder / "model", type=kind, linkname=link)


def _tar_of(*members: tuple[str, bytes, bytes]) -> Build:
    """(name, type, content) of each, as raw as ``tarfile`` allows."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), kind
            archive.addfile(info, io.BytesIO(data))
    return written(buffer.getvalue())


def _pax(record: bytes) -> Build:
    length = len(record) + 4
    return _tar_of(("p", tarfile.XHDTYPE, f"{length} ".encode() + record), ("config.json", tarfile.REGTYPE, b"{}"))


def _gzip_bomb(folder: Path, _canary: Path) -> Path:
    return packed.tarred({"config.json": bytes(80 << 20)}, folder / "model")


_MISREAD = (INVALID, READY)  # torch reads what it finds by name, and what it finds is the honest model, or none
ARCHIVES = [
    *cases("zip", "pt2", (INVALID,), {
        "bomb": entry("ROOT/data/weights/bomb", bytes(200 << 20)),
        "bomb in a payload": _bomb_in_a_payload,
        "a hundred thousand entries": _many,
        "truncated": changed(lambda data: data.__delitem__(slice(len(data) // 2, None))),
        "nothing": written(b""),
        "encrypted": _in_last(_DIRECTORY, 8, b"\x01\x00"),
        "unknown compression": _in_last(_DIRECTORY, 10, b"\x63\x00"),
        "bzip2": entry("ROOT/x", method=zipfile.ZIP_BZIP2),
        "LZMA": entry("ROOT/x", method=zipfile.ZIP_LZMA),
        "wrong checksum": _in_last(_DIRECTORY, 16, b"\x00\x01\x02\x03"),
        "zip64: 2^60 entries": changed(_with_zip64_end(1 << 60, 100)),
        "zip64: a directory of 2^60 bytes": changed(_with_zip64_end(10, 1 << 60)),
    }, _MISREAD),
    *cases("zip", "pt2", (UNSAFE, INVALID), {
        "traversal": entry("ROOT/../../canary"),
        "absolute name": entry("/etc/cron.d/x"),
        "drive": entry("C:/x"),
        "backslashes": entry("model\\..\\x"),
        "a line break in a name": entry("ROOT/a\nb"),
        "a null in a name": _in_last(_DIRECTORY, 50, b"\x00"),
        "symbolic link": entry("ROOT/link", b"/etc/passwd", 0o120777),
        "device": entry("ROOT/device", b"", 0o020666),
        "duplicate name": entry("ROOT/Archive_Format"),
        "a folder with content": entry("ROOT/data/sample_inputs/x/", b"cposix\nsystem\n(Vtrue\ntR."),
        "library": entry("ROOT/data/x.so", b"\x7fELF"),
        "library by another name": entry("ROOT/notes.txt", b"\x7fELF"),
        "program in front": _in_front(b"\x7fELF" * 8),
        "script in front": _in_front(b"#!/bin/sh\n"),
        "something behind": _behind(b"MZ behind"),
        "twice": _twice,
        "4 GB entry": _in_last(_DIRECTORY, 24, b"\xfe\xff\xff\xff"),
        "zip64: an entry of 2^60 bytes": changed(_zip64_extra),
        "overlap": _in_last(_DIRECTORY, 42, b"\x00\x00\x00\x00"),
        "an offset beyond the file": _in_last(_DIRECTORY, 42, b"\xfe\xff\xff\x7f"),
        "a directory and nothing else": _in_last(_LOCAL, 0, bytes(30)),
        "another name in front of the data": _in_last(_LOCAL, 30, b"other"),
        "another size in front of the data": changed(_another_size),
        "a comment that is an end": changed(_with_comment),
        "another method in front of the data": _in_last(_LOCAL, 8, b"\x08\x00"),
        "one entry fewer than there are": changed(_without_a_directory_entry),
    }, _MISREAD),
    Case("zip: sizes that never come", "pt2", (READY,), changed(_descriptor), (READY,)),  # all go by the directory
    *cases("tar", "transformers", (UNSAFE,), {
        "symbolic link": _tar(tarfile.SYMTYPE),
        "hard link": _tar(tarfile.LNKTYPE),
        "device": _tar(tarfile.CHRTYPE),
        "block device": _tar(tarfile.BLKTYPE),
        "pipe": _tar(tarfile.FIFOTYPE),
        "traversal": _tar(tarfile.REGTYPE, "../config.json"),
        "absolute": _tar(tarfile.REGTYPE, "/config.json"),
        "twice": _tar_of(("config.json", tarfile.REGTYPE, b"{}"), ("CONFIG.json", tarfile.REGTYPE, b"{}")),
        "traversal in an extended header": _pax(b"path=../../x\n"),
    }, (UNSAFE,)),
    *cases("tar", "transformers", (INVALID,), {
        "bomb": _gzip_bomb,
        "an extended header of a gigabyte": _tar_of(("p", tarfile.XHDTYPE, bytes(100 << 10))),
        "a size that is none": _pax(b"size=-5\n"),
        "a size of 10^18": _pax(b"size=999999999999999999\n"),
        "sparse": _pax(b"GNU.sparse.major=1\n"),
        "cut off": written(gzip.compress(bytes(100_000))[:-40]),
        "gzip in gzip": written(gzip.compress(gzip.compress(bytes(1 << 20)))),
    }),
]  # fmt: skip
