"""What every test of the scan has: a payload that leaves a trace, and the check that it left none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.uploads import Hostile


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "something in the upload ran"


@pytest.fixture
def hostile(canary: Path) -> Hostile:
    """Pickles into a command that creates the canary."""
    return Hostile(os.system, f"touch {canary}")
