"""``.npz`` and ``.safetensors`` of a dataset, ``service/datasets``: valid files with bytes changed or cut off."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save

from service.datasets.declared import Unreadable
from service.datasets.reading import read
from tests.fuzz import Target
from tests.service.uploads import npz

_ARRAYS = {"x": np.ones((3, 2), np.float32), "labels": np.arange(3)}
_FILES = (npz(**_ARRAYS), npz(compressed=True, **_ARRAYS), save(_ARRAYS))
LIMIT = 1 << 20


@st.composite
def _changed(draw: st.DrawFn) -> bytes:
    content = bytearray(draw(st.sampled_from(_FILES)))
    for _ in range(draw(st.integers(0, 6))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))]) if draw(st.booleans()) else bytes(content)


def read_dataset(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upload"
        path.write_bytes(content)
        read(path, LIMIT)


TARGET = Target("dataset", _changed(), read_dataset, (Unreadable,))
