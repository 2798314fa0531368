"""Tar files and Transformers folders in them:
``workers.intake.tar_archives`` and ``workers.intake.transformers_folders``."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from functools import cache
from pathlib import Path

from tests.fuzz import Target
from tests.fuzz.bytes_changed import changed
from tests.workers.packed import safetensors
from workers.errors import EngineError
from workers.intake.tar_archives import tar_entries
from workers.intake.transformers_folders import scan_folder

_FILES = {
    "config.json": json.dumps({"architectures": ["BertModel"], "model_type": "bert"}).encode(),
    "model.safetensors": safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
}


@cache
def _seeds() -> list[bytes]:
    return [_packed(mode, kind) for mode in ("w", "w:gz") for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)]


def _packed(mode: str, kind: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=kind) as archive:  # type: ignore[call-overload]
        for name, data in _FILES.items():
            info = tarfile.TarInfo("a-long-name-" * 10 + "/" + name)
            info.size, info.mtime = len(data), 1.5
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _scan(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        scan_folder(tar_entries(Path(file.name)))


TARGET = Target("tar", changed(_seeds), _scan, (EngineError,))
