"""What the fence costs: the time from fork to exit with it, minus the time without."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.result import Result
from workers.sandbox import fence
from workers.sandbox.child import run_child
from workers.sandbox.fork_server import ForkServer
from workers.sandbox.limits import Limits

ROUNDS = 30
LIMIT_MS = 50.0


def child(request: dict[str, Any], messages: int) -> None:
    """The fork server's entry: enter the fence or not, then exit."""
    if request["fenced"]:
        fence.enter(Path(request["folder"]), Limits(**request["limits"]), "required")
    os.write(messages, b'{"done": {}}\n')


def run() -> Iterator[Result]:
    server = ForkServer("benchmarks.fence:child", "workers.sandbox.runner:preload")
    server.start()
    with tempfile.TemporaryDirectory() as folder:
        fenced = [_fork_ms(server, folder, fenced=True) for _ in range(ROUNDS)]
        bare = [_fork_ms(server, folder, fenced=False) for _ in range(ROUNDS)]
    server.stop()
    cost = 2 * (statistics.median(fenced) - statistics.median(bare))  # a job has two children
    yield Result("the fence, per job, p50", f"{cost:.1f} ms", "limit", f"{LIMIT_MS:g} ms", cost / LIMIT_MS, at_most=1.0)


def _fork_ms(server: ForkServer, folder: str, *, fenced: bool) -> float:
    request = {"folder": folder, "limits": Limits.of(0, 2, 60).request(), "fenced": fenced}
    began = time.perf_counter()
    outcome = run_child(server, request, time.monotonic() + 30)
    assert outcome.failure is None, outcome.output_tail
    return (time.perf_counter() - began) * 1000
