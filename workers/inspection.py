"""One inspection of an upload: scan it, find its inputs and layers, say ``ready`` or ``rejected``.

It has no lease: it takes seconds, two of the same upload come to the same end, and the reaper delivers it again if a
worker dies over it.
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
from workers.supervisor import StageFailed, Stopping, order_of, problem_of

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
        """Inspect the model if it still waits for that. Returns how it ended, for the log."""
        blob = self.models.inspecting(model_id)
        if blob is None:
            return "not waiting"  # deleted, or inspected already
        try:
            inspection = self._inspect(model_id, blob)
        except Stopping:
            self.deliver(model_id)
            return "handed back"
        except Exception as error:
            problem = problem_of(error, self.time_limit_s)
            self.models.reject(model_id, problem)
            return problem.slug
        self.models.ready(model_id, inspection)
        return "ready"

    def _inspect(self, model_id: str, blob: BlobRef) -> Inspection:
        deadline = time.monotonic() + self.time_limit_s
        with scratch_folder(self.settings.scratch, model_id) as folder:
            self.blobs.within(blob.tenant).fetch(blob.sha256, folder / "model")
            order = order_of("inspect", folder, self.settings, deadline)
            ended = run_child(self.forks, order, deadline, self._check)
        if ended.failure is not None:
            log.warning("inspection failed", exit_code=ended.exit_code, last_words=ended.last_words)
            raise StageFailed(ended.failure)
        try:
            return Inspection.model_validate((ended.done or {}).get("inspection"))
        except ValidationError as error:
            log.error("unusable inspection", error=str(error))
            raise StageFailed(JobProblem.of("internal-error", "The engine's inspection cannot be read.")) from error

    def _check(self) -> None:
        if self.stopping.is_set():
            raise Stopping
