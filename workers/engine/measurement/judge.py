"""The judge: what may be delivered.

Every artifact is loaded and run, in each documented way, before this process opens the upload. Then the upload itself
is run: as it came, or with those weights repaired that the job asks to repair. The engine's float results count only if
they are the same, and are replaced if not. An artifact that fails, that is further from float than the reference
explains, or than another one, is not delivered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from fewbit.contract.report import Finding
from workers.engine.artifacts.kinds import KINDS, Run, run_exported
from workers.engine.data import Data
from workers.engine.draft import Draft
from workers.engine.graph.pt2_reader import read_exported_file
from workers.engine.measurement.parting import parting_layer
from workers.engine.measurement.verification import (
    AGREEMENT_DB,
    AnswersDiffer,
    LoadedArtifacts,
    MeasuredArtifact,
    Rows,
    Standard,
    measure_artifact,
    representative,
    run_batch,
)
from workers.engine.metrics.similarity import Comparison
from workers.engine.quantization.repair import finite
from workers.engine.task import Task
from workers.errors import EngineError

SAME_DB = 60.0  # float32 sums in another order are above 100; batch norms folded in half precision are below
MOST_APART_DB = 3.0


@dataclass(frozen=True)
class Judgement:
    """``measured``: what is delivered and runs; ``findings``: what is not, and why."""

    measured: dict[str, MeasuredArtifact]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Rejection:
    """``disagrees``: it runs, and gives another answer than it should."""

    why: str
    disagrees: bool


def judge(
    artifacts: LoadedArtifacts, task: Task, draft: Draft, data: Data, folder: Path, advance: Callable[[float], None]
) -> Judgement:
    """Measure every artifact, and reject those that are not right: their files are deleted.

    Raises ``EngineError('verification-failed')`` when none is left.
    """
    requested = (*artifacts.kinds, *artifacts.stores)
    measured, rejected = _measure_all(artifacts, draft, data, folder, advance)
    if not draft.random and artifacts.kinds and _replace_float_results(task, draft, data, folder):
        artifacts.forget_loaded()
        measured, rejected = _measure_all(artifacts, draft, data, folder, lambda _: None)
    if Standard.read(folder, draft).comparable:
        rejected |= _outliers(measured)
    rejected |= _wrong_stores(artifacts)
    findings = tuple(_findings(artifacts, rejected, data))
    if requested and set(rejected) >= set(requested):
        raise EngineError("verification-failed", next(iter(rejected.values())).why)
    before = representative(artifacts.kinds) if artifacts.kinds else None
    for kind in rejected:
        artifacts.reject(kind)
        measured.pop(kind, None)
    if artifacts.kinds and representative(artifacts.kinds) != before:  # the report shows another one's kernels
        artifacts.forget_loaded()
        measured, _ = _measure_all(artifacts, draft, data, folder, lambda _: None)
    return Judgement(measured, findings)


def _measure_all(
    artifacts: LoadedArtifacts, draft: Draft, data: Data, folder: Path, advance: Callable[[float], None]
) -> tuple[dict[str, MeasuredArtifact], dict[str, Rejection]]:
    measured, rejected = dict[str, MeasuredArtifact](), dict[str, Rejection]()
    standard, count = Standard.read(folder, draft), len(artifacts.kinds)
    for index, kind in enumerate(artifacts.kinds):

        def advance_kind(share: float, done: int = index) -> None:
            advance((done + share) / count)

        try:
            measured[kind] = measure_artifact(kind, artifacts, draft, data, standard, advance_kind)
        except EngineError as error:
            rejected[kind] = Rejection(error.detail, disagrees=isinstance(error, AnswersDiffer))
    return measured, rejected


def _wrong_stores(artifacts: LoadedArtifacts) -> dict[str, Rejection]:
    rejected = {}
    for kind in artifacts.stores:
        try:
            artifacts.check_store(kind)
        except EngineError as error:
            rejected[kind] = Rejection(error.detail, disagrees=False)
    return rejected


# --- The upload itself ---


def _replace_float_results(task: Task, draft: Draft, data: Data, folder: Path) -> bool:
    """Whether the upload returns something else than the engine's float pass did; then ``float.npy`` holds what the
    upload returns from now on."""
    path, floats = folder / task.program_file, folder / "float.npy"
    if _is_same(np.load(floats, mmap_mode="r"), _upload_rows(path, draft, data)):
        return False
    if draft.repaired and not _can_repair(path, draft.repaired):
        return False
    new = floats.with_suffix(".new.npy")
    np.save(new, np.concatenate(list(_upload_rows(path, draft, data))))
    new.replace(floats)
    return True


def _is_same(floats: Rows, upload: Iterator[Rows]) -> bool:
    comparison, start = Comparison(), 0
    for rows in upload:
        computed = np.asarray(floats[start : start + len(rows)])
        if computed.shape != rows.shape:
            return False
        comparison.add(np.nan_to_num(computed), np.nan_to_num(rows))
        start += len(rows)
    return comparison.similarity.sqnr_db >= SAME_DB


def _upload_rows(path: Path, draft: Draft, data: Data) -> Iterator[Rows]:
    run = _load_upload(path, draft.repaired)
    for batch in data.batches():
        yield run_batch("the uploaded program", run, batch)


def _load_upload(path: Path, repaired: Collection[str]) -> Run:
    exported = read_exported_file(path)
    for value in _weights(exported, repaired):
        with torch.no_grad():
            value.copy_(finite(value))  # in place: the same tensor may have several names
    return run_exported(exported)


def _can_repair(path: Path, repaired: Collection[str]) -> bool:
    """Whether the upload holds the repaired weights under the same names, and none is infinite: the engine repairs
    after folding batch norms, and then another number takes the place of infinity."""
    weights = _weights(read_exported_file(path), repaired)
    return len(weights) == len(set(repaired)) and not any(bool(torch.isinf(weight).any()) for weight in weights)


def _weights(exported: ExportedProgram, names: Collection[str]) -> list[Tensor]:
    values = (exported.state_dict.get(name, exported.constants.get(name)) for name in sorted(set(names)))
    return [value for value in values if isinstance(value, Tensor)]


# --- The artifacts against one another ---


def _outliers(measured: dict[str, MeasuredArtifact]) -> dict[str, Rejection]:
    """Those that are further from float than the nearest by more than ``MOST_APART_DB``, any way they are loaded."""
    found = {
        kind: {loader: comparison.similarity.sqnr_db for loader, comparison in artifact.loaders.items()}
        for kind, artifact in measured.items()
    }
    best = max((sqnr for loaders in found.values() for sqnr in loaders.values()), default=0.0)
    nearest = next((kind for kind, loaders in found.items() if best in loaders.values()), "")
    rejected = {}
    for kind, loaders in found.items():
        loader, sqnr = min(loaders.items(), key=lambda pair: pair[1])
        if sqnr < min(best - MOST_APART_DB, AGREEMENT_DB):
            why = f"{KINDS[kind].file}, loaded by {loader}, is {sqnr} dB from float; {KINDS[nearest].file} is {best} dB"
            rejected[kind] = Rejection(why, disagrees=True)
    return rejected


# --- What is said of it ---


def _findings(artifacts: LoadedArtifacts, rejected: dict[str, Rejection], data: Data) -> Iterator[Finding]:
    for kind, rejection in rejected.items():
        layer = _first_difference(kind, artifacts, data) if rejection.disagrees else None
        yield _not_delivered(kind, rejection, layer)
        if rejection.disagrees:
            yield _disagreement(kind, layer)


def _first_difference(kind: str, artifacts: LoadedArtifacts, data: Data) -> str | None:
    if "pt2" not in artifacts.kinds:
        return None
    return parting_layer(artifacts.path("pt2"), KINDS[kind], next(data.batches()), artifacts.folder)


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
