"""Nothing a stack starts outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.child import Child
from local.stack import ROOT

SLEEP = (sys.executable, "-c", "print('here', flush=True); import time; time.sleep(60)")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('here', flush=True); time.sleep(60)",
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "child.log"


def child(log: Path, command: tuple[str, ...] = SLEEP) -> Child:
    return Child("child", command, dict(os.environ), log, ROOT)


def wait_for(log: Path, text: str = "here", timeout_s: float = 10) -> None:
    for _ in range(int(timeout_s / 0.02)):
        if log.exists() and text in log.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"{text!r} did not appear")


@pytest.fixture
def stubborn(log: Path) -> Iterator[Child]:
    started = child(log, STUBBORN)
    started.start()
    wait_for(log)
    yield started
    started.kill()


def gone(pid: int) -> bool:
    for _ in range(250):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.02)
    return False


def test_it_starts_stops_and_starts_again(log: Path) -> None:
    started = child(log)
    for _ in range(2):
        started.start()
        assert started.alive
        started.stop()
        assert not started.alive


def test_a_child_that_ignores_sigterm_is_killed(stubborn: Child) -> None:
    stubborn.stop(timeout_s=0.2)
    assert not stubborn.alive


def test_it_dies_with_a_parent_that_was_killed(log: Path) -> None:
    script = f"""
import os, sys, time
from pathlib import Path
from local.child import Child
child = Child("child", {STUBBORN!r}, dict(os.environ), Path({str(log)!r}), Path({str(ROOT)!r}))
child.start()
print(child.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_for(log)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert gone(pid)


def test_the_end_of_the_log_can_be_read(log: Path) -> None:
    started = child(log, (sys.executable, "-c", "raise SystemExit('no such setting')"))
    started.start()
    wait_for(log, "no such setting")
    started.stop()
    assert started.log_tail() == "no such setting"
