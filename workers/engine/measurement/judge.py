"""The judge: what may be delivered.

Every artifact is loaded and run, each documented way, before this process opens the upload. Then the upload itself is
run, as it came: the engine's own float results count only where they are the same, and are replaced where they are not.
An artifact that fails, that is further from float than the reference explains, or than another one, is not delivered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.contract.report import Finding
from workers.engine.artifacts.kinds import KINDS, load_pt2
from workers.engine.data import Data
from workers.engine.draft import Draft
from workers.engine.measurement.parting import parting_layer
from workers.engine.measurement.verification import (
    AGREEMENT_DB,
    Measured,
    Runs,
    Standard,
    measure_artifact,
    representative,
    rows_of,
)
from workers.engine.metrics.similarity import Comparison
from workers.engine.task import Task
from workers.errors import EngineError

SAME_DB = 60.0  # float32 sums in another order are above 100; batch norms folded in half precision are below
MOST_APART_DB = 3.0


@dataclass(frozen=True)
class Judgement:
    """``measured``: what is delivered and runs; ``findings``: what is not, and why."""

    measured: dict[str, Measured]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Rejection:
    """``parted``: it runs, and answers otherwise than it should."""

    why: str
    parted: bool


def judge(
    runs: Runs, task: Task, draft: Draft, data: Data, folder: Path, advance: Callable[[float], None]
) -> Judgement:
    """Measure every artifact, and reject those that are not right: their files are deleted.

    Raises ``EngineError('verification-failed')`` when none is left.
    """
    asked = (*runs.kinds, *runs.stores)
    measured, rejected = _measured(runs, draft, data, folder, advance)
    if not draft.random and runs.kinds and _replace_float_results(task, data, folder):
        runs.kept.clear()  # what they keep from call to call begins anew
        measured, rejected = _measured(runs, draft, data, folder, lambda _: None)
    if Standard.read(folder, draft).comparable:
        rejected |= _parted(measured)
    rejected |= _wrong_stores(runs)
    findings = tuple(_findings(runs, rejected, data))
    if asked and set(rejected) >= set(asked):
        raise EngineError("verification-failed", next(iter(rejected.values())).why)
    before = representative(runs.kinds) if runs.kinds else None
    for kind in rejected:
        runs.reject(kind)
        measured.pop(kind, None)
    if runs.kinds and representative(runs.kinds) != before:  # another one speaks for the job: with its kernels
        runs.kept.clear()
        measured, _ = _measured(runs, draft, data, folder, lambda _: None)
    return Judgement(measured, findings)


def _measured(
    runs: Runs, draft: Draft, data: Data, folder: Path, advance: Callable[[float], None]
) -> tuple[dict[str, Measured], dict[str, Rejection]]:
    measured, rejected = dict[str, Measured](), dict[str, Rejection]()
    standard, count = Standard.read(folder, draft), len(runs.kinds)
    for index, kind in enumerate(runs.kinds):

        def advance_kind(share: float, done: int = index) -> None:
            advance((done + share) / count)

        try:
            measured[kind] = measure_artifact(kind, runs, draft, data, standard, advance_kind)
        except EngineError as error:
            rejected[kind] = Rejection(error.detail, parted=" dB from float" in error.detail)
    return measured, rejected


def _wrong_stores(runs: Runs) -> dict[str, Rejection]:
    rejected = {}
    for kind in runs.stores:
        try:
            runs.check_store(kind)
        except EngineError as error:
            rejected[kind] = Rejection(error.detail, parted=False)
    return rejected


# --- The upload itself ---


def _replace_float_results(task: Task, data: Data, folder: Path) -> bool:
    """Whether the upload gives something else than the engine's float pass did; then ``float.npy`` holds what it
    gives from now on."""
    path, floats = folder / task.program_file, np.load(folder / "float.npy", mmap_mode="r")
    against = Comparison()
    for start, rows in _rows_of_upload(path, data):
        given = np.asarray(floats[start : start + len(rows)])
        if not np.isfinite(rows).all():
            return False  # its weights are broken, and repaired where the job asks for it: there is nothing to compare
        if given.shape != rows.shape:
            break
        against.add(np.nan_to_num(given), np.nan_to_num(rows))
    else:
        if against.similarity.sqnr_db >= SAME_DB:
            return False
    _write_rows(path, data, folder / "float.npy")
    return True


def _write_rows(path: Path, data: Data, target: Path) -> None:
    parts = [rows for _, rows in _rows_of_upload(path, data)]
    np.save(target.with_suffix(".new.npy"), np.concatenate(parts))
    target.with_suffix(".new.npy").replace(target)


def _rows_of_upload(path: Path, data: Data) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    run, row = load_pt2(path), 0
    for batch in data.batches():
        rows = rows_of("the uploaded program", run, batch)
        yield row, rows
        row += len(rows)


# --- The artifacts against one another ---


def _parted(measured: dict[str, Measured]) -> dict[str, Rejection]:
    """Those that are further from float than the nearest by more than ``MOST_APART_DB``, any way they are loaded."""
    found = {
        kind: {name: given.similarity.sqnr_db for name, given in each.loaders.items()}
        for kind, each in measured.items()
    }
    best = max((sqnr for loaders in found.values() for sqnr in loaders.values()), default=0.0)
    nearest = next((kind for kind, loaders in found.items() if best in loaders.values()), "")
    rejected = {}
    for kind, loaders in found.items():
        loader, sqnr = min(loaders.items(), key=lambda pair: pair[1])
        if sqnr < min(best - MOST_APART_DB, AGREEMENT_DB):
            why = f"{KINDS[kind].file}, loaded by {loader}, is {sqnr} dB from float; {KINDS[nearest].file} is {best} dB"
            rejected[kind] = Rejection(why, parted=True)
    return rejected


# --- What is said of it ---


def _findings(runs: Runs, rejected: dict[str, Rejection], data: Data) -> Iterator[Finding]:
    for kind, rejection in rejected.items():
        layer = _layer_of(kind, runs, data) if rejection.parted else None
        yield _not_delivered(kind, rejection, layer)
        if rejection.parted:
            yield _disagreement(kind, layer)


def _layer_of(kind: str, runs: Runs, data: Data) -> str | None:
    if "pt2" not in runs.kinds:
        return None
    return parting_layer(runs.path("pt2"), KINDS[kind], next(data.batches()), runs.folder)


def _not_delivered(kind: str, rejection: Rejection, layer: str | None) -> Finding:
    where = f" They part at {layer!r}." if layer else ""
    return Finding(
        severity="warning",
        code="artifact-not-written",
        layer=layer,
        message=f"{KINDS[kind].file} is not delivered: {rejection.why.rstrip('.')}.{where}",
        remedy="Use one of the artifacts that were delivered: each was run against the uploaded program.",
    )


def _disagreement(kind: str, layer: str | None) -> Finding:
    remedy = (
        "Leave this layer float to get this kind too." if layer else "Use one of the artifacts that were delivered."
    )
    return Finding(
        severity="warning",
        code="kinds-disagree",
        layer=layer,
        message=f"{KINDS[kind].file} gave another answer than the other artifacts of the same weights"
        + (f", from {layer!r} on." if layer else "."),
        remedy=remedy,
    )
