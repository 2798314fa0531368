"""A job's life, from both sides: every transition, and every one that must not happen."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
import redis
from redis.asyncio import Redis

from fewbit import JobSpec
from fewbit.contract.problems import JobProblem
from fewbit.contract.resources import Event, Job
from store.blobs.blob_store import BlobInfo, Blobs
from store.clients import connect_async
from store.jobs.job_store import EventRecord, Jobs, Missing
from store.jobs.leases import Claim, Leases, LostLease
from store.jobs.transition import Move, Outcome
from store.models import Models
from store.queue import Queue
from store.records import ArtifactRecord, BlobRef, JobRecord, NewJob
from store.settings import StoreSettings

T = TypeVar("T")
MODEL = BlobInfo("ab" * 32, 1000)


class Gateway:
    """The async side, called from a plain test."""

    def __init__(self, settings: StoreSettings, blobs: Blobs) -> None:
        self._settings = settings
        self._blobs = blobs

    def __call__(self, story: Callable[[Jobs, Models], Awaitable[T]]) -> T:
        async def told() -> T:
            async with connect_async(self._settings) as client:
                return await story(Jobs(client, self._blobs), Models(client, self._blobs))

        return asyncio.run(told())

    def model(self) -> BlobRef:
        return self(lambda _, models: models.create_or_get(MODEL, "a model"))[0].blob

    def new_job(self, **spec: object) -> str:
        model = self.model()
        new = NewJob(JobSpec.model_validate({"model": model.id, **spec}), model)
        return self(lambda jobs, _: jobs.create(new))

    def job(self, job_id: str) -> Job:
        record = self(lambda jobs, _: jobs.get(job_id))
        assert record is not None
        return Job.model_validate_json(record.json())

    def events(self, job_id: str) -> list[EventRecord]:
        return self(lambda jobs, _: jobs.events(job_id))


@pytest.fixture
def gateway(sync: redis.Redis, settings: StoreSettings, blobs: Blobs) -> Gateway:
    return Gateway(settings, blobs)


def claimed(leases: Leases, job_id: str) -> Claim:
    claim = leases.claim(job_id, "worker")
    assert claim is not None
    return claim


def test_a_job_is_queued_claimed_and_succeeds_and_each_step_is_an_event(gateway: Gateway, leases: Leases) -> None:
    job_id = gateway.new_job()
    assert gateway.job(job_id).status == "queued"
    claim = claimed(leases, job_id)
    assert (claim.spec.model, claim.model.sha256, claim.attempt) == (claim.model.id, MODEL.sha256, 1)
    leases.progress(claim, "load", 0.5)
    assert gateway.job(job_id).progress is not None
    leases.succeed(claim, b"{}", [ArtifactRecord(name="a", kind="pt2", size=1, sha256="cd" * 32)])
    job = gateway.job(job_id)
    assert (job.status, job.attempts) == ("succeeded", 1)
    assert job.started_at is not None
    assert job.finished_at is not None
    assert [event.event for event in gateway.events(job_id)] == ["state", "state", "progress", "state", "done"]
    assert gateway(lambda jobs, _: jobs.report(job_id)) == b"{}"


def test_a_second_delivery_of_the_same_job_runs_nothing(gateway: Gateway, leases: Leases) -> None:
    job_id = gateway.new_job()
    claimed(leases, job_id)
    assert leases.claim(job_id, "another worker") is None


def test_a_finished_job_cannot_be_claimed_again(gateway: Gateway, leases: Leases) -> None:
    job_id = gateway.new_job()
    leases.fail(claimed(leases, job_id), JobProblem.of("invalid-model", "nothing in it"))
    assert leases.claim(job_id, "worker") is None
    error = gateway.job(job_id).error
    assert error is not None
    assert error.slug == "invalid-model"


def test_a_lost_lease_requeues_the_job_and_the_old_worker_can_write_nothing_more(
    gateway: Gateway, leases: Leases
) -> None:
    job_id = gateway.new_job()
    stale = claimed(leases, job_id)
    lost = leases.reap(time.time() + 1)
    assert [(undelivered.job_id, undelivered.model_bytes) for undelivered in lost] == [(job_id, MODEL.size)]
    fresh = claimed(leases, job_id)
    for write in (
        lambda: leases.renew(stale),
        lambda: leases.progress(stale, "late", 1.0),
        lambda: leases.succeed(stale, b"{}", []),
        lambda: leases.fail(stale, JobProblem.of("internal-error", "late")),
    ):
        with pytest.raises(LostLease):
            write()
    leases.succeed(fresh, b"{}", [])
    assert gateway.job(job_id).attempts == 2


def test_a_renewed_lease_is_not_reaped(gateway: Gateway, leases: Leases) -> None:
    claim = claimed(leases, gateway.new_job())
    time.sleep(0.2)
    leases.renew(claim)
    time.sleep(0.2)
    assert leases.reap(time.time()) == []
    assert leases.renew(claim) == "running"


def test_a_job_whose_workers_keep_dying_fails_as_worker_lost(gateway: Gateway, leases: Leases) -> None:
    job_id = gateway.new_job()
    for _ in range(2):
        claimed(leases, job_id)
        leases.reap(time.time() + 1)
    error = gateway.job(job_id).error
    assert error is not None
    assert (error.slug, error.retryable) == ("worker-lost", True)


def test_a_queued_job_is_canceled_at_once_a_running_one_when_its_worker_sees_it(
    gateway: Gateway, leases: Leases
) -> None:
    queued, running = gateway.new_job(), gateway.new_job()
    claim = claimed(leases, running)
    for job_id in (queued, running):
        assert gateway(lambda jobs, _, job_id=job_id: jobs.request_cancel(job_id)).moved
    assert gateway.job(queued).status == "canceled"
    assert gateway.job(running).status == "canceling"
    assert leases.renew(claim) == "canceling"
    leases.cancel(claim)
    assert gateway.job(running).status == "canceled"
    assert not gateway(lambda jobs, _: jobs.request_cancel(running)).moved


def test_handing_a_job_back_costs_no_attempt(gateway: Gateway, leases: Leases) -> None:
    job_id = gateway.new_job()
    leases.requeue(claimed(leases, job_id))
    assert (gateway.job(job_id).status, gateway.job(job_id).attempts) == ("queued", 0)


def test_a_queued_job_whose_message_got_lost_is_named_again_once_a_while(
    gateway: Gateway, leases: Leases, settings: StoreSettings
) -> None:
    job_id = gateway.new_job()
    assert leases.reap(time.time()) == []
    later = time.time() + settings.redeliver_s + 1
    assert [undelivered.job_id for undelivered in leases.reap(later)] == [job_id]
    assert leases.reap(later) == []


def test_a_long_line_gets_no_more_messages_than_it_has_jobs(
    gateway: Gateway, leases: Leases, sync: redis.Redis, settings: StoreSettings
) -> None:
    queue, jobs = Queue(settings), [gateway.new_job() for _ in range(5)]

    def sweep(minutes: int) -> int:
        for again in leases.reap(time.time() + minutes * (settings.redeliver_s + 1)):
            queue.deliver_job(again.job_id, again.model_bytes)
        return sync.llen("small")

    for job_id in jobs:
        queue.deliver_job(job_id, MODEL.size)
    assert [sweep(minutes) for minutes in (1, 2, 3)] == [5, 5, 5]
    sync.ltrim("small", 2, -1)
    assert [sweep(minutes) for minutes in (4, 5)] == [5, 5]
    sync.delete("small")
    assert sweep(6) == 5


def test_pages_are_newest_first_and_every_filter_holds(gateway: Gateway, leases: Leases) -> None:
    made = [gateway.new_job(labels={"team": "search" if number % 2 else "ads"}) for number in range(7)]
    claimed(leases, made[3])

    def ids(records: list[JobRecord]) -> list[str]:
        return [record.id for record in records]

    first = ids(gateway(lambda jobs, _: jobs.page(4)))
    second = ids(gateway(lambda jobs, _: jobs.page(4, after=first[-1])))
    assert first + second == sorted(made, reverse=True)
    assert ids(gateway(lambda jobs, _: jobs.page(9, status="running"))) == [made[3]]
    both = ids(gateway(lambda jobs, _: jobs.page(9, status="queued", label=("team", "search"))))
    assert set(both) == {made[1], made[5]}
    assert ids(gateway(lambda jobs, _: jobs.page(9, created_after=time.time() + 60))) == []


def test_a_job_of_a_deleted_model_is_not_made(gateway: Gateway) -> None:
    model = gateway.model()
    assert gateway(lambda _, models: models.delete(model.id)) == "deleted"
    with pytest.raises(Missing, match=model.id):
        gateway(lambda jobs, _: jobs.create(NewJob(JobSpec(model=model.id), model)))
    assert gateway(lambda jobs, _: jobs.page(9)) == []


def test_a_model_stays_while_a_job_needs_it(gateway: Gateway, leases: Leases) -> None:
    job_id = gateway.new_job()
    model = gateway.job(job_id).spec.model
    assert gateway(lambda _, models: models.delete(model)) == "in-use"
    leases.succeed(claimed(leases, job_id), b"{}", [])
    assert gateway(lambda _, models: models.delete(model)) == "deleted"


def test_only_a_finished_job_is_deleted_and_its_last_artifact_goes_with_it(
    gateway: Gateway, leases: Leases, blobs: Blobs, tmp_path: object
) -> None:
    job_id = gateway.new_job()
    assert not gateway(lambda jobs, _: jobs.delete(job_id)).moved
    claim = claimed(leases, job_id)
    assert blobs.folder is not None
    (blobs.folder / "file").write_bytes(b"artifact")
    info = blobs.put_file(blobs.folder / "file")
    leases.succeed(claim, b"{}", [ArtifactRecord(name="a", kind="pt2", size=info.size, sha256=info.sha256)])
    assert gateway(lambda jobs, _: jobs.delete(job_id)).moved
    assert gateway(lambda jobs, _: jobs.get(job_id)) is None
    assert not asyncio.run(blobs.exists(info.sha256))


def test_the_artifacts_of_a_job_that_ends_as_it_is_deleted_go_with_it(
    sync: redis.Redis, settings: StoreSettings, blobs: Blobs, gateway: Gateway, leases: Leases, tmp_path: Path
) -> None:
    job_id = gateway.new_job()
    claim = claimed(leases, job_id)
    (tmp_path / "file").write_bytes(b"artifact")
    info = blobs.put_file(tmp_path / "file")

    class InTheLastMoment(Jobs):
        async def _move(self, move: Move) -> Outcome:
            artifact = ArtifactRecord(name="a", kind="pt2", size=info.size, sha256=info.sha256)
            await asyncio.to_thread(leases.succeed, claim, b"{}", [artifact])
            return await super()._move(move)

    async def story() -> Outcome:
        async with connect_async(settings) as client:
            return await InTheLastMoment(client, blobs).delete(job_id)

    assert asyncio.run(story()).moved
    assert not asyncio.run(blobs.exists(info.sha256))
    assert sync.hgetall("fewbit:tenant:default:stored") == {b"total": b"0"}


def test_waiting_ends_with_the_job(gateway: Gateway, leases: Leases, settings: StoreSettings, blobs: Blobs) -> None:
    job_id = gateway.new_job()
    claim = claimed(leases, job_id)

    async def story(client: Redis) -> JobRecord | None:
        waiting = asyncio.create_task(Jobs(client, blobs).wait_final(job_id, 10))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(leases.succeed, claim, b"{}", [])
        return await asyncio.wait_for(waiting, 2)

    async def told() -> JobRecord | None:
        async with connect_async(settings) as client:
            return await story(client)

    record = asyncio.run(told())
    assert record is not None
    assert record.status == "succeeded"


def test_two_jobs_that_made_the_same_artifact_share_its_bytes_until_the_last_is_deleted(
    gateway: Gateway, leases: Leases, blobs: Blobs, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"artifact")
    info = blobs.put_file(tmp_path / "file")
    jobs = [gateway.new_job(), gateway.new_job()]
    for job_id in jobs:
        artifact = ArtifactRecord(name="a", kind="pt2", size=info.size, sha256=info.sha256)
        leases.succeed(claimed(leases, job_id), b"{}", [artifact])
    gateway(lambda stored, _: stored.delete(jobs[0]))
    assert asyncio.run(blobs.exists(info.sha256))
    gateway(lambda stored, _: stored.delete(jobs[1]))
    assert not asyncio.run(blobs.exists(info.sha256))


def test_a_late_worker_cannot_replace_the_report_of_the_one_that_finished(gateway: Gateway, leases: Leases) -> None:
    job_id = gateway.new_job()
    stale = claimed(leases, job_id)
    leases.reap(time.time() + 1)
    leases.succeed(claimed(leases, job_id), b'{"by": "the second"}', [])
    with pytest.raises(LostLease):
        leases.succeed(stale, b'{"by": "the first"}', [])
    assert gateway(lambda jobs, _: jobs.report(job_id)) == b'{"by": "the second"}'


def test_a_cancel_that_came_before_the_end_wins(gateway: Gateway, leases: Leases) -> None:
    ends: list[Callable[[Claim], None]] = [
        lambda claim: leases.succeed(claim, b"{}", []),
        lambda claim: leases.fail(claim, JobProblem.of("internal-error", "too late to matter")),
        leases.requeue,
    ]
    for end in ends:
        job_id = gateway.new_job()
        claim = claimed(leases, job_id)
        gateway(lambda jobs, _, job_id=job_id: jobs.request_cancel(job_id))
        end(claim)
        assert (gateway.job(job_id).status, gateway.job(job_id).error) == ("canceled", None)
        assert gateway(lambda jobs, _, job_id=job_id: jobs.report(job_id)) is None


def test_a_job_asked_to_stop_whose_worker_vanished_is_canceled(gateway: Gateway, leases: Leases) -> None:
    job_id = gateway.new_job()
    claimed(leases, job_id)
    gateway(lambda jobs, _: jobs.request_cancel(job_id))
    assert leases.reap(time.time() + 1) == []
    assert gateway.job(job_id).status == "canceled"


def test_finishing_twice_is_finishing_once_and_nothing_ends_another_way(gateway: Gateway, leases: Leases) -> None:
    job_id = gateway.new_job()
    claim = claimed(leases, job_id)
    leases.succeed(claim, b"{}", [])
    revision = gateway.job(job_id).revision
    leases.succeed(claim, b"{}", [])
    with pytest.raises(LostLease):
        leases.fail(claim, JobProblem.of("internal-error", "after the end"))
    assert (gateway.job(job_id).status, gateway.job(job_id).revision) == ("succeeded", revision)


def test_the_revision_grows_with_what_a_reader_sees_and_with_nothing_else(gateway: Gateway, leases: Leases) -> None:
    job_id = gateway.new_job()
    claim = claimed(leases, job_id)
    before = gateway.job(job_id).revision
    leases.renew(claim)
    leases.log(claim, "a line")
    assert gateway.job(job_id).revision == before
    leases.progress(claim, "load", 0.1)
    assert gateway.job(job_id).revision == before + 1


def test_events_resume_after_the_last_one_seen_and_can_be_waited_for(
    gateway: Gateway, leases: Leases, settings: StoreSettings, blobs: Blobs
) -> None:
    job_id = gateway.new_job()
    claim = claimed(leases, job_id)
    seen = gateway.events(job_id)[-1].id
    assert gateway(lambda jobs, _: jobs.events(job_id, seen)) == []

    async def waited() -> list[EventRecord]:
        async with connect_async(settings) as client:
            waiting = asyncio.create_task(Jobs(client, blobs).events(job_id, seen, block_ms=5000))
            await asyncio.sleep(0.1)
            await asyncio.to_thread(leases.log, claim, "hello")
            return await waiting

    (news,) = asyncio.run(waited())
    assert (news.event, json.loads(news.data)) == ("log", {"message": "hello"})
    assert Event.model_validate_json(news.json()).data == {"message": "hello"}


def test_a_label_with_quotes_and_a_name_in_any_script_survive(gateway: Gateway) -> None:
    labels = {"who": 'a "quoted" \\ name', "où": "日本"}
    job_id = gateway.new_job(labels=labels)
    assert gateway.job(job_id).spec.labels == labels
    found = gateway(lambda jobs, _: jobs.page(5, label=("où", "日本")))
    assert [record.id for record in found] == [job_id]
