"""Messages to workers: as many as there are jobs, whichever worker gets which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import redis

from store.jobs.leases import Leases
from store.settings import StoreSettings
from tests.workers.world import World
from workers import process
from workers.tasks import run_job


class Overtaken(Leases):
    """Between the first answer to whose turn it is and the claim, a rival acts."""

    def __init__(self, client: redis.Redis, settings: StoreSettings, rival: Callable[[], None]) -> None:
        super().__init__(client, settings)
        self._rivals = [rival]

    def turn(self, job_id: str) -> str:
        chosen = super().turn(job_id)
        while self._rivals:
            self._rivals.pop()()
        return chosen


@pytest.mark.parametrize("mine", [0, 1], ids=["the first", "the second"])
def test_two_workers_asking_at_once_run_both_jobs(world: World, monkeypatch: pytest.MonkeyPatch, mine: int) -> None:
    jobs = [world.job(b"one"), world.job(b"two")]

    def rival() -> None:
        chosen = world.leases.turn(jobs[1 - mine])
        assert chosen == jobs[0]
        assert world.leases.claim(chosen, "a rival") is not None

    supervisor = replace(world.supervisor, leases=Overtaken(world.redis, world.store, rival))
    monkeypatch.setattr(process, "_current", SimpleNamespace(supervisor=supervisor))
    run_job(jobs[mine])
    assert [world.status(job) for job in jobs] == ["running", "succeeded"]


def test_a_message_of_a_job_that_has_ended_runs_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_current", SimpleNamespace(supervisor=world.supervisor))
    job = world.job()
    run_job(job)
    before = world.events(job)
    run_job(job)
    assert world.events(job) == before
