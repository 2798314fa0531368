"""One hostile upload of the corpus, and the short ways to make one."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.workers import uploads

Build = Callable[[Path, Path], Path]
UNSAFE, INVALID, VIOLATION = "unsafe-model", "invalid-model", "sandbox-violation"
STARVED, LATE, READY = "out-of-memory", "time-limit-exceeded", "ready"


@dataclass(frozen=True)
class Case:
    """``build(folder, canary)`` writes it; were it obeyed, ``canary`` would be there, or the ``secret`` beside it read.
    What it returns is the model, or a folder of the model, its task and its data.

    It ends in one of ``slugs`` with both walls up, in one of ``alone`` when the scan lets it through, and either way
    within ``seconds``.
    """

    name: str
    format: str
    slugs: tuple[str, ...]
    build: Build
    alone: tuple[str, ...] = (INVALID,)
    is_pickle: bool = False
    stage: str = "inspect"
    seconds: float = 20


def cases(
    prefix: str, format: str, slugs: tuple[str, ...], builds: dict[str, Build], alone: tuple[str, ...] = (INVALID,)
) -> Iterator[Case]:
    """Of the same kind, by name."""
    for name, build in builds.items():
        yield Case(f"{prefix}: {name}", format, slugs, build, alone)


def written(data: bytes) -> Build:
    """These bytes, whatever they are."""

    def build(folder: Path, _canary: Path) -> Path:
        (folder / "model").write_bytes(data)
        return folder / "model"

    return build


def honest(folder: Path) -> Path:
    """The model that is made worse."""
    (folder / "honest").write_bytes(_honest())
    return folder / "honest"


@cache
def _honest() -> bytes:
    with TemporaryDirectory() as folder:
        return uploads.mlp(Path(folder) / "model.pt2").read_bytes()


def changed(change: Callable[[bytearray], Any]) -> Build:
    """The honest model with bytes changed."""

    def build(folder: Path, canary: Path) -> Path:
        data = bytearray(honest(folder).read_bytes())
        change(data)
        return written(bytes(data))(folder, canary)

    return build


def with_entries(entries: Callable[[Path], Iterable[tuple[str, bytes]]]) -> Build:
    """The honest model, in which these entries are what ``entries(canary)`` says."""

    def build(folder: Path, canary: Path) -> Path:
        path = honest(folder)
        for number, (name, data) in enumerate(entries(canary)):
            path = uploads.with_entry(path, folder / f"model{number}", name, data)
        return path

    return build


def changed_program(change: Callable[[dict[str, Any]], Any]) -> Build:
    """The honest model with another program."""
    return lambda folder, _: uploads.with_program(honest(folder), folder / "model", change)


def entry(name: str, data: bytes = b"x", mode: int = 0, method: int = zipfile.ZIP_DEFLATED) -> Build:
    """The honest model and one more entry, by the name it is given (``ROOT``: the folder all lie in)."""

    def build(folder: Path, _canary: Path) -> Path:
        path = uploads.rewritten(honest(folder), folder / "model", lambda _, old: old)
        with zipfile.ZipFile(path, "a", method) as archive:
            info = zipfile.ZipInfo(name.replace("ROOT", archive.namelist()[0].split("/")[0]))
            info.external_attr, info.compress_type = mode << 16, method
            archive.writestr(info, data)
        return path

    return build
