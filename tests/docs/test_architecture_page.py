"""The page about the architecture names only what there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGES = ("fewbit", "store", "service", "workers", "local")
NAMES = {
    node.name
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
}
CALLED = sorted(set(re.findall(r"`(?:\w+\.)?(_?[a-z]+(?:_[a-z]+)+|[A-Z][a-z]+[A-Za-z]*)`", PAGE)))
FILES = sorted(set(re.findall(r"(?:[a-z_]+/)+[a-z_]+\.py", PAGE)))


@pytest.mark.parametrize("name", CALLED)
def test_a_function_or_class_it_names_is_in_the_code(name: str) -> None:
    assert name in NAMES


@pytest.mark.parametrize("file", FILES)
def test_a_file_it_names_exists(file: str) -> None:
    assert any(path.is_file() for package in ("", *PACKAGES, "workers/engine") for path in [ROOT / package / file])


def test_it_names_every_room_of_the_engine() -> None:
    rooms = {path.parent.name for path in (ROOT / "workers" / "engine").glob("*/__init__.py")}
    assert rooms <= set(re.findall(r"\b([a-z]+)/ ", PAGE))
