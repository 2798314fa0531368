"""The zip structure, ``workers.intake.zip_archives``:
everything an attacker can write into a directory or a local header."""

from __future__ import annotations

import io
import zipfile
from functools import cache

from tests.fuzz import Target
from tests.fuzz.bytes_changed import changed
from tests.workers.uploads import zip_of
from workers.errors import EngineError
from workers.intake.zip_archives import open_archive

_ENTRIES = {"model/data.pkl": b"\x80\x02K\x01.", "model/data/0": bytes(64), "model/version": b"3\n"}


@cache
def _seeds() -> list[bytes]:
    return [
        zip_of(_ENTRIES),
        zip_of(_ENTRIES, zipfile.ZIP_DEFLATED),
        _streamed(),
        zip_of({"outer/a": zip_of(_ENTRIES)}),
    ]


def _streamed() -> bytes:
    """Sizes after the data, as a writer that cannot seek leaves them, and 64-bit fields."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, archive.open("model/big", "w", force_zip64=True) as entry:
        entry.write(b"x" * 100)
    return buffer.getvalue()


def _read_all(data: bytes) -> None:
    archive = open_archive(io.BytesIO(data), "the upload")
    for info in archive.entries:
        archive.head(info, 64)
        archive.read(info, 1 << 20)


TARGET = Target("archive", changed(_seeds), _read_all, (EngineError,))
