"""The fork server that hostile uploads meet, and the surroundings they would like to reach."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.evidence import RecordingForkServer, Surroundings


@pytest.fixture(scope="module")
def forks() -> Iterator[RecordingForkServer]:
    """It remembers its children, and they can be told to do without a wall."""
    server = RecordingForkServer("tests.hostile.unguarded:main", "tests.hostile.unguarded:preload")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def here(tmp_path: Path) -> Surroundings:
    """A worker's scratch with another tenant's job in it, and a store."""
    return Surroundings.create(tmp_path / "here")
