"""The fork server with real processes: speed, signals, groups, floods, and deaths of everyone involved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workers.world import wait_until
from workers.sandbox.child import DeadlinePassed, run_child, watch
from workers.sandbox.fork_server import ForkServer, ForkServerLost
from workers.sandbox.outcome import ChildOutcome

ENTRY = "tests.workers.children:main"


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    server = ForkServer(ENTRY, "tests.workers.children:preload")
    server.start()
    yield server
    server.stop()


def ended(forks: ForkServer, seconds: float = 30, **request: Any) -> ChildOutcome:
    return run_child(forks, request, time.monotonic() + seconds)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def read_pids(path: Path) -> list[int]:
    assert wait_until(lambda: path.exists() and path.read_text().count(" ") == 2)
    return [int(word) for word in path.read_text().split()]


def test_a_child_sends_a_result_prints_and_exits(forks: ForkServer) -> None:
    end = ended(forks, deed="hello")
    assert end.failure is None
    assert end.result == {}
    assert "on stdout" in end.output_tail
    assert "on stderr" in end.output_tail


def test_the_exit_code_is_known(forks: ForkServer) -> None:
    assert ended(forks, deed="exit", code=7).exit_code == 7


def test_an_uncaught_exception_is_in_the_output_tail(forks: ForkServer) -> None:
    end = ended(forks, deed="raise")
    assert end.exit_code == 1
    assert "RuntimeError: nobody caught this" in end.output_tail
    assert end.failure is not None
    assert end.failure.slug == "internal-error"


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("SIGKILL", "out-of-memory"),
        ("SIGABRT", "internal-error"),
        ("SIGILL", "internal-error"),
        ("SIGSYS", "sandbox-violation"),
    ],
)
def test_death_by_signal_becomes_a_problem(forks: ForkServer, name: str, slug: str) -> None:
    end = ended(forks, deed="signal", signal=name)
    assert end.exit_code == -signal.Signals[name]
    assert end.failure is not None
    assert end.failure.slug == slug
    assert name in end.failure.detail


def test_a_segmentation_fault_is_named(forks: ForkServer) -> None:
    failure = ended(forks, deed="segfault").failure
    assert failure is not None
    assert "SIGSEGV" in failure.detail


def test_a_child_has_its_own_session_and_no_descriptors_of_others(forks: ForkServer) -> None:
    child = forks.fork({"deed": "self"})
    pid, session, group = map(int, os.read(child.messages, 100).split())
    child.close()
    assert pid == session == group
    child = forks.fork({"deed": "descriptors"})
    # 0 to 3, where the fence sends its listener, and the one that lists the folder
    assert os.read(child.messages, 100).split() == [b"0", b"1", b"2", b"3", b"4", b"5"]
    child.close()


def test_a_gigabyte_of_output_neither_hangs_nor_fills_memory(forks: ForkServer) -> None:
    end = ended(forks, seconds=60, deed="print", bytes=1 << 30)
    assert end.exit_code == 0
    assert len(end.output_tail) <= 8192
    assert end.output_tail.endswith("the last words\n")


def test_a_child_that_closes_its_pipes_is_still_watched(forks: ForkServer) -> None:
    with pytest.raises(DeadlinePassed):
        ended(forks, seconds=0.5, deed="close", sleep=60)


def test_killing_a_child_kills_its_descendants(forks: ForkServer, tmp_path: Path) -> None:
    child = forks.fork({"deed": "family", "file": str(tmp_path / "pids")})
    pids = read_pids(tmp_path / "pids")
    with pytest.raises(DeadlinePassed):
        watch(child, time.monotonic())
    child.close()
    assert wait_until(lambda: not any(map(alive, pids)))


def test_what_a_child_leaves_behind_dies_with_it(forks: ForkServer, tmp_path: Path) -> None:
    """Grandchildren hold the pipes open; the end is seen nevertheless, at once."""
    started = time.monotonic()
    end = ended(forks, deed="family", file=str(tmp_path / "pids"), stay=False)
    assert end.exit_code == 0
    assert time.monotonic() - started < 2
    pids = read_pids(tmp_path / "pids")
    assert wait_until(lambda: not any(map(alive, pids)), seconds=1)


def test_closing_a_child_kills_it(forks: ForkServer, tmp_path: Path) -> None:
    child = forks.fork({"deed": "family", "file": str(tmp_path / "pids")})
    pids = read_pids(tmp_path / "pids")
    child.close()
    assert wait_until(lambda: not any(map(alive, pids)))


def test_children_of_many_threads_do_not_mix(forks: ForkServer) -> None:
    codes: dict[int, int] = {}

    def one(number: int) -> None:
        codes[number] = ended(forks, deed="exit", code=number).exit_code

    threads = [threading.Thread(target=one, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {number: number for number in range(20)}


def test_nothing_leaks(forks: ForkServer) -> None:
    ended(forks, deed="hello")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        ended(forks, deed="hello")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_server_that_died_is_replaced(tmp_path: Path) -> None:
    server = ForkServer(ENTRY, "tests.workers.children:preload")
    child = server.fork({"deed": "family", "file": str(tmp_path / "pids")})
    pids = read_pids(tmp_path / "pids")
    server_pid = int(Path(f"/proc/{pids[0]}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(server_pid, signal.SIGKILL)
    with pytest.raises(ForkServerLost):
        watch(child, time.monotonic() + 10)
    child.close()
    assert wait_until(lambda: not alive(pids[0]))  # by the kernel: PR_SET_PDEATHSIG
    for pid in pids[1:]:
        os.kill(pid, signal.SIGKILL)  # grandchildren have no such promise
    assert wait_until(lambda: _can_fork(server))
    server.stop()


def _can_fork(server: ForkServer) -> bool:
    try:
        return ended(server, deed="hello").failure is None
    except ForkServerLost:
        return False


def test_a_server_that_cannot_import_says_so_at_once() -> None:
    server = ForkServer(ENTRY, "tests.workers.children:preload_fails")
    with pytest.raises(ForkServerLost):
        server.start()


OWNER = """
import sys, time
from workers.sandbox.fork_server import ForkServer
server = ForkServer("tests.workers.children:main", "tests.workers.children:preload")
child = server.fork({"deed": "family", "file": sys.argv[1]})
print(server._process.pid, flush=True)
time.sleep(600)
"""


def test_when_the_owner_is_killed_server_and_children_die(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / "pids")], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    with owner, owner.stdout:
        server = int(owner.stdout.readline())
        pids = read_pids(tmp_path / "pids")
        assert all(map(alive, [server, *pids]))
        owner.kill()
    assert wait_until(lambda: not any(map(alive, [server, *pids])), seconds=2)
