"""Each hostile upload ends as its problem and does nothing: with both walls, and with either of them alone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.corpus import CASES, PICKLES, RUNNING, Case
from tests.workers import uploads
from tests.workers.orders import order
from workers.forks import ForkServer
from workers.supervisor import StageFailed, problem_of
from workers.watch import DeadlinePassed, TooMuch, run_child

SECRET = "the weights of another tenant"


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    server = ForkServer("tests.hostile.unguarded:main", "tests.hostile.unguarded:preload")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uploads.mlp(tmp_path_factory.mktemp("honest") / "model")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Another job's scratch folder."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text(SECRET)
    return folder


def build(case: Case, tmp_path: Path, canary: Path) -> Path:
    (tmp_path / "made").mkdir()
    (tmp_path / "job").mkdir(mode=0o700)
    shutil.copy(case.build(tmp_path / "made", canary), tmp_path / "job" / "model")
    return tmp_path / "job"


def outcome(forks: ForkServer, folder: Path, case: Case, without: str | None = None, seconds: float = 30) -> str:
    """The slug the inspection ends in; ``ready`` if it does not fail."""
    request = order("inspect", folder, format=case.format, without=without)
    try:
        ended = run_child(forks, request, time.monotonic() + seconds)
        if ended.failure is None:
            return "ready"
        raise StageFailed(ended.failure)
    except (StageFailed, DeadlinePassed, TooMuch) as error:
        return problem_of(error, seconds).slug


def assert_untouched(outside: Path) -> None:
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == SECRET


def assert_takes_the_next(forks: ForkServer, honest: Path, tmp_path: Path) -> None:
    (tmp_path / "next").mkdir(mode=0o700)
    shutil.copy(honest, tmp_path / "next" / "model")
    assert outcome(forks, tmp_path / "next", Case("honest", "pt2", (), lambda *_: honest)) == "ready"


def test_there_are_enough() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_walls(forks: ForkServer, tmp_path: Path, outside: Path, honest: Path, case: Case) -> None:
    folder = build(case, tmp_path, outside / "canary")
    assert outcome(forks, folder, case) in case.slugs
    assert_untouched(outside)
    assert_takes_the_next(forks, honest, tmp_path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_fence_alone(forks: ForkServer, tmp_path: Path, outside: Path, case: Case) -> None:
    """Whatever it ends in: nothing outside is made, changed or read."""
    folder = build(case, tmp_path, outside / "canary")
    outcome(forks, folder, case, without="scan", seconds=10)
    assert_untouched(outside)


LIVE = [case for case in PICKLES if case.name in ("sample inputs: os.system", "sample inputs: exec")]


@pytest.mark.parametrize("case", LIVE, ids=lambda case: case.name)
def test_with_neither_wall_it_would_happen(forks: ForkServer, tmp_path: Path, outside: Path, case: Case) -> None:
    """The corpus is live: what the walls hold back is there."""
    folder = build(case, tmp_path, outside / "canary")
    outcome(forks, folder, case, without="both")
    assert (outside / "canary").exists()


@pytest.mark.parametrize("case", LIVE, ids=lambda case: case.name)
def test_what_the_fence_stops_is_named(forks: ForkServer, tmp_path: Path, outside: Path, case: Case) -> None:
    folder = build(case, tmp_path, outside / "canary")
    assert outcome(forks, folder, case, without="scan") == "sandbox-violation"


@pytest.mark.parametrize("case", PICKLES, ids=lambda case: case.name)
def test_the_scan_alone(forks: ForkServer, tmp_path: Path, outside: Path, case: Case) -> None:
    folder = build(case, tmp_path, outside / "canary")
    assert outcome(forks, folder, case, without="fence") in case.slugs
    assert_untouched(outside)


@pytest.mark.parametrize(
    ("name", "slugs"),
    [
        ("read", {"sandbox-violation"}),
        ("write", {"sandbox-violation"}),
        ("allocate", {"out-of-memory"}),
        ("loop", {"time-limit-exceeded"}),
        ("print", {"time-limit-exceeded"}),  # by then it has printed a gigabyte, or most of it
    ],
)
def test_torchscript_that_runs_is_held_by_the_fence(
    forks: ForkServer, tmp_path: Path, outside: Path, honest: Path, name: str, slugs: set[str]
) -> None:
    folder = build(RUNNING[name], tmp_path, outside / "canary")
    assert outcome(forks, folder, RUNNING[name], without="scan", seconds=4) in slugs
    assert_untouched(outside)
    assert_takes_the_next(forks, honest, tmp_path)
