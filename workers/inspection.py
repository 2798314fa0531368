"""Inspects one upload: scan it, find its inputs and layers, record it as ``ready`` or ``rejected``.

An inspection has no lease. It takes seconds, two of the same upload end the same, and the reaper delivers it again when
a worker dies meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from pydantic import ValidationError

from fewbit.contract.problems import JobProblem
from store.blobs.blob_store import Blobs
from store.models import InspectedModels
from store.records import BlobRef
from workers.engine.task import Inspection
from workers.sandbox.child import run_child
from workers.sandbox.fork_server import ForkServer
from workers.scratch import scratch_folder
from workers.settings import WorkerSettings
from workers.supervisor import StageFailed, Stopping, job_problem, stage_request

log = structlog.get_logger()


@dataclass(frozen=True)
class Inspector:
    """Inspects uploads one at a time."""

    models: InspectedModels
    blobs: Blobs
    forks: ForkServer
    settings: WorkerSettings
    time_limit_s: float
    deliver: Callable[[str], None]
    stopping: threading.Event

    def run(self, model_id: str) -> str:
        """Inspect the model if it is not inspected yet. Returns how it ended, for the log."""
        blob = self.models.inspecting(model_id)
        if blob is None:
            return "not waiting"  # deleted, or inspected already
        try:
            inspection = self._inspect(model_id, blob)
        except Stopping:
            self.deliver(model_id)
            return "handed back"
        except Exception as error:
            problem = job_problem(error, self.time_limit_s)
            self.models.reject(model_id, problem)
            return problem.slug
        self.models.ready(model_id, inspection)
        return "ready"

    def _inspect(self, model_id: str, blob: BlobRef) -> Inspection:
        deadline = time.monotonic() + self.time_limit_s
        with scratch_folder(self.settings.scratch, model_id) as folder:
            self.blobs.within(blob.tenant).fetch(blob.sha256, folder / "model")
            request = stage_request("inspect", folder, self.settings, deadline)
            outcome = run_child(self.forks, request, deadline, self._check)
        if outcome.failure is not None:
            log.warning("inspection failed", exit_code=outcome.exit_code, output_tail=outcome.output_tail)
            raise StageFailed(outcome.failure)
        try:
            return Inspection.model_validate((outcome.result or {}).get("inspection"))
        except ValidationError as error:
            log.error("unusable inspection", error=str(error))
            raise StageFailed(JobProblem.of("internal-error", "The engine's inspection cannot be read.")) from error

    def _check(self) -> None:
        if self.stopping.is_set():
            raise Stopping
