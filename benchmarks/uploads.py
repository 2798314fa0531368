"""Upload of 1 GiB, against cp and sha256sum of the same file on the same disk."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.result import Result
from fewbit.errors import FewbitError
from local.stack import Stack

GIBIBYTE = 1 << 30
ROUNDS = 3
MEMORY_LIMIT_MIB = 200


def run() -> Iterator[Result]:
    with tempfile.TemporaryDirectory(prefix="fewbit-bench-", dir=".") as name:
        folder = Path(name).absolute()
        ours, peers, peak = [], [], 0.0
        with Stack(folder / "stack") as stack, stack.client() as client:
            for index in range(ROUNDS):
                source = _archive(folder / f"{index}.pt2")
                peers.append(_copy_and_hash(source, folder / "copy"))
                with _PeakMemory(stack.pids["gateway"] or 0) as memory:
                    began = time.perf_counter()
                    model = client.upload_model(source)
                    ours.append(time.perf_counter() - began)
                peak = max(peak, memory.mib)
                with contextlib.suppress(FewbitError):  # it is no model; what counts is that its inspection is over
                    client.inspected(model)
                source.unlink()
        mine, theirs = GIBIBYTE / statistics.median(ours) / 1e6, GIBIBYTE / statistics.median(peers) / 1e6
        yield Result(
            "upload of 1 GiB", f"{mine:.0f} MB/s", "cp + sha256sum", f"{theirs:.0f} MB/s", mine / theirs, at_least=0.5
        )
        yield Result(
            "gateway memory meanwhile", f"{peak:.0f} MiB", "limit", f"{MEMORY_LIMIT_MIB} MiB", peak / MEMORY_LIMIT_MIB,
            at_most=1.0,
        )  # fmt: skip


def _archive(path: Path) -> Path:
    """1 GiB of noise that begins like a zip: the gateway takes it, the inspection will refuse it."""
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        for _ in range(1024):
            file.write(os.urandom(1 << 20))
        file.truncate(GIBIBYTE)
    os.sync()
    return path


def _copy_and_hash(source: Path, target: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["cp", source, target], check=True)
    subprocess.run(["sha256sum", target], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


class _PeakMemory:
    """The largest resident set of a process while the block runs, in MiB."""

    def __init__(self, pid: int) -> None:
        self.mib = 0.0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
            self.mib = max(self.mib, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
