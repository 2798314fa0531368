"""The fence alone: code that may do anything does nothing outside its folder, and what it tried is named."""

from __future__ import annotations

import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fewbit.contract.problems import JobProblem
from store.startup import NotReady
from tests.hostile.evidence import RecordingForkServer, file_state, remaining_processes
from workers import process, startup
from workers.sandbox import fence
from workers.sandbox.child import DeadlinePassed, run_child
from workers.sandbox.fork_server import ForkServer
from workers.sandbox.limits import Limits
from workers.sandbox.outcome import ChildOutcome
from workers.sandbox.usage import LimitExceeded
from workers.scratch import scratch_folder
from workers.settings import WorkerSettings

SMALL = Limits(memory=600 << 20, disk=32 << 20, cpu=60, files=2000).request()
SECRET = "the weights of another tenant"


@pytest.fixture(scope="module")
def forks() -> Iterator[RecordingForkServer]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("REDIS_URL", "redis://secret")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        server = RecordingForkServer("tests.hostile.deeds:main", "tests.hostile.deeds:preload")
        server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def check_that_no_process_is_left(forks: RecordingForkServer, tmp_path: Path) -> Iterator[None]:
    """After each deed the same server is there, without a child, and takes the next job."""
    server = forks.pid
    yield
    assert [status for child in forks.children for status in remaining_processes(child, server)] == []
    (tmp_path / "next").mkdir(mode=0o700)
    assert run_deed(forks, tmp_path / "next", "descriptors").failure is None
    assert forks.pid == server
    forks.children.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """What lies in the store, or in the scratch folder of another job."""
    path = tmp_path / "another" / "canary"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


def run_deed(forks: ForkServer, folder: Path, deed: str, seconds: float = 30, **more: Any) -> ChildOutcome:
    request = {"deed": deed, "folder": str(folder), "limits": SMALL, **more}
    return run_child(forks, request, time.monotonic() + seconds)


def refusal(forks: ForkServer, folder: Path, deed: str, **more: Any) -> JobProblem:
    failure = run_deed(forks, folder, deed, **more).failure
    assert failure is not None, "nothing stopped it"
    return failure


OUT = ["read", "write", "rename", "link", "symlink", "thread", "mode", "owner", "times", "attributes"]


@pytest.mark.parametrize("deed", OUT)
def test_no_path_outside_the_folder_can_be_used(forks: ForkServer, folder: Path, canary: Path, deed: str) -> None:
    before = file_state(canary)
    failure = refusal(forks, folder, deed, path=str(canary))
    assert failure.slug == "sandbox-violation"
    assert file_state(canary) == before
    assert [path.name for path in canary.parent.iterdir()] == ["canary"]


@pytest.mark.parametrize("place", ["/tmp", "/var/tmp", "/dev/shm", "/run", "/etc", str(Path.home()), sys.prefix])
def test_nothing_on_the_machine_can_be_written(forks: ForkServer, folder: Path, place: str) -> None:
    path = Path(place) / f"fewbit-canary-{uuid.uuid4().hex}"
    failure = refusal(forks, folder, "write", path=str(path))
    assert failure.slug == "sandbox-violation"
    assert str(path) in failure.detail
    assert not path.exists()


def test_a_library_that_may_be_read_keeps_its_mode(forks: ForkServer, folder: Path) -> None:
    before = file_state(Path(os.__file__))
    assert refusal(forks, folder, "library mode").slug == "sandbox-violation"
    assert file_state(Path(os.__file__)) == before


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/shadow", "/root", "/proc/1/environ", "/var/log", "/tmp"])
def test_the_machines_files_cannot_be_read(forks: ForkServer, folder: Path, path: str) -> None:
    failure = refusal(forks, folder, "read", path=path)
    assert failure.slug == "sandbox-violation"
    assert path in failure.detail


CALLS = {
    "system": "clone", "subprocess": "fork", "fork": "clone", "exec": "execve", "setsid": "setsid",
    "kill group": "kill", "kill parent": "kill", "kill everything": "kill", "ptrace": "ptrace", "keyctl": "keyctl",
    "mount": "mount", "io_uring": "io_uring_setup", "bpf": "bpf", "userfaultfd": "userfaultfd",
    "process_vm_readv": "process_vm_readv", "unshare": "unshare", "setns": "setns",
    "open_by_handle_at": "open_by_handle_at", "pidfd_open": "pidfd_open", "shmget": "shmget",
    "shmctl": "shmctl", "watch": "inotify_init1", "renice": "setpriority", "pin": "sched_setaffinity",
    "signal by file": "fcntl",
}  # fmt: skip


@pytest.mark.parametrize("deed", CALLS)
def test_a_forbidden_system_call_ends_the_job_and_is_named(forks: ForkServer, folder: Path, deed: str) -> None:
    failure = refusal(forks, folder, deed)
    assert failure.slug == "sandbox-violation"
    assert CALLS[deed] in failure.detail


def test_no_connection_is_made(forks: ForkServer, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        failure = refusal(forks, folder, "connect", port=server.getsockname()[1])
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()
    assert failure.slug == "sandbox-violation"
    assert "socket" in failure.detail


def test_every_thread_is_fenced(forks: ForkServer, folder: Path) -> None:
    result = run_deed(forks, folder, "threads fenced").result
    assert result is not None
    assert len(result["told"]) > 1
    assert all(line == ["NoNewPrivs:\t1", "Seccomp:\t2"] for line in result["told"])


def test_a_call_newer_than_the_table_fails_with_enosys(forks: ForkServer, folder: Path, canary: Path) -> None:
    before = file_state(canary)
    result = run_deed(forks, folder, "newer call", path=str(canary)).result
    assert result is not None
    assert result["told"] == "ENOSYS"
    assert file_state(canary) == before


def test_a_thread_may_choose_its_own_processors(forks: ForkServer, folder: Path) -> None:
    assert run_deed(forks, folder, "own affinity").failure is None


def test_memory_that_belongs_to_no_process_is_refused(forks: ForkServer, folder: Path) -> None:
    assert refusal(forks, folder, "memory of nobody").slug == "sandbox-violation"


def test_a_terabyte_cannot_be_allocated(forks: ForkServer, folder: Path) -> None:
    assert refusal(forks, folder, "allocate").slug in ("out-of-memory", "internal-error")


@pytest.mark.parametrize("deed", ["touch", "touch shared"])
def test_used_memory_is_limited(forks: ForkServer, folder: Path, deed: str) -> None:
    with pytest.raises(LimitExceeded) as ended:
        run_deed(forks, folder, deed)
    assert ended.value.problem.slug == "out-of-memory"


def test_one_large_file_is_stopped(forks: ForkServer, folder: Path) -> None:
    try:
        failure = refusal(forks, folder, "write one")
    except LimitExceeded as ended:
        failure = ended.problem
    assert failure.slug == "sandbox-violation"
    assert (folder / "big").stat().st_size <= SMALL["disk"]


@pytest.mark.parametrize("deed", ["write many", "write entries"])
def test_many_files_are_stopped(forks: ForkServer, folder: Path, deed: str) -> None:
    with pytest.raises(LimitExceeded) as ended:
        run_deed(forks, folder, deed)
    assert ended.value.problem.slug == "sandbox-violation"


@pytest.mark.parametrize("deed", ["lock", "write entries"])
def test_whatever_a_child_leaves_is_wiped(forks: ForkServer, tmp_path: Path, deed: str) -> None:
    with scratch_folder(tmp_path, "job_1") as folder:
        try:
            run_deed(forks, folder, deed)
        except LimitExceeded:
            assert any(folder.iterdir())
    assert not folder.exists()


def test_an_endless_loop_is_stopped(forks: ForkServer, folder: Path) -> None:
    with pytest.raises(DeadlinePassed):
        run_deed(forks, folder, "loop", seconds=0.5)
    busy = SMALL | {"cpu": 1}
    assert refusal(forks, folder, "loop", limits=busy).slug in ("time-limit-exceeded", "out-of-memory")


def test_a_gigabyte_of_output_fills_no_memory(forks: ForkServer, folder: Path) -> None:
    end = run_deed(forks, folder, "print")
    assert end.failure is None
    assert len(end.output_tail) <= 8192


def test_the_environment_holds_nothing_of_the_worker(forks: ForkServer, folder: Path) -> None:
    result = run_deed(forks, folder, "environment").result
    assert result is not None
    assert "secret" not in result["told"]


def test_only_output_and_messages_are_open(forks: ForkServer, folder: Path) -> None:
    result = run_deed(forks, folder, "descriptors").result
    assert result is not None
    assert result["told"] == ["0", "1", "2", "3", "4"]  # 4 lists the folder


def test_limits_cannot_be_raised(forks: ForkServer, folder: Path) -> None:
    """Not by root either."""
    failure = refusal(forks, folder, "limits")
    assert failure.slug == "sandbox-violation"
    assert "prlimit64" in failure.detail


def test_a_worker_without_a_fence_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "support", lambda: fence.Support(landlock=0, seccomp=False))
    with pytest.raises(NotReady):
        startup._require_sandbox(WorkerSettings())
    startup._require_sandbox(WorkerSettings(sandbox="best-effort"))


def test_a_worker_announces_what_its_kernel_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process.sandbox_support(WorkerSettings())["missing"] == []
    monkeypatch.setattr(fence, "support", lambda: fence.Support(landlock=0, seccomp=True))
    support = process.sandbox_support(WorkerSettings())
    assert support["mode"] == "required"
    assert "Landlock" in str(support["missing"])
