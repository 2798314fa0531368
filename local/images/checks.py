"""What ``make images`` checks, one function a claim: it answers in words what was found, or raises ``Failed``."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy
import torch

from fewbit.client import Client
from fewbit.contract.report import Report
from fewbit.contract.resources import Job
from local import demo, digits
from local.images import wheel
from local.images.composed import SERVICES, Composed, until
from local.images.engine import LABEL, Engine, said

OURS = ("gateway", "worker", "inspector")
MOST_SECONDS = 60.0
AGAIN = "delivered again"
REPEATS = (1, 8, 64)
AUTHENTICATE = "echo AUTH $(cat /data/password);"
WITHOUT_CUDA = """
import importlib.metadata, torch
assert torch.version.cuda is None, torch.version.cuda
names = [distribution.name for distribution in importlib.metadata.distributions()]
cuda = [name for name in names if name.startswith(("nvidia", "cuda", "triton"))]
assert not cuda, cuda
print(torch.__version__)
"""
WITHOUT_TORCH = "import importlib.util as u; assert u.find_spec('torch') is None; assert u.find_spec('workers') is None"


class Failed(Exception):
    """A claim does not hold. The message says which, and what was found instead."""


def require(holds: bool, complaint: str) -> None:
    """Raises ``Failed``."""
    if not holds:
        raise Failed(complaint)


# ---- the images alone ----


def check_contents(engine: Engine) -> Iterator[str]:
    """The gateway has no torch, the worker no CUDA."""
    gateway = engine.run("fewbit-gateway", "python", "-c", WITHOUT_TORCH)
    require(gateway.returncode == 0, f"the gateway image holds what is the worker's:\n{said(gateway)}")
    worker = engine.run("fewbit-worker", "python", "-c", WITHOUT_CUDA)
    require(worker.returncode == 0, f"the worker image's torch is not the CPU build:\n{said(worker)}")
    yield f"fewbit-gateway: {_megabytes(engine, 'fewbit-gateway')}, no torch"
    yield f"fewbit-worker: {_megabytes(engine, 'fewbit-worker')}, torch {worker.stdout.strip()}, no CUDA"


def _megabytes(engine: Engine, image: str) -> str:
    size = int(engine("image", "inspect", "--format", "{{.Size}}", image))
    return f"{size / 1e6:.0f} MB"


# ---- the containers ----


def check_shut_in(service: Composed) -> Iterator[str]:
    """No container runs as root, holds or can gain a right, or can write to its own files; all are bounded."""
    for name in SERVICES:
        facts = dict(re.findall(r"^(\w+):\s+(.*)$", service.inside(name, "cat", "/proc/1/status"), re.M))
        uid = facts["Uid"].split()[0]
        rights = {facts[kind].strip("0") for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
        require(uid != "0", f"{name} runs as root")
        require(rights == {""}, f"{name} holds capabilities: {facts['CapEff']}, and may gain {facts['CapBnd']}")
        require(facts["NoNewPrivs"] == "1", f"{name} may gain privileges")
        require(_is_read_only(service, name), f"{name} can write to its root file system")
        limit = service.inspect(name)["HostConfig"]["Memory"]
        require(limit > 0, f"{name} has no memory limit")
        yield f"{name}: user {uid}, no capabilities, read-only, at most {limit >> 20} MiB"


def _is_read_only(service: Composed, name: str) -> bool:
    """As the kernel has it: the options of what is mounted on /."""
    mounts = service.inside(name, "cat", "/proc/self/mounts").splitlines()
    options = next(line.split()[3] for line in mounts if line.split()[1] == "/")
    return "ro" in options.split(",")


def check_health(service: Composed) -> Iterator[str]:
    """The health checks that the images and ``docker-compose.yml`` declare."""
    for name in SERVICES:
        container = service.container(name)
        until(partial(service.engine.healthy, container), 60, f"{name} does not become healthy")
    yield f"healthy: {', '.join(SERVICES)}"


def check_redis(service: Composed) -> Iterator[str]:
    """It wants its password, knows its limit below the container's, and evicts nothing."""

    def ask(words: str, first: str = AUTHENTICATE) -> str:
        return service.inside("redis", "sh", "-c", f"({first} echo {words}) | valkey-cli 2>&1").strip()

    stranger = ask("PING", first="")
    require("NOAUTH" in stranger, f"Redis answers without a password: {stranger}")
    most = int(ask("CONFIG GET maxmemory").split()[-1])
    container = service.inspect("redis")["HostConfig"]["Memory"]
    require(0 < most < container, f"Redis may use {most} bytes of a container's {container}")
    policy = ask("CONFIG GET maxmemory-policy").split()[-1]
    require(policy == "noeviction", f"Redis' policy is {policy}")
    yield f"Redis wants its password; {most >> 20} MiB of data in {container >> 20} MiB; {policy}"


def check_sandbox(service: Composed) -> Iterator[str]:
    """The workers require the kernel's fence, and have all of it."""
    with service.client() as client:
        workers = client.capabilities()["workers"]
    require(len(workers) == 2, f"{len(workers)} workers announced themselves, not 2")
    for worker in workers:
        fence = worker["sandbox"]
        require(fence["mode"] == "required" and fence["seccomp"] and not fence["missing"], f"the sandbox: {fence}")
    yield f"sandbox required and whole: Landlock ABI {fence['landlock']}, seccomp"


# ---- what one does with it ----


def check_job(service: Composed, trained: demo.Trained, test: Path, folder: Path) -> Iterator[str]:
    """From POST to downloaded artifacts within a minute; each does, alone with torch, what the report says."""
    with service.client() as client:
        began = time.monotonic()
        dataset = client.upload_dataset(test).id
        model = client.upload_model(trained.path)
        job = client.create_job({"model": model.id, "evaluation": {"dataset": dataset}})
        report = client.report(job)
        _download(client, report, folder / "timed")
        seconds = time.monotonic() - began
        checks = demo.check(client, trained, report, folder / trained.name)
    require(seconds < MOST_SECONDS, f"{seconds:.0f} s from POST to artifact, not {MOST_SECONDS:.0f} s")
    require(report.verdict != "fail", "the report's verdict is fail")
    yield f"{seconds:.1f} s from POST to {len(report.artifacts)} downloaded artifacts"
    for done in checks:
        require(done.holds, f"{done.artifact}: the report says {done.claim}; found alone with torch: {done.found}")
        yield f"{done.artifact}, alone with torch: {done.found}, as reported"


def _download(client: Client, report: Report, folder: Path) -> None:
    folder.mkdir()
    for artifact in report.artifacts:
        client.download(report.job, artifact.name, folder / artifact.name)


def _has_left_queue(client: Client, job: Job) -> bool:
    return client.job(job).status != "queued"


def check_restart(service: Composed, folder: Path) -> Iterator[str]:
    """``docker compose restart`` in the middle of a job: it succeeds all the same, and nothing from before is lost. A
    quick machine may have finished the job before its worker went down: then it is a longer one's turn."""
    with service.client() as client:
        before = _kept(client)
        for repeats in REPEATS:
            job = client.create_job(_long_job(client, folder, repeats))
            until(partial(_has_left_queue, client, job), 60, "the job was not taken within 60 s")
            began, at = time.monotonic(), datetime.now(UTC)
            service.compose("restart")
            service.wait_until_ready()
            away = time.monotonic() - began
            ended = client.wait(job)
            require(ended.status == "succeeded", f"the job ended as {ended.status} after the restart: {ended.error}")
            require(ended.attempts == 1, f"the restart cost an attempt: {ended.attempts}")
            if ended.started_at is not None and ended.started_at > at:
                break
        else:
            raise Failed("every job was over before the restart reached it")
        _download(client, client.report(ended), folder / "restarted")
        lost = before - _kept(client)
    require(not lost, f"lost by the restart: {', '.join(sorted(lost))}")
    yield f"restarted in the middle of a job, ready after {away:.0f} s; taken anew, it {ended.status}, attempts 1"
    yield f"{len(before)} models and ended jobs from before are still there"


def _kept(client: Client) -> set[str]:
    return {model.id for model in client.models()} | {f"{job.id} {job.status}" for job in client.jobs()}


def _long_job(client: Client, folder: Path, repeats: int) -> dict[str, object]:
    """A transformer on the test images, so many times over."""
    data = digits.load_digits()
    with torch.random.fork_rng():
        torch.manual_seed(digits.SEED)
        module = digits.Transformer().eval()
    path = digits.export_pt2(module, data.x_test[:8].clone(), folder / "long.pt2")
    x, labels = numpy.tile(data.x_test.numpy(), (repeats, 1, 1)), numpy.tile(data.labels_test.numpy(), repeats)
    numpy.savez(folder / "long.npz", x=x, labels=labels)
    dataset = client.upload_dataset(folder / "long.npz")
    return {"model": client.upload_model(path).id, "evaluation": {"dataset": dataset.id, "batch_size": 16}}


def check_wheel(service: Composed, trained: demo.Trained, test: Path, folder: Path) -> Iterator[str]:
    """``pip install fewbit`` into an empty environment: command line and client, without torch."""
    folder.mkdir()
    installed = wheel.install(folder)
    saved = folder / "artifacts"
    words = ("quantize", str(trained.path), "--evaluate", str(test), "--out", str(saved))
    shown = installed.cli(*words, url=service.url, key=service.key)
    artifacts = sorted(path.name for path in saved.iterdir())
    require(len(artifacts) == 2, f"`fewbit quantize` saved {artifacts}:\n{shown}")
    ended = installed.script(str(trained.path), url=service.url, key=service.key).split()
    require(ended[0] == "succeeded" and len(ended) == 3, f"the client's job: {ended}")
    yield f"{installed.wheel.name} alone in an environment: `fewbit quantize` saved {' and '.join(artifacts)}"
    yield f"the client in a script: {ended[0]}, {' and '.join(ended[1:])}; no torch came with it"


# ---- what does not start says why ----


def check_refusals(service: Composed, nothing: Path) -> Iterator[str]:
    """A wrong password, an unwritable blob folder, a module that is missing: named, and not status 0. ``nothing`` is an
    empty folder, which hides Celery: an empty tmpfs would get Podman's copy of what it hides."""
    nothing.mkdir()
    wrong = ("--env", "REDIS_URL=redis://:wrong@redis:6379/0")
    right = ("--env", f"REDIS_URL={service.inside('redis', 'cat', 'REDIS_URL').strip()}")
    for image in ("fewbit-gateway", "fewbit-worker"):
        broken = ("--volume", f"{nothing}:{_folder_of(service, image, 'celery')}:ro")
        yield _refused(service, image, "a wrong Redis password", "Redis", *wrong)
        yield _refused(service, image, "a read-only blob folder", "/data/blobs", *right, "--read-only")
        yield _refused(service, image, "Celery missing", "celery", *right, *broken)


def _folder_of(service: Composed, image: str, module: str) -> str:
    ran = service.engine.run(image, "python", "-c", f"import {module}; print({module}.__path__[0])")
    return ran.stdout.strip()


def _refused(service: Composed, image: str, what: str, named: str, *options: str) -> str:
    """Start the image's own command in a container of its own, on the network of the others."""
    key = ("--env", "FEWBIT_API_KEYS=" + service.key)
    ran = service.engine.run("--network", service.network(), "--label", LABEL, "--init", *key, *options, image)
    lines = [line for line in said(ran).splitlines() if named in line and "cannot start" in line]
    require(ran.returncode != 0, f"{image} started with {what}:\n{said(ran)}")
    require(bool(lines), f"{image} does not say that {what} is the reason:\n{said(ran)[-3000:]}")
    return f"{image}, {what}: status {ran.returncode}, {lines[0].strip()[:140]}"


def check_logs(service: Composed) -> Iterator[str]:
    """No message was lost: none had to be delivered a second time."""
    logs = service.logs()
    found = [f"{name}: {line}" for name, text in logs.items() for line in text.splitlines() if AGAIN in line]
    require(not found, f'"{AGAIN}" in the logs:\n' + "\n".join(found[:5]))
    silent = [name for name, text in logs.items() if not text.strip()]
    require(len(logs) == len(SERVICES) and not silent, f"logs of {', '.join(logs)}; empty: {silent}")
    yield f'no "{AGAIN}" in {sum(len(text.splitlines()) for text in logs.values())} lines of {len(logs)} logs'


# ---- for all of them ----

Check = Callable[[], Iterator[str]]


@contextmanager
def headed(title: str) -> Iterator[None]:
    """A heading, and how long what is beneath it took."""
    print(f"\n{title}", flush=True)
    began = time.monotonic()
    yield
    print(f"  {time.monotonic() - began:.1f} s", flush=True)


def print_found(title: str, found: Iterator[str]) -> None:
    """Run a check and print what it finds. Raises ``Failed``."""
    with headed(title):
        for line in found:
            print(f"  ✓ {line}", flush=True)
