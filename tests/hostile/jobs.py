"""A whole job of one upload in the fence: inspected, converted, verified."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fewbit.contract.report import Report, ReportModel
from fewbit.contract.spec import JobSpec
from tests.workers.stage_requests import stage_request
from workers.engine.task import Task
from workers.sandbox.child import run_child
from workers.sandbox.fork_server import ForkServer


def run_job(forks: ForkServer, folder: Path, **spec: Any) -> Report:
    """Of ``folder/model``, a ``.pt2`` that is taken. Its JSON holds no NaN, which JSON does not have."""
    task = Task(
        job="job_1",
        model=ReportModel(id="mdl_1", sha256="0" * 64, format="pt2"),
        model_size=(folder / "model").stat().st_size,
        spec=JobSpec(model="mdl_1", **spec),
        threads=1,
    )
    task.write(folder)
    for stage in ("inspect", "convert", "verify"):
        outcome = run_child(forks, stage_request(stage, folder), time.monotonic() + 60)
        assert outcome.failure is None, outcome.output_tail
    written = (folder / "report.json").read_text()
    json.loads(written, parse_constant=_refuse)
    return Report.model_validate_json(written)


def _refuse(constant: str) -> None:
    raise AssertionError(f"the report holds {constant}")
