"""``python -m service.openapi`` writes ``openapi/openapi.json``; ``--check`` compares instead."""

from __future__ import annotations

import json
import sys
from difflib import unified_diff
from itertools import islice
from pathlib import Path

from service.app import create_app
from service.settings import ServiceSettings
from store.settings import StoreSettings

FILE = Path(__file__).parents[1] / "openapi" / "openapi.json"
SHORT = 40


def document() -> str:
    """The same bytes on every machine: settings have no part in it."""
    app = create_app(ServiceSettings(auth="off"), StoreSettings())
    return json.dumps(app.openapi(), indent=2, ensure_ascii=False) + "\n"


def difference(committed: str, generated: str) -> list[str]:
    lines = unified_diff(
        committed.splitlines(), generated.splitlines(), "openapi/openapi.json", "the app", lineterm="", n=1
    )
    return list(islice(lines, SHORT))


def main(arguments: list[str]) -> int:
    """1 when the committed document is not the app's."""
    if "--check" not in arguments:
        FILE.write_text(document())
        return 0
    lines = difference(FILE.read_text() if FILE.exists() else "", document())
    if lines:
        print("\n".join(lines), "\n\nThe committed document is not the app's: run `make openapi`.", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
