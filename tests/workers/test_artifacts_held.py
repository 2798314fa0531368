"""From the moment an artifact is stored somebody holds it: its job for good, or the attempt until it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from store.blobs.references import HELD_S
from store.jobs.leases import Claim, Leases
from store.records import ArtifactRecord
from store.tenancy.tenants import Tenant
from tests.workers.scripted_engine import ARTIFACT
from tests.workers.world import World


class BeforeTheEnd(Leases):
    """Something happens after the artifacts are stored and before the job succeeds."""

    def __init__(self, world: World, happens: Callable[[], None]) -> None:
        super().__init__(world.redis, world.store)
        self._happens = happens

    def succeed(self, claim: Claim, report: bytes, artifacts: Sequence[ArtifactRecord]) -> None:
        self._happens()
        super().succeed(claim, report, artifacts)


def run(world: World, job: str, happens: Callable[[], None]) -> str:
    return replace(world.supervisor, leases=BeforeTheEnd(world, happens)).run(job)


def test_deleting_a_job_keeps_equal_artifacts_of_a_job_about_to_succeed(world: World) -> None:
    first, second = world.job(), world.job()
    world.supervisor.run(first)
    assert run(world, second, lambda: world.delete(first)) == "succeeded"
    (artifact,) = world.artifacts(second)
    assert world.blob(artifact.sha256) == ARTIFACT
    world.delete(second)
    assert (world.has_blob(ARTIFACT), world.stored_bytes()) == (False, 0)


@pytest.mark.parametrize("happens", [World.cancel, World.take_over], ids=["canceled", "lost"])
def test_a_job_that_fails_to_succeed_leaves_no_artifact(world: World, happens: Callable[[World, str], None]) -> None:
    job = world.job()
    run(world, job, lambda: happens(world, job))
    assert world.status(job) in ("canceled", "running")
    assert (world.has_blob(ARTIFACT), world.stored_bytes()) == (False, 0)


def test_an_artifact_changed_after_verification_is_not_kept(world: World) -> None:
    world.supervisor.run(world.job(lie="digest"))
    assert (world.has_blob(ARTIFACT), world.stored_bytes()) == (False, 0)


def test_artifacts_of_a_killed_worker_are_swept(world: World, tmp_path: Path) -> None:
    (tmp_path / "artifact").write_bytes(ARTIFACT)
    held = world.references.holding(Tenant(), "job_1/1")  # and never let go
    world.blobs.put_file(tmp_path / "artifact", held.__enter__())
    assert world.references.sweep() == []
    assert world.has_blob(ARTIFACT)
    assert world.references.sweep(time.time() + HELD_S + 1) == ["job_1/1"]
    assert (world.has_blob(ARTIFACT), world.stored_bytes()) == (False, 0)
