"""Datasets that mean harm: each is refused with its reason, at once, and leaves nothing."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from service.datasets import reading
from service.datasets.declared import Unreadable
from service.datasets.reading import read
from tests.hostile.datasets import HOSTILE
from tests.service.gateway import Gateway
from tests.service.uploads import codes, digits, npz, post, safetensors_file
from workers.engine.data import is_npz


@pytest.mark.parametrize("name", HOSTILE)
def test_a_dataset_that_means_harm_is_refused(gateway: Gateway, name: str) -> None:
    code, content = HOSTILE[name]
    before = gateway.blob_files()
    started = time.monotonic()
    answer = post(gateway.http, "/datasets", content)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-dataset"), answer.text[:300]
    assert code in {found for _, found in codes(answer)}, answer.text[:300]
    assert len(answer.content) < 10_000
    assert time.monotonic() - started < 3
    assert gateway.blob_files() == before
    assert post(gateway.http, "/datasets", digits()).status_code == 201


def test_a_file_that_unpacks_to_a_hundred_times_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SMALL", 1 << 20)
    (tmp_path / "bomb").write_bytes(npz(compressed=True, x=np.zeros(4 << 20, np.uint8)))
    with pytest.raises(Unreadable) as refused:
        read(tmp_path / "bomb", 1 << 40)
    assert [error.code for error in refused.value.errors] == ["too-large"]
    honest = np.random.default_rng(0).standard_normal(1 << 19).astype(np.float32)
    (tmp_path / "honest").write_bytes(npz(compressed=True, x=honest))
    assert read(tmp_path / "honest", 1 << 40).samples == 1 << 19


def test_an_archives_end_behind_tensors_makes_no_archive_of_them(tmp_path: Path) -> None:
    """The gateway and the engine go by the first bytes, so both see the same arrays."""
    end = b"PK\x05\x06" + bytes(18)
    path = tmp_path / "both"
    path.write_bytes(safetensors_file({"x": {"dtype": "U8", "shape": [22], "data_offsets": [0, 22]}}, end))
    assert zipfile.is_zipfile(path)
    assert read(path, 1 << 20).format == "safetensors"
    assert not is_npz(path)
