"""JSON objects in which no key is there twice."""

from __future__ import annotations

from typing import Any


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads(..., object_pairs_hook=unique_keys)``. Readers disagree on which of two equal keys counts, so a
    document that has them could show one reader a harmless value and the other a hostile one. Raises ``ValueError``."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"the key {name[:80]!r} appears twice in one object")
        fields[name] = value
    return fields
