"""Programs nobody wrote, against the judge: none ends in ``pass`` with a file that gives another answer than it says.

``FEWBIT_PROGRAMS`` is how many: without it 64, which take two minutes of one core."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.workers.engine.programs.check import APART_DB, run_program
from tests.workers.engine.programs.generated import DRAWN, STEPS, Drawn

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]
PROGRAMS = int(os.environ.get("FEWBIT_PROGRAMS", "64"))
KINDS = ("torchscript", "pt2")  # the exporter to ONNX takes seconds for each program
OFF = {
    **dict.fromkeys(("weights", "activations", "errors", "saturation", "calibration", "latency"), False),
    "sensitivity": "off",
}
CEILING_DB = 60.0  # above it the last bits of float32 decide


def test_at_least_forty_operators_are_drawn_from() -> None:
    assert len(STEPS) >= 40


@given(drawn=DRAWN)
@settings(
    max_examples=PROGRAMS, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
def test_every_delivered_file_gives_what_the_report_says(drawn: Drawn) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = run_program(drawn.program(), Path(folder), KINDS, method=drawn.method, report=OFF)
    artifacts = {artifact.kind: artifact for artifact in found.run.report.artifacts}
    assert set(artifacts) == set(KINDS), [finding.message for finding in found.run.report.findings]
    told = {name: output.sqnr_db for artifact in artifacts.values() for name, output in artifact.loaders.items()}
    assert set(told) == set(found.sqnr_db)
    for loader, sqnr in found.sqnr_db.items():
        assert sqnr >= min(told[loader], CEILING_DB) - APART_DB, (loader, sqnr, told[loader])
