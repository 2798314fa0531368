"""One job, from its id to its end.

    claim -> stage inputs -> convert (first fork) -> verify (second fork, which never saw the model) -> store -> succeed

Whatever happens in between ends in exactly one of ``succeed``, ``fail``, ``cancel``, ``requeue``, or, when the lease is
lost, in nothing at all: the job is someone else's by then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import ValidationError

from fewbit.contract.problems import JobProblem
from fewbit.contract.report import Report, ReportArtifact, ReportModel
from store.blobs.blob_store import BlobInfo, Blobs
from store.blobs.references import References
from store.jobs.leases import Claim, Leases, LostLease
from store.records import ArtifactRecord, BlobRef
from store.tenancy.tenants import Tenant
from workers.engine.task import Task
from workers.heartbeat import Canceled, Heartbeat
from workers.sandbox.child import DeadlinePassed, TooMuch, run_child
from workers.sandbox.fork_server import ForkServer, ForkServerLost, Request
from workers.sandbox.limits import Limits
from workers.scratch import NotAFile, plain_file, read_report, scratch_folder
from workers.settings import WorkerSettings

log = structlog.get_logger()

Hold = Callable[[BlobInfo], None]
NOT_OURS = "not ours"
"""How a job ends here that someone else runs, or nobody any more."""


class Stopping(Exception):
    """This worker is being shut down."""


class StageFailed(Exception):
    """A stage of the engine ended in a problem."""

    def __init__(self, problem: JobProblem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


@dataclass(frozen=True)
class Supervisor:
    """Runs jobs one at a time. ``deliver(job_id, model_bytes)`` sends a job's message again; ``stopping`` is set when
    the worker is told to leave."""

    leases: Leases
    blobs: Blobs
    references: References
    forks: ForkServer
    settings: WorkerSettings
    deliver: Callable[[str, int], None]
    stopping: threading.Event

    def run(self, job_id: str) -> str:
        """Run the job if it is ours to run. Returns how it ended, for the log."""
        claim = self.leases.claim(job_id, self.settings.worker)
        if claim is None:
            return NOT_OURS  # canceled, or a second delivery of what someone runs already
        deadline = time.monotonic() + claim.spec.time_limit_s
        try:
            with scratch_folder(self.settings.scratch, job_id) as folder, self._holding(claim) as hold:
                with Heartbeat(self.leases, claim) as heartbeat:
                    self._stage_inputs(claim, folder)
                    self._run_stage("convert", folder, deadline, heartbeat)
                    self._run_stage("verify", folder, deadline, heartbeat)
                    report, artifacts = self._store_results(claim, folder, hold)
                heartbeat.check()
                self.leases.succeed(claim, report, artifacts)
            return "succeeded"
        except LostLease:
            return "lost"
        except Exception as error:
            return self._end(claim, error)

    def _stage_inputs(self, claim: Claim, folder: Path) -> None:
        """The uploads' bytes and the task, as the engine expects them."""
        names = {"model": claim.model, "calibration": claim.calibration, "evaluation": claim.evaluation}
        for name, ref in names.items():
            if ref is not None:
                self.blobs.within(ref.tenant).fetch(ref.sha256, folder / name)
        task = Task(
            job=claim.job_id,
            model=ReportModel(id=claim.model.id, sha256=claim.model.sha256, format=claim.model.format),
            model_size=claim.model.size,
            spec=claim.spec,
            calibration=_name("calibration", claim.calibration),
            evaluation=_name("evaluation", claim.evaluation),
            threads=self.settings.threads,
        )
        task.write(folder)

    def _run_stage(self, stage: str, folder: Path, deadline: float, heartbeat: Heartbeat) -> None:
        def check() -> None:
            heartbeat.check()
            if self.stopping.is_set():
                raise Stopping

        order = order_of(stage, folder, self.settings, deadline)
        ended = run_child(self.forks, order, deadline, check, heartbeat.hear)
        if ended.failure is not None:
            log.warning("stage failed", stage=stage, exit_code=ended.exit_code, last_words=ended.last_words)
            raise StageFailed(ended.failure)

    def _holding(self, claim: Claim) -> AbstractContextManager[Hold]:
        """Artifacts are this attempt's until the job has them, which it only has once it has succeeded."""
        return self.references.holding(Tenant(claim.model.tenant), f"{claim.job_id}/{claim.token}")

    def _store_results(self, claim: Claim, folder: Path, hold: Hold) -> tuple[bytes, list[ArtifactRecord]]:
        """The report's bytes, and its artifacts, which are blobs from here on."""
        body = read_report(folder)
        report = Report.model_validate_json(body)
        if report.job != claim.job_id:
            raise NotAFile(f"the report is of {report.job!r}")
        blobs = self.blobs.within(claim.model.tenant)
        return body, [self._store_artifact(blobs, folder / "out", artifact, hold) for artifact in report.artifacts]

    def _store_artifact(self, blobs: Blobs, folder: Path, artifact: ReportArtifact, hold: Hold) -> ArtifactRecord:
        stored = blobs.put_file(plain_file(folder, artifact.name), hold)
        if (stored.sha256, stored.size) != (artifact.sha256, artifact.size):
            raise NotAFile(f"{artifact.name!r} changed after it was verified")
        return ArtifactRecord(name=artifact.name, kind=artifact.kind, size=stored.size, sha256=stored.sha256)

    def _end(self, claim: Claim, error: Exception) -> str:
        """Every way to end but success. Raises nothing that the lease does not."""
        try:
            match error:
                case Canceled():
                    self.leases.cancel(claim)
                    return "canceled"
                case Stopping():
                    self.leases.requeue(claim)
                    self.deliver(claim.job_id, claim.model.size)
                    return "requeued"
                case _:
                    problem = problem_of(error, claim.spec.time_limit_s)
                    self.leases.fail(claim, problem)
                    return problem.slug
        except LostLease:
            return "lost"


def order_of(stage: str, folder: Path, settings: WorkerSettings, deadline: float) -> Request:
    """What one child is asked to do, and what it may take: by the inputs that lie in its folder."""
    inputs = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    limits = Limits.of(inputs, settings.threads, max(0.0, deadline - time.monotonic()))
    return {
        "stage": stage,
        "folder": str(folder),
        "threads": settings.threads,
        "limits": limits.request(),
        "sandbox": settings.sandbox,
    }


def problem_of(error: Exception, time_limit_s: float) -> JobProblem:
    """The problem of the catalogue that tells what ``error`` means for the job."""
    match error:
        case StageFailed():
            return error.problem
        case TooMuch():
            return error.problem
        case DeadlinePassed():
            return JobProblem.of("time-limit-exceeded", f"The engine was stopped after {time_limit_s:g} s.")
        case ForkServerLost():
            return JobProblem.of("internal-error", "The worker lost its engine; it has started a new one.")
        case NotAFile() | ValidationError():
            log.error("unusable result", error=str(error))
            return JobProblem.of("internal-error", f"The engine's result cannot be used: {str(error)[:300]}.")
        case FileNotFoundError():
            return JobProblem.of("internal-error", "An upload of this job is no longer in the store.")
        case _:
            log.exception("supervisor failed", exc_info=error)
            return JobProblem.of("internal-error", f"The worker failed: {type(error).__name__}.")


def _name(name: str, ref: BlobRef | None) -> str | None:
    return None if ref is None else name
