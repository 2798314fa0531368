"""Making an artifact's archive smaller without changing what is in it."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

DEBUG = ".debug_pkl"  # source positions for error messages: half of a small TorchScript archive
LARGEST_TRIED = 1 << 17  # bytes: int8 weights hardly compress, and stored ones load fastest
WORTH_IT = 0.9
SAMPLE = 1 << 12  # bytes of the start, the middle and the end each: what tells weights from text and from zeros


def shrink(path: Path) -> None:
    """Rewrite the zip at ``path`` in place: debug records dropped, entries deflated where that saves a tenth.

    Code, graphs and the float64 scales and zero points of packed weights shrink to a fraction; torch reads deflated
    entries like any others.
    """
    smaller = path.with_name(f"{path.name}.smaller")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(smaller, "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(DEBUG):
                content = source.read(entry)
                target.writestr(zipfile.ZipInfo(entry.filename), content, _method(content))
    smaller.replace(path)


def _method(content: bytes) -> int:
    if len(content) > LARGEST_TRIED:
        return zipfile.ZIP_STORED
    sample = _sample(content)
    worth_it = len(zlib.compress(sample, 6)) <= WORTH_IT * len(sample)
    return zipfile.ZIP_DEFLATED if worth_it else zipfile.ZIP_STORED


def _sample(content: bytes) -> bytes:
    if len(content) <= 4 * SAMPLE:
        return content
    middle = (len(content) - SAMPLE) // 2
    return content[:SAMPLE] + content[middle : middle + SAMPLE] + content[-SAMPLE:]
