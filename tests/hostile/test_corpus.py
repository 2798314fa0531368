"""Each hostile upload ends as its problem, in time, and leaves no trace: with both walls, and with either alone.

What counts as a trace is in ``evidence.py``; with neither wall there are some.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tests.hostile.case import Case
from tests.hostile.corpus import CASES, PICKLES
from tests.hostile.evidence import RecordingForkServer, Surroundings, attack
from tests.hostile.pickles import ACTS
from tests.hostile.programs import RUNNING
from tests.workers import uploads
from tests.workers.stage_requests import stage_request
from workers.sandbox.child import run_child

AT_ONCE_S = 10.0  # an honest inspection takes half a second on an idle machine


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uploads.mlp(tmp_path_factory.mktemp("honest") / "model")


def assert_takes_the_next(forks: RecordingForkServer, honest: Path, tmp_path: Path, server: int) -> None:
    """The same fork server, not a new one in its place."""
    (tmp_path / "next").mkdir(mode=0o700)
    shutil.copy(honest, tmp_path / "next" / "model")
    request = stage_request("inspect", tmp_path / "next", format="pt2", without=None)
    ended = run_child(forks, request, time.monotonic() + AT_ONCE_S)
    assert ended.failure is None
    assert forks.pid == server


def test_the_corpus_is_large_enough() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_scan_and_fence_together_stop_every_upload(
    forks: RecordingForkServer, tmp_path: Path, here: Surroundings, honest: Path, case: Case
) -> None:
    server = forks.pid
    ending = attack(forks, here, case, tmp_path / "made")
    assert ending.slug in case.slugs, ending.detail
    assert ending.traces == ()
    assert_takes_the_next(forks, honest, tmp_path, server)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_fence_alone_stops_every_upload(
    forks: RecordingForkServer, tmp_path: Path, here: Surroundings, honest: Path, case: Case
) -> None:
    server = forks.pid
    ending = attack(forks, here, case, tmp_path / "made", without="scan")
    assert ending.slug in case.alone, ending.detail
    assert ending.traces == ()
    assert_takes_the_next(forks, honest, tmp_path, server)


@pytest.mark.parametrize("case", PICKLES, ids=lambda case: case.name)
def test_the_scan_alone_stops_every_upload(
    forks: RecordingForkServer, tmp_path: Path, here: Surroundings, case: Case
) -> None:
    ending = attack(forks, here, case, tmp_path / "made", without="fence")
    assert ending.slug in case.slugs, ending.detail
    assert ending.traces == ()


LIVE = [
    *(case for case in PICKLES if case.name in {f"sample inputs: {name}" for name in ACTS}),
    *(case for case in RUNNING if case.name.endswith(("steal", "write", "save"))),
]


@pytest.mark.parametrize("case", LIVE, ids=lambda case: case.name)
def test_without_scan_and_fence_the_attack_succeeds(
    forks: RecordingForkServer, tmp_path: Path, here: Surroundings, case: Case
) -> None:
    """The corpus is live, and the evidence is found: what the walls hold back is there."""
    assert attack(forks, here, case, tmp_path / "made", without="both").traces != ()


SILENT = ("sample inputs: times", "TorchScript: save")  # Python does not say which file it was, TorchScript nothing


@pytest.mark.parametrize("case", [case for case in LIVE if case.name not in SILENT], ids=lambda case: case.name)
def test_what_the_fence_refuses_is_named(
    forks: RecordingForkServer, tmp_path: Path, here: Surroundings, case: Case
) -> None:
    ending = attack(forks, here, case, tmp_path / "made", without="scan")
    named = ("system call", "secret", here.canary.name, str(here.canary.parent))
    assert any(words in ending.detail for words in named), ending.detail
