"""Each hostile dataset behind the gateway's door, as if that had let it in: the fence and the engine hold it alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fewbit.contract.report import ReportModel
from fewbit.contract.spec import JobSpec
from tests.hostile.case import STARVED, Case, honest
from tests.hostile.datasets import HOSTILE
from tests.hostile.evidence import RecordingForkServer, Surroundings, attack
from workers.engine.task import Task

FAILED = "calibration-failed"


def with_dataset(name: str, made: Path) -> Path:
    """A static job of an honest model, whose calibration data are these."""
    folder = made / "job"
    folder.mkdir()
    shutil.copy(honest(made), folder / "model")
    (folder / "calibration").write_bytes(HOSTILE[name][1])
    Task(
        job="job_1",
        model=ReportModel(id="mdl_1", sha256="0" * 64, format="pt2"),
        model_size=1,
        spec=JobSpec.model_validate({"model": "mdl_1", "method": "static", "calibration": {"dataset": "dst_1"}}),
        calibration="calibration",
        threads=1,
    ).write(folder)
    return folder


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_dataset_past_the_gateway_does_no_harm(
    forks: RecordingForkServer, tmp_path: Path, here: Surroundings, name: str
) -> None:
    case = Case(name, "pt2", (FAILED, STARVED), lambda made, _: with_dataset(name, made), stage="convert")
    ending = attack(forks, here, case, tmp_path / "made")
    assert ending.slug in case.slugs, ending.detail
    assert ending.traces == ()
