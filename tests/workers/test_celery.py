"""The whole worker as deployed: Celery, fork server, real engine, real Redis; asked nicely, killed, and cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.embedded import EmbeddedRedis
from store.queue import Queue
from tests.workers import uploads
from tests.workers.world import World, wait_until
from workers.sandbox.fork_server import ForkServer

ROOT = Path(__file__).parents[2]
START_S = 90.0


class CeleryWorker:
    """``python -m workers`` on all queues, started when first needed and again when it has died."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.log = folder / "worker.log"
        self._environment = os.environ | {
            "REDIS_URL": redis_url,
            "FEWBIT_BLOBS_URL": str(folder / "world" / "blobs"),
            "FEWBIT_SCRATCH": str(folder / "worker-scratch"),
            "FEWBIT_LEASE_S": "3",
            "FEWBIT_REAPER_S": "0.5",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def ensure(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            self.log.write_text("")
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "workers", "--queues", "small,large,inspect"],
                    cwd=ROOT, env=self._environment, stdout=log, stderr=log,
                )  # fmt: skip
            assert wait_until(lambda: b" ready." in self.log.read_bytes(), START_S), self.log.read_text()[-4000:]
        return self.process

    def family(self) -> list[int]:
        """Every process below the worker."""
        assert self.process is not None
        found, waiting = [], [self.process.pid]
        while waiting:
            listed = subprocess.run(["pgrep", "-P", str(waiting.pop())], check=False, capture_output=True, text=True)
            children = [int(line) for line in listed.stdout.split()]
            found += children
            waiting += children
        return found

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("celery")


@pytest.fixture(scope="module")
def there(folder: Path) -> Iterator[World]:
    """Redis and blobs that outlive the workers. Its own supervisor is not used here."""
    with EmbeddedRedis(folder / "redis") as server:
        world = World(server, folder / "world", ForkServer())
        yield world
        world.close()


@pytest.fixture(scope="module")
def worker(there: World, folder: Path) -> Iterator[CeleryWorker]:
    worker = CeleryWorker(there.store.redis_url, folder)
    yield worker
    worker.stop()


@pytest.fixture(scope="module")
def queue(there: World) -> Queue:
    return Queue(there.store)


@pytest.fixture(scope="module")
def model(folder: Path) -> bytes:
    return uploads.mlp(folder / "model.pt2").read_bytes()


def post(there: World, queue: Queue, model: bytes) -> str:
    job = there.job(model, time_limit_s=120)
    queue.deliver_job(job, len(model))
    return job


def ended(there: World, job: str, seconds: float = 60) -> str:
    wait_until(lambda: there.record(job).final, seconds)
    return there.status(job)


def test_an_upload_is_inspected_and_a_job_runs(there: World, worker: CeleryWorker, queue: Queue, model: bytes) -> None:
    worker.ensure()
    model_id = there.model(model)
    queue.deliver_inspection(model_id)
    assert wait_until(lambda: there.model_record(model_id).status == "ready", 30), worker.log.read_text()[-4000:]
    job = post(there, queue, model)
    assert ended(there, job) == "succeeded", worker.log.read_text()[-4000:]
    report = json.loads(there.report(job))
    assert report["coverage"]["layers"]["quantized"] == 2
    assert {artifact.name for artifact in there.artifacts(job)} == {
        artifact["name"] for artifact in report["artifacts"]
    }


def test_the_log_is_json_and_names_the_job(there: World, worker: CeleryWorker, queue: Queue, model: bytes) -> None:
    worker.ensure()
    job = post(there, queue, model)
    assert ended(there, job) == "succeeded"
    assert wait_until(lambda: any(entry.get("ended") for entry in _entries(worker, job)))


def _entries(worker: CeleryWorker, job: str) -> list[dict[str, object]]:
    lines = [line for line in worker.log.read_text().splitlines() if line.startswith("{")]
    return [entry for entry in map(json.loads, lines) if entry.get("job") == job]


def test_a_worker_announces_its_cpu_and_versions(there: World, worker: CeleryWorker) -> None:
    worker.ensure()

    def announced() -> list[dict[str, object]]:
        names = list(there.redis.smembers("fewbit:fleet"))  # type: ignore[arg-type]
        bodies = [there.redis.get(b"fewbit:worker:" + name) for name in names]
        return [json.loads(body) for body in bodies if isinstance(body, bytes)]

    assert wait_until(announced)
    (about,) = announced()
    assert about["queues"] == ["inspect", "large", "small"]
    assert {"cpu", "isa", "threads", "versions"} <= set(about)


def test_a_worker_survives_a_restart_of_redis(there: World, worker: CeleryWorker, queue: Queue, model: bytes) -> None:
    process = worker.ensure()
    job = post(there, queue, model)
    assert wait_until(lambda: there.status(job) == "running")
    there.redis_server.kill()
    time.sleep(1)
    there.redis_server.start()
    assert ended(there, job) == "succeeded", worker.log.read_text()[-4000:]
    following = post(there, queue, model)
    assert ended(there, following) == "succeeded", worker.log.read_text()[-4000:]
    assert process.poll() is None
    assert there.record(job).attempts == 1


def test_a_worker_that_is_shut_down_requeues_its_job(
    there: World, worker: CeleryWorker, queue: Queue, model: bytes
) -> None:
    process = worker.ensure()
    job = post(there, queue, model)
    assert wait_until(lambda: there.status(job) == "running")
    started = time.monotonic()
    process.terminate()
    assert process.wait(20) == 0
    assert time.monotonic() - started < 10
    assert there.status(job) == "queued"
    assert there.record(job).attempts == 0
    worker.ensure()
    assert ended(there, job) == "succeeded"


def test_a_killed_worker_leaves_no_process_and_another_finishes_its_job(
    there: World, worker: CeleryWorker, queue: Queue, model: bytes
) -> None:
    process = worker.ensure()
    job = post(there, queue, model)
    assert wait_until(lambda: there.status(job) == "running" and len(worker.family()) >= 2)
    family = worker.family()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), 5)
    worker.ensure()
    assert ended(there, job) == "succeeded", worker.log.read_text()[-4000:]
    assert there.record(job).attempts == 2
