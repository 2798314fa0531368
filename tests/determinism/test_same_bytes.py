"""The same upload, spec and seed give the same bytes, in another process too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.determinism.build import KINDS
from tests.determinism.compare import build_artifacts, build_uploads

TREE = Path(__file__).parents[2]
CHOSEN = ("Conv2d", "tied head")
METHODS = ("dynamic", "static")


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uploads")
    build_uploads(TREE, folder, CHOSEN)
    return folder


def test_the_same_job_gives_the_same_bytes_in_two_processes(uploads: Path) -> None:
    first = build_artifacts(TREE, uploads, CHOSEN, METHODS, processes=1)
    second = build_artifacts(TREE, uploads, CHOSEN, METHODS, processes=2)
    assert first == second
    assert len(first) == len(CHOSEN) * len(METHODS)
    files = {file for digests in first.values() for file in digests if "/" not in file}
    assert files == {"model.pt2", "model.ts.pt", "model.onnx", "model.safetensors"}
    assert len(files) == len(KINDS)
