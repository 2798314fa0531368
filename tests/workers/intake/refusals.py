"""Expecting the scan to refuse an upload."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.errors import EngineError
from workers.intake.scan import scan


def refused(path: Path, slug: str, *mentions: str) -> str:
    """Scan, and expect this problem with these words in its detail, which is returned."""
    with pytest.raises(EngineError) as caught:
        scan(path)
    assert caught.value.slug == slug, caught.value.detail
    for mention in mentions:
        assert mention in caught.value.detail
    return caught.value.detail
