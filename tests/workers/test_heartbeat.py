"""The lease of a running job: renewed as often as the setting says, and a cancel is seen in between."""

from __future__ import annotations

import time

import pytest

from store.jobs.leases import Leases
from store.records import LEASES
from tests.workers.world import World, wait_until
from workers.heartbeat import Canceled, Heartbeat


def leases(world: World, **settings: float) -> Leases:
    return Leases(world.redis, world.store.model_copy(update=settings))


def deadlines(world: World, some: Leases, seconds: float) -> int:
    """How many deadlines a job has had after so long."""
    job, seen = world.job(), set()
    claim = some.claim(job, "worker")
    assert claim is not None
    until = time.monotonic() + seconds
    with Heartbeat(some, claim) as heartbeat:
        while time.monotonic() < until:
            seen.add(world.redis.zscore(LEASES, job))
            assert some.reap() == []
            time.sleep(0.01)
        heartbeat.check()
    return len(seen)


def test_a_lease_is_renewed_once_per_heartbeat(world: World) -> None:
    assert deadlines(world, leases(world, heartbeat_s=10), 1.5) <= 2
    assert 3 <= deadlines(world, leases(world, heartbeat_s=0.5), 1.7) <= 5


def test_a_heartbeat_longer_than_the_lease_does_not_lose_it(world: World) -> None:
    assert deadlines(world, leases(world, lease_s=1, heartbeat_s=10), 2.5) >= 3


def test_a_cancel_is_noticed_between_two_heartbeats(world: World) -> None:
    job, some = world.job(), leases(world, heartbeat_s=10)
    claim = some.claim(job, "worker")
    assert claim is not None

    def heard() -> bool:
        try:
            heartbeat.check()
        except Canceled:
            return True
        return False

    with Heartbeat(some, claim) as heartbeat:
        time.sleep(0.5)
        world.cancel(job)
        assert wait_until(heard, 1)
    with pytest.raises(Canceled):
        heartbeat.check()
