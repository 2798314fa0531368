"""One job through the supervisor: real Redis, real blobs, a real fork server. Only the engine is scripted, so that it
hangs, dies and lies on demand; ``test_jobs.py`` has the real one."""

from __future__ import annotations

import time

import pytest

from tests.workers.scripted_engine import ARTIFACT
from tests.workers.world import World, wait_until


def test_a_job_succeeds_with_report_and_artifact(world: World) -> None:
    job = world.job()
    assert world.supervisor.run(job) == "succeeded"
    assert world.status(job) == "succeeded"
    assert b'"verdict":"pass"' in world.report(job)
    (artifact,) = world.artifacts(job)
    assert world.blob(artifact.sha256) == ARTIFACT
    assert [event for event, _ in world.events(job)].count("done") == 1
    assert any(event == "progress" for event, _ in world.events(job))


def test_a_second_delivery_of_the_same_job_runs_nothing(world: World) -> None:
    job = world.job()
    world.supervisor.run(job)
    before = world.events(job)
    assert world.supervisor.run(job) == "not ours"
    assert world.events(job) == before


@pytest.mark.parametrize(
    ("deed", "slug"),
    [
        ("convert:fail", "calibration-failed"),
        ("verify:fail", "calibration-failed"),
        ("convert:killed", "out-of-memory"),
        ("verify:crash", "internal-error"),
        ("convert:nothing", "internal-error"),
    ],
)
def test_a_stage_that_fails_fails_the_job(world: World, deed: str, slug: str) -> None:
    job = world.job(deed=deed)
    assert world.supervisor.run(job) == slug
    assert world.status(job) == "failed"
    assert world.error(job)["type"] == f"/problems/{slug}"


@pytest.mark.parametrize("lie", ["digest", "path", "artifact link", "report link", "report", "no report"])
def test_results_are_not_taken_on_trust(world: World, lie: str) -> None:
    job = world.job(lie=lie)
    assert world.supervisor.run(job) == "internal-error"
    assert world.status(job) == "failed"


def test_a_job_that_runs_too_long_is_stopped(world: World) -> None:
    job = world.job(deed="sleep", time_limit_s=1)
    started = time.monotonic()
    assert world.supervisor.run(job) == "time-limit-exceeded"
    assert time.monotonic() - started < 2


def test_a_cancel_stops_the_job_soon(world: World) -> None:
    job = world.job(deed="verify:sleep")
    ended = world.in_thread(job)
    assert wait_until(lambda: any("asleep" in data for _, data in world.events(job)))
    started = time.monotonic()
    world.cancel(job)
    assert ended() == "canceled"
    assert time.monotonic() - started < 1.0
    assert world.status(job) == "canceled"


def test_a_shutdown_requeues_the_job(world: World) -> None:
    job = world.job(deed="sleep")
    ended = world.in_thread(job)
    assert wait_until(lambda: world.status(job) == "running")
    world.stopping.set()
    assert ended() == "requeued"
    assert world.status(job) == "queued"
    assert world.delivered == [job]


def test_a_lost_lease_stops_the_child_and_writes_nothing(world: World) -> None:
    """Another worker took over: this one's report must never appear."""
    job = world.job(deed="sleep")
    ended = world.in_thread(job)
    assert wait_until(lambda: world.status(job) == "running")
    world.take_over(job)
    assert ended() == "lost"
    assert world.status(job) == "running"


def test_a_job_survives_a_restart_of_redis(world: World) -> None:
    (world.scratch / "nap").write_text("3")
    job = world.job(deed="convert:nap")
    ended = world.in_thread(job)
    assert wait_until(lambda: world.status(job) == "running")
    world.redis_server.kill()
    time.sleep(1)
    world.redis_server.start()
    assert ended() == "succeeded"
    assert world.status(job) == "succeeded"


def test_nothing_is_left_in_the_scratch_folder(world: World) -> None:
    for deed in ("", "lock", "convert:crash"):
        world.supervisor.run(world.job(deed=deed))
    assert [path for path in world.scratch.iterdir() if path.is_dir()] == []


def test_a_flood_of_progress_is_thinned_out(world: World) -> None:
    job = world.job(deed="convert:flood")
    assert world.supervisor.run(job) == "succeeded"
    assert len(world.events(job)) < 2000


@pytest.mark.parametrize(
    ("content", "ended", "status"),
    [(b"good", "ready", "ready"), (b"bad", "unsafe-model", "rejected"), (b"die", "internal-error", "rejected")],
)
def test_an_inspection_ends_ready_or_rejected(world: World, content: bytes, ended: str, status: str) -> None:
    model = world.model(content)
    assert world.inspector.run(model) == ended
    assert world.model_record(model).status == status
    assert world.inspector.run(model) == "not waiting"
