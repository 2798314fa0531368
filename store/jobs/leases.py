"""Jobs, as a worker sees them: claim, renew, tell, finish. What a worker may rely on:

- ``claim`` gives a job to one worker only, with a fencing token that no earlier claim had.
- Once the lease is lost, every write of the old claim raises ``LostLease``, and nothing of it is stored.
- Writes wait for a Redis that restarts in the middle of a job: they are repeated for as long as a lease lasts, those
  that finish a job for some minutes. Repeating is safe: a claim whose answer was lost is recognized by its mark, the
  end of a job by its token.
"""

from __future__ import annotations

import json
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import redis

from fewbit.contract.problems import JobProblem
from fewbit.contract.spec import JobSpec
from store.jobs.transition import TRANSITION, Move, Outcome
from store.outage import persist
from store.queue import LARGE, SMALL
from store.records import LEASES, PREFIX, ArtifactRecord, BlobRef, decode_ref, job_key
from store.scripts.script import Script
from store.settings import StoreSettings

_STAYS = {"running": "running", "canceling": "canceling"}


class LostLease(Exception):
    """The job is no longer ours: stop at once, and write nothing."""


@dataclass(frozen=True)
class Claim:
    """One attempt at one job. ``token`` fences: a later claim has a greater one."""

    job_id: str
    worker: str
    token: int
    attempt: int
    spec: JobSpec
    model: BlobRef
    calibration: BlobRef | None
    evaluation: BlobRef | None


@dataclass(frozen=True)
class Undelivered:
    """A queued job whose message must be sent again."""

    job_id: str
    model_bytes: int


class Leases:
    """The workers' side; threads may share it. ``finish_s``: how long the end of a job waits for Redis."""

    def __init__(self, redis: redis.Redis, settings: StoreSettings, finish_s: float = 300) -> None:
        self._redis = redis
        self._settings = settings
        self._finish_s = finish_s
        self._transition = Script(redis, TRANSITION)
        self._choose_turn = Script(redis, "jobs/choose_turn")
        self._undelivered = Script(redis, "jobs/undelivered")

    @property
    def heartbeat_s(self) -> float:
        """How often to renew. A heartbeat that is set too long for the lease does not lose it."""
        return min(self._settings.heartbeat_s, self._settings.lease_s / 3)

    def turn(self, job_id: str) -> str:
        """The job to run when a message names ``job_id``: the fair choice among those that wait in the same line."""
        most = self._settings.max_running_jobs
        chosen: bytes = persist(
            lambda: self._choose_turn(prefix=PREFIX, job=job_id, most_running=most), self._settings.lease_s
        )
        return chosen.decode()

    def claim(self, job_id: str, worker: str) -> Claim | None:
        """queued -> running. ``None`` if the job cannot run now: it was claimed, canceled or deleted, or its tenant has
        as many running jobs as it may. Then it stays queued, and is delivered again once one of those has ended."""
        mark = f"{worker}/{uuid.uuid4().hex}"
        lease_s = self._settings.lease_s
        fields = {"claimed_by": mark, "worker": worker}
        most = self._settings.max_running_jobs
        outcome = self._move(Move(job_id, {"queued": "running"}, lease_s=lease_s, fields=fields, most=most))
        ours_already = outcome.status == "running" and outcome.claimed_by == mark
        if not (outcome.moved or ours_already):
            return None
        return persist(lambda: self._read(job_id, worker, outcome.token), lease_s)

    def renew(self, claim: Claim) -> Literal["running", "canceling"]:
        """Keep the job for another lease. The answer tells whether someone asked to cancel it."""
        move = Move(claim.job_id, _STAYS, token=claim.token, lease_s=self._settings.lease_s)
        return cast(Literal["running", "canceling"], self._held(move).status)

    def look(self, claim: Claim) -> Literal["running", "canceling"]:
        """What ``renew`` would answer, and raise; nothing is written."""
        fields = persist(lambda: self._redis.hmget(job_key(claim.job_id), "status", "token"), self._settings.lease_s)
        status, token = ((value or b"").decode() for value in cast("list[bytes | None]", fields))
        if status not in _STAYS or token != str(claim.token):
            raise LostLease(f"{claim.job_id} is {status or 'none'}")
        return cast(Literal["running", "canceling"], status)

    def progress(self, claim: Claim, stage: str, fraction: float) -> None:
        """How far the job is, ``fraction`` from 0 to 1: in the record, and as an event."""
        data = json.dumps({"stage": stage, "fraction": round(min(max(fraction, 0.0), 1.0), 4)})
        fields = {"progress": data}
        self._held(Move(claim.job_id, _STAYS, token=claim.token, event="progress", data=data, fields=fields))

    def log(self, claim: Claim, message: str) -> None:
        """A line for the person who posted the job: an event only."""
        data = json.dumps({"message": message})
        self._held(Move(claim.job_id, _STAYS, token=claim.token, event="log", data=data))

    def succeed(self, claim: Claim, report: bytes, artifacts: Sequence[ArtifactRecord]) -> None:
        """running -> succeeded, results included. A job that was asked to stop meanwhile becomes canceled instead."""
        fields = {"artifacts": json.dumps([artifact.model_dump() for artifact in artifacts])}
        packed = zlib.compress(report)
        self._finish(Move(claim.job_id, {"running": "succeeded"}, token=claim.token, fields=fields, report=packed))

    def fail(self, claim: Claim, problem: JobProblem) -> None:
        """running -> failed. A job that was asked to stop meanwhile becomes canceled instead."""
        fields = {"error": problem.model_dump_json()}
        self._finish(Move(claim.job_id, {"running": "failed"}, token=claim.token, fields=fields))

    def cancel(self, claim: Claim) -> None:
        """canceling -> canceled."""
        self._finish(Move(claim.job_id, {"canceling": "canceled"}, token=claim.token))

    def requeue(self, claim: Claim) -> None:
        """running -> queued, for a worker that leaves in order; the attempt does not count, the message is the caller's
        to send. A job that was asked to stop meanwhile becomes canceled instead."""
        self._finish(Move(claim.job_id, {"running": "queued"}, token=claim.token, give_attempt_back=True))

    def reap(self, now: float | None = None) -> list[Undelivered]:
        """Take back what lost workers held, and name the jobs to deliver again. ``now``: seconds since the epoch, by
        Redis's clock unless told.

        Among them are jobs long queued without a claim, as many as there are messages too few in their line: those got
        lost, and a second delivery is harmless. Each is named once in ``redeliver_s``.
        """
        now_ms = int((self._clock() if now is None else now) * 1000)
        again = [*self._reap_expired(now_ms), *self._reap_waiting(now_ms)]
        return [Undelivered(job_id, self._model_bytes(job_id)) for job_id in dict.fromkeys(again)]

    def _reap_expired(self, now_ms: int) -> list[str]:
        expired = cast("list[bytes]", self._redis.zrangebyscore(LEASES, "-inf", now_ms))
        return [job_id.decode() for job_id in expired if self._take_back(job_id.decode(), now_ms)]

    def _take_back(self, job_id: str, now_ms: int) -> bool:
        """Whether the job is queued again. Without attempts left it has failed; asked to stop, it is canceled."""
        attempts = int(cast("bytes | None", self._redis.hget(job_key(job_id), "attempts")) or 0)
        if attempts < self._settings.max_attempts:
            move = Move(job_id, {"running": "queued"}, expired_before_ms=now_ms)
        else:
            problem = JobProblem.of("worker-lost", f"The worker was lost in each of {attempts} attempts.")
            fields = {"error": problem.model_dump_json()}
            move = Move(job_id, {"running": "failed"}, expired_before_ms=now_ms, fields=fields)
        outcome = self._once(move)
        if outcome.status == "canceling":
            self._once(Move(job_id, {"canceling": "canceled"}, expired_before_ms=now_ms))
        return outcome.moved and outcome.status == "queued"

    def _reap_waiting(self, now_ms: int) -> list[str]:
        before = now_ms - int(self._settings.redeliver_s * 1000)
        found: list[bytes] = []
        for line in (SMALL, LARGE):
            found += self._undelivered(prefix=PREFIX, line=line, now_ms=now_ms, waiting_since_ms=before)
        return [job_id.decode() for job_id in found]

    def _model_bytes(self, job_id: str) -> int:
        ref = decode_ref(cast("bytes | None", self._redis.hget(job_key(job_id), "model_ref")))
        return ref.size if ref else 0

    def _clock(self) -> float:
        seconds, microseconds = self._redis.time()
        return seconds + microseconds / 1e6

    def _read(self, job_id: str, worker: str, token: int) -> Claim:
        names = ["spec", "attempts", "model_ref", "calibration_ref", "evaluation_ref"]
        fields = cast("list[bytes | None]", self._redis.hmget(job_key(job_id), names))
        model = decode_ref(fields[2])
        if fields[0] is None or model is None:  # a running job cannot be deleted
            raise LostLease(job_id)
        spec = JobSpec.model_validate_json(fields[0])
        inputs = (model, decode_ref(fields[3]), decode_ref(fields[4]))
        return Claim(job_id, worker, token, int(fields[1] or 0), spec, *inputs)

    def _once(self, move: Move) -> Outcome:
        return Outcome.of(self._transition(move.keys, move.report, **move.arguments))

    def _move(self, move: Move) -> Outcome:
        return persist(lambda: self._once(move), self._settings.lease_s)

    def _held(self, move: Move) -> Outcome:
        outcome = self._move(move)
        if not outcome.moved:
            raise LostLease(f"{move.job_id} is {outcome.status}")
        return outcome

    def _finish(self, move: Move) -> None:
        """Make the move, or find that it was made; a cancel that came first wins."""
        outcome = persist(lambda: self._once(move), self._finish_s)
        if outcome.moved:
            return
        if outcome.token != move.token:
            raise LostLease(f"{move.job_id} is {outcome.status}, and no longer ours")
        if outcome.status == "canceling":
            self._finish(Move(move.job_id, {"canceling": "canceled"}, token=move.token))
        elif outcome.status not in move.moves.values():
            raise LostLease(f"{move.job_id} is {outcome.status}")
