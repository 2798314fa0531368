"""Machines fail: a worker is killed, Redis goes away, a message comes twice. The job ends correctly all the same."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fewbit.client import Client
from fewbit.contract.resources import Job
from local import digits
from local.stack import Stack
from store.queue import Queue
from store.settings import StoreSettings
from tests.e2e.conftest import QUICK_LEASES, Upload


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Its own, for these tests break it."""
    with Stack(tmp_path_factory.mktemp("stack"), env=QUICK_LEASES) as running:
        yield running


@pytest.fixture(scope="module")
def long_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images ten times over: a job of some seconds."""
    data = digits.load_digits()
    path = tmp_path_factory.mktemp("data") / "long.npz"
    np.savez(path, x=np.tile(data.x_test.numpy(), (10, 1, 1)), labels=np.tile(data.labels_test.numpy(), 10))
    return path


def long_job(client: Client, transformer: Upload, long_data: Path) -> Job:
    dataset = client.upload_dataset(long_data)
    model = client.upload_model(transformer.path)
    evaluation = {"dataset": dataset.id, "batch_size": 4}
    return client.create_job({"model": model.id, "evaluation": evaluation, "labels": {"at": str(time.time())}})


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def in_the_middle(client: Client, job: Job) -> bool:
    now = client.job(job.id)
    return now.status == "running" and now.progress is not None and now.progress.stage == "observe"


def test_a_worker_killed_in_the_middle_costs_an_attempt_not_the_job(
    stack: Stack, client: Client, transformer: Upload, long_data: Path
) -> None:
    job = long_job(client, transformer, long_data)
    until(lambda: in_the_middle(client, job))
    stack.kill_worker()
    stack.start_worker()
    ended = client.wait(job)
    assert (ended.status, ended.attempts) == ("succeeded", 2)
    assert client.report(job).coverage.macs == 1.0


def test_a_second_delivery_of_the_same_job_runs_nothing(
    stack: Stack, client: Client, transformer: Upload, long_data: Path
) -> None:
    job = long_job(client, transformer, long_data)
    queue = Queue(StoreSettings(redis_url=stack.redis.url))
    queue.deliver_job(job.id, 0)
    ended = client.wait(job)
    queue.deliver_job(job.id, 0)
    time.sleep(1)
    again = client.job(job.id)
    assert (again.status, again.attempts, again.revision) == ("succeeded", 1, ended.revision)


def test_redis_restarted_in_the_middle_of_a_job(
    stack: Stack, client: Client, transformer: Upload, long_data: Path
) -> None:
    job = long_job(client, transformer, long_data)
    until(lambda: in_the_middle(client, job))
    stack.restart_redis(down_s=1.0)
    until(lambda: _ended(client, job), seconds=90)
    assert client.job(job.id).status == "succeeded"
    assert client.report(job).accuracy is not None
    follow_up = client.create_job({"model": client.job(job.id).spec.model, "artifacts": ["torchscript"]})
    assert client.wait(follow_up).status == "succeeded"


def test_a_running_job_is_canceled_within_seconds(client: Client, transformer: Upload, long_data: Path) -> None:
    job = long_job(client, transformer, long_data)
    until(lambda: in_the_middle(client, job))
    client.cancel(job)
    until(lambda: client.job(job.id).status == "canceled", seconds=5)


def test_a_time_limit_ends_the_job_with_its_problem(client: Client, transformer: Upload, long_data: Path) -> None:
    dataset = client.upload_dataset(long_data)
    model = client.upload_model(transformer.path)
    evaluation = {"dataset": dataset.id, "batch_size": 1}
    job = client.wait(client.create_job({"model": model.id, "evaluation": evaluation, "time_limit_s": 1}))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.slug == "time-limit-exceeded"


def _ended(client: Client, job: Job) -> bool:
    return client.job(job.id).status in ("succeeded", "failed")
