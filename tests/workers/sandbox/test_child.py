"""How the watcher treats a child that lies, floods, or sends nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from fewbit.contract.report import ReportModel
from fewbit.contract.spec import JobSpec
from workers.engine.task import Task
from workers.sandbox.child import DeadlinePassed, run_child
from workers.sandbox.fork_server import ForkServer
from workers.sandbox.outcome import ChildOutcome


@pytest.fixture
def forks(scripted: ForkServer) -> ForkServer:
    return scripted


def run(
    forks: ForkServer, folder: Path, deed: str, messages: list[Any] | None = None, seconds: float = 20
) -> ChildOutcome:
    Task(
        job="job_1",
        model=ReportModel(id="mdl_1", sha256="", format="pt2"),
        model_size=1,
        spec=JobSpec(model="mdl_1", labels={"deed": deed}),
        threads=1,
    ).write(folder)
    received = messages if messages is not None else []
    request = {"stage": "convert", "folder": str(folder), "threads": 1}
    return run_child(forks, request, time.monotonic() + seconds, on_message=lambda *message: received.append(message))


def test_progress_and_logs_are_passed_on(forks: ForkServer, tmp_path: Path) -> None:
    messages: list[Any] = []
    assert run(forks, tmp_path, "", messages).failure is None
    assert messages == [("progress", ("convert", 0.5)), ("log", "converting")]


def test_nonsense_is_dropped(forks: ForkServer, tmp_path: Path) -> None:
    messages: list[Any] = []
    assert run(forks, tmp_path, "babble", messages).failure is None
    assert messages[0] == ("log", "? lone")
    assert len(messages) == 3


def test_a_flood_of_messages_arrives_whole(forks: ForkServer, tmp_path: Path) -> None:
    messages: list[Any] = []
    run(forks, tmp_path, "flood", messages)
    assert len(messages) == 20_002


def test_a_problem_is_taken_from_the_catalogue(forks: ForkServer, tmp_path: Path) -> None:
    failure = run(forks, tmp_path, "fail").failure
    assert failure is not None
    assert (failure.slug, failure.detail) == ("calibration-failed", "batch 3 does not fit")


def test_leaving_without_a_result_is_an_internal_error(forks: ForkServer, tmp_path: Path) -> None:
    failure = run(forks, tmp_path, "nothing").failure
    assert failure is not None
    assert failure.slug == "internal-error"


def test_a_deadline_is_kept(forks: ForkServer, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlinePassed):
        run(forks, tmp_path, "sleep", seconds=0.3)
    assert time.monotonic() - started < 1
