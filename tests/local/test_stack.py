"""The whole stack as `make up` and the demo start it: it comes up, heals, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy
import pytest

from fewbit.errors import FewbitError
from local.stack import ROOT, Stack, StackError


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


def processes_naming(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            everything = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in everything and int(process.name) != os.getpid():
            found.append(everything.split(b"\0\0")[0].decode(errors="replace"))
    return found


def wait_until(true: object, timeout_s: float = 20) -> None:
    assert callable(true)
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_it_answers_to_its_key_and_to_no_other(stack: Stack) -> None:
    with stack.client() as client:
        assert "pt2" in client.capabilities()["formats"]
        assert list(client.models()) == []
    stranger = httpx2.get(f"{stack.url}/models", headers={"Authorization": "Bearer wrong"}, trust_env=False)
    assert stranger.status_code == 401


def test_a_problem_of_the_service_reaches_the_person(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "not.pt2").write_bytes(b"hello")
    with stack.client() as client, pytest.raises(FewbitError) as raised:
        client.upload_model(tmp_path / "not.pt2")
    assert raised.value.slug == "invalid-model"
    assert "What to do: Export with `torch.export.save" in str(raised.value)


def test_it_works_on_after_redis_was_killed(stack: Stack) -> None:
    stack.restart_redis()
    with stack.client() as client:
        assert list(client.jobs()) == []


def test_a_killed_worker_is_replaced(stack: Stack) -> None:
    before = stack.pids
    stack.kill_worker()
    stack.restart_dead_parts()
    assert stack.pids["worker"] not in (None, before["worker"])
    assert stack.pids["gateway"] == before["gateway"]
    stack.wait_until_ready()


def samples(folder: Path) -> Path:
    """The same bytes each time."""
    numpy.savez(folder / "samples.npz", x=numpy.zeros((4, 2), numpy.float32))
    return folder / "samples.npz"


def test_a_killed_redis_is_replaced_and_has_kept_everything(stack: Stack, tmp_path: Path) -> None:
    with stack.client() as client:
        uploaded = client.upload_dataset(samples(tmp_path))
        before = stack.pids
        stack.redis.kill()
        stack.restart_dead_parts()
        assert client.upload_dataset(samples(tmp_path)).id == uploaded.id
    assert stack.pids == before
    stack.wait_until_ready()


def open_to_others(folder: Path) -> list[Path]:
    return [path for path in (folder, *folder.rglob("*")) if path.lstat().st_mode & 0o077]


def test_no_other_user_can_read_what_the_stack_keeps(stack: Stack, tmp_path: Path) -> None:
    with stack.client() as client:
        client.upload_dataset(samples(tmp_path))
    kept = {path.name for path in stack.folder.rglob("*")}
    assert {"blobs", "sha256", "logs", "gateway.log", "worker.log", "redis.log", "appendonlydir"} <= kept
    assert open_to_others(stack.folder) == []


def test_a_folder_that_others_could_open_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with Stack(folder):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_part_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"FEWBIT_LEASE_S|lease_s"), Stack(tmp_path, env={"FEWBIT_LEASE_S": "never"}):
        pass
    assert processes_naming(tmp_path) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_nothing_is_left_running(tmp_path: Path, how: signal.Signals) -> None:
    script = f"""
import time
from pathlib import Path
from local.stack import Stack
with Stack(Path({str(tmp_path)!r})):
    print("up", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, process_group=0
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        assert len(processes_naming(tmp_path)) >= 4
        if how == signal.SIGINT:
            os.killpg(parent.pid, how)  # as a terminal does: everyone in the group
        else:
            parent.send_signal(how)
        parent.wait(30)
    wait_until(lambda: processes_naming(tmp_path) == [])
