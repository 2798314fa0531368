"""What the supervisor asks of a child, for tests that ask it themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workers.sandbox.limits import Limits

FENCED: dict[str, Any] = {"limits": Limits.of(0, 1, 60).request(), "sandbox": "required"}


def stage_request(stage: str, folder: Path, **more: Any) -> dict[str, Any]:
    return {"stage": stage, "folder": str(folder), "threads": 1, **FENCED, **more}
