"""Runs one job, from its id to its end.

    claim -> stage inputs -> convert (a child) -> verify (another child, which never saw the model) -> store -> succeed

A job ends exactly once: it succeeds, fails, is canceled, or goes back into its queue. A worker that loses the lease
writes nothing more, because another worker may run the job by then.
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
from workers.sandbox.child import DeadlinePassed, run_child
from workers.sandbox.fork_server import ChildRequest, ForkServer, ForkServerLost
from workers.sandbox.limits import Limits
from workers.sandbox.usage import LimitExceeded
from workers.scratch import NotAFile, plain_file, read_report, scratch_folder
from workers.settings import WorkerSettings

log = structlog.get_logger()

HoldBlob = Callable[[BlobInfo], None]
NOT_OURS = "not ours"
"""What ``Supervisor.run`` returns for a job that another worker runs, or that has ended."""


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
    the worker is told to shut down."""

    leases: Leases
    blobs: Blobs
    references: References
    forks: ForkServer
    settings: WorkerSettings
    deliver: Callable[[str, int], None]
    stopping: threading.Event

    def run(self, job_id: str) -> str:
        """Run the job if this worker can claim it. Returns how it ended, for the log."""
        claim = self.leases.claim(job_id, self.settings.worker)
        if claim is None:
            return NOT_OURS  # canceled, or delivered twice and running elsewhere
        try:
            self._run_claimed(claim)
            return "succeeded"
        except LostLease:
            return "lost"
        except Exception as error:
            return self._end_without_success(claim, error)

    def _run_claimed(self, claim: Claim) -> None:
        deadline = time.monotonic() + claim.spec.time_limit_s
        with scratch_folder(self.settings.scratch, claim.job_id) as folder, self._hold_artifacts(claim) as hold:
            with Heartbeat(self.leases, claim) as heartbeat:
                self._stage_inputs(claim, folder)
                self._run_stage("convert", folder, deadline, heartbeat)
                self._run_stage("verify", folder, deadline, heartbeat)
                report, artifacts = self._store_results(claim, folder, hold)
            heartbeat.check()
            self.leases.succeed(claim, report, artifacts)

    def _hold_artifacts(self, claim: Claim) -> AbstractContextManager[HoldBlob]:
        """Until the job has succeeded and owns its artifacts, this attempt keeps them from being swept."""
        return self.references.holding(Tenant(claim.model.tenant), f"{claim.job_id}/{claim.token}")

    def _stage_inputs(self, claim: Claim, folder: Path) -> None:
        """Put the uploads and the task where the engine expects them."""
        uploads = {"model": claim.model, "calibration": claim.calibration, "evaluation": claim.evaluation}
        for name, ref in uploads.items():
            if ref is not None:
                self.blobs.within(ref.tenant).fetch(ref.sha256, folder / name)
        task = Task(
            job=claim.job_id,
            model=ReportModel(id=claim.model.id, sha256=claim.model.sha256, format=claim.model.format),
            model_size=claim.model.size,
            spec=claim.spec,
            calibration=_file_name("calibration", claim.calibration),
            evaluation=_file_name("evaluation", claim.evaluation),
            threads=self.settings.threads,
        )
        task.write(folder)

    def _run_stage(self, stage: str, folder: Path, deadline: float, heartbeat: Heartbeat) -> None:
        def check() -> None:
            heartbeat.check()
            if self.stopping.is_set():
                raise Stopping

        request = stage_request(stage, folder, self.settings, deadline)
        outcome = run_child(self.forks, request, deadline, check, heartbeat.relay)
        if outcome.failure is not None:
            log.warning("stage failed", stage=stage, exit_code=outcome.exit_code, output_tail=outcome.output_tail)
            raise StageFailed(outcome.failure)

    def _store_results(self, claim: Claim, folder: Path, hold: HoldBlob) -> tuple[bytes, list[ArtifactRecord]]:
        """Store the artifacts as blobs. Returns the report's bytes and the artifacts' records."""
        body = read_report(folder)
        report = Report.model_validate_json(body)
        if report.job != claim.job_id:
            raise NotAFile(f"the report is of {report.job!r}")
        blobs = self.blobs.within(claim.model.tenant)
        return body, [self._store_artifact(blobs, folder / "out", artifact, hold) for artifact in report.artifacts]

    def _store_artifact(self, blobs: Blobs, folder: Path, artifact: ReportArtifact, hold: HoldBlob) -> ArtifactRecord:
        stored = blobs.put_file(plain_file(folder, artifact.name), hold)
        if (stored.sha256, stored.size) != (artifact.sha256, artifact.size):
            raise NotAFile(f"{artifact.name!r} changed after it was verified")
        return ArtifactRecord(name=artifact.name, kind=artifact.kind, size=stored.size, sha256=stored.sha256)

    def _end_without_success(self, claim: Claim, error: Exception) -> str:
        """Cancel, requeue or fail the job, by what ``error`` says. Returns how it ended."""
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
                    problem = job_problem(error, claim.spec.time_limit_s)
                    self.leases.fail(claim, problem)
                    return problem.slug
        except LostLease:
            return "lost"


def stage_request(stage: str, folder: Path, settings: WorkerSettings, deadline: float) -> ChildRequest:
    """What a child is asked to do, and how much it may take, which depends on the size of its inputs in ``folder``."""
    input_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    limits = Limits.of(input_bytes, settings.threads, max(0.0, deadline - time.monotonic()))
    return {
        "stage": stage,
        "folder": str(folder),
        "threads": settings.threads,
        "limits": limits.request(),
        "sandbox": settings.sandbox,
    }


def job_problem(error: Exception, time_limit_s: float) -> JobProblem:
    """The problem that a job ends in when it raises ``error``."""
    match error:
        case StageFailed() | LimitExceeded():
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


def _file_name(name: str, ref: BlobRef | None) -> str | None:
    return None if ref is None else name
