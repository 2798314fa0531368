"""`make up`, in a checkout of its own: what it leaves running, who may read it, and what it starts again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from redis import ConnectionError as RedisConnectionError
from redis import Redis

from local.stack import ROOT


def run(checkout: Path, *arguments: str) -> str:
    """As someone does whose files are open to everyone."""
    command = [sys.executable, "-m", "local.up", *arguments]
    return subprocess.run(command, cwd=checkout, umask=0, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("fewbit", "store", "service", "workers", "local", "docs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".run").mkdir(mode=0o755)  # as earlier releases left it
    assert "Fewbit runs at http://127.0.0.1:" in run(folder)
    yield folder
    assert "Fewbit is stopped." in run(folder, "down")


def state(checkout: Path) -> dict[str, str]:
    told: dict[str, str] = json.loads((checkout / ".run" / "stack.json").read_text())
    return told


def test_no_other_user_can_read_anything_of_it(checkout: Path) -> None:
    run_folder = checkout / ".run"
    found = [run_folder, *run_folder.rglob("*")]
    assert {"stack.log", "key", "logs", "redis", "blobs"} <= {path.name for path in found}
    assert run_folder.stat().st_mode & 0o777 == 0o700
    assert [path for path in found if path.lstat().st_mode & 0o077] == []


def test_a_second_make_up_says_where_the_first_runs(checkout: Path) -> None:
    assert state(checkout)["url"] in run(checkout)


def test_its_redis_is_started_again(checkout: Path) -> None:
    url = f"unix://{checkout / '.run' / 'redis' / 'redis.sock'}"
    with Redis.from_url(url) as client:
        first = client.info("server")["process_id"]
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while not (second := answering(url)) or second == first:
            assert time.monotonic() < deadline, (checkout / ".run" / "stack.log").read_text()
            time.sleep(0.1)
    while httpx2.get(f"{state(checkout)['url']}/health/ready", trust_env=False).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answering(url: str) -> int:
    """The process that answers there; 0 when there is none."""
    try:
        with Redis.from_url(url) as client:
            process: int = client.info("server")["process_id"]
            return process
    except RedisConnectionError:
        return 0
