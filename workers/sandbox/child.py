"""Watching one child: what it says, what it prints, how it ends. Nothing it does can hang or flood the watcher."""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewbit.contract.problems import JOB_PROBLEMS, JobProblem
from workers.sandbox import fence
from workers.sandbox.fork_server import Child, ForkServer, ForkServerLost, Request
from workers.sandbox.limits import Limits

_TICK_S = 0.1  # how long a cancel or a shutdown may go unseen
_CHUNK = 1 << 16
_LAST_WORDS = 8192
_LONGEST_MESSAGE = 64 << 20  # an inspection of ten thousand layers is 5 MB
_AFTER_THE_END_S = 1.0
_DISK_EVERY_S = 0.5


class DeadlinePassed(Exception):
    """The child ran past its deadline and was killed."""


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (minus the signal's number), its final message, the last it printed."""

    exit_code: int
    done: dict[str, Any] | None
    problem: JobProblem | None
    last_words: str
    violation: str | None = None
    refused: str | None = None

    @property
    def failure(self) -> JobProblem | None:
        """Why this is no success; ``None`` if it is one."""
        if self.violation is not None:
            return JobProblem.of(
                "sandbox-violation", f"The model made the system call {self.violation}, which its sandbox forbids."
            )
        if self.exit_code < 0:
            return _killed(-self.exit_code)
        if self.problem is not None and self.problem.slug == "sandbox-violation" and self.refused is not None:
            return JobProblem.of("sandbox-violation", f"{self.problem.detail} It made the system call {self.refused}.")
        if self.problem is not None:
            return self.problem
        if self.done is None or self.exit_code != 0:
            return JobProblem.of("internal-error", f"The engine left with code {self.exit_code} and no result.")
        return None


@dataclass
class _Heard:
    """What has come through the pipes so far."""

    hear: Callable[[str, Any], None]
    buffer: bytearray = field(default_factory=bytearray)
    printed: bytearray = field(default_factory=bytearray)
    done: dict[str, Any] | None = None
    problem: JobProblem | None = None

    def message_bytes(self, chunk: bytes) -> None:
        self.buffer += chunk
        if b"\n" in chunk:
            *lines, rest = bytes(self.buffer).split(b"\n")
            self.buffer = bytearray(rest)
            for line in lines:
                self._message(line)
        if len(self.buffer) > _LONGEST_MESSAGE:
            self.buffer.clear()

    def output_bytes(self, chunk: bytes) -> None:
        self.printed += chunk
        if len(self.printed) > 2 * _LAST_WORDS:
            del self.printed[:-_LAST_WORDS]

    def _message(self, line: bytes) -> None:
        """One JSON line. The child has run a stranger's model, so nothing it says is taken on trust."""
        match _decoded(line):
            case {"progress": [str(stage), int() | float() as fraction]} if 0 <= fraction <= 1:
                self.hear("progress", (_text(stage, 64), float(fraction)))
            case {"log": str(message)}:
                self.hear("log", _text(message, 2000))
            case {"problem": [str(slug), str(detail)]} if slug in JOB_PROBLEMS:
                self.problem = JobProblem.of(slug, _text(detail, 4000))
            case {"done": dict(result)}:
                self.done = result


def run_child(
    forks: ForkServer,
    order: Request,
    deadline: float,
    check: Callable[[], None] = lambda: None,
    hear: Callable[[str, Any], None] = lambda *_: None,
) -> Ended:
    """Fork a child, watch it to its end, leave nothing of it behind. Raises what ``fork`` and ``watch`` raise, and
    ``TooMuch``."""
    with closing(forks.fork(order)) as child:
        return watch(child, deadline, _both(check, Consumption.of(order, child)), hear)


class TooMuch(Exception):
    """The child took more memory or disk than it may."""

    def __init__(self, slug: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = JobProblem.of(slug, detail)


@dataclass
class Consumption:
    """What one child takes, looked at while it runs: no limit of the kernel counts resident memory, or a folder."""

    pid: int
    folder: Path
    limits: Limits
    _looked: float = field(default=0.0)

    @classmethod
    def of(cls, order: Request, child: Child) -> Consumption | None:
        """``None`` for an order without limits."""
        if "limits" not in order:
            return None
        return cls(child.pid, Path(order["folder"]), Limits(**order["limits"]))

    def check(self) -> None:
        """Raises ``TooMuch``."""
        used = fence.memory_of(self.pid)
        if used > self.limits.memory:
            raise TooMuch("out-of-memory", f"The job took {_mib(used)}; it may take {_mib(self.limits.memory)}.")
        if time.monotonic() - self._looked >= _DISK_EVERY_S:
            self._check_disk()
            self._looked = time.monotonic()

    def _check_disk(self) -> None:
        size, files = fence.disk_of(self.folder, self.limits.files)
        if size > self.limits.disk or files > self.limits.files:
            taken = f"{_mib(size)} in {files} files or more"
            most = f"{_mib(self.limits.disk)} in {self.limits.files}"
            raise TooMuch("sandbox-violation", f"The model wrote {taken} into its folder; it may write {most}.")


def _both(check: Callable[[], None], consumption: Consumption | None) -> Callable[[], None]:
    def checks() -> None:
        check()
        if consumption is not None:
            consumption.check()

    return checks


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


def watch(
    child: Child,
    deadline: float,
    check: Callable[[], None] = lambda: None,
    hear: Callable[[str, Any], None] = lambda *_: None,
) -> Ended:
    """Watch ``child`` to its end. ``deadline`` is on ``time.monotonic``'s clock; ``hear`` gets ``progress`` and
    ``log``; ``check`` is called ten times a second, and whatever it raises ends the child.

    Raises ``DeadlinePassed``, ``ForkServerLost`` and what ``check`` raises; the child is dead in every case.
    """
    heard = _Heard(hear)
    with selectors.DefaultSelector() as selector:
        _register(selector, child, heard)
        try:
            code = _until_exit(selector, child, deadline, check)
        except BaseException:
            _kill_and_wait(selector, child)
            raise
        _drain(selector, child)
    last_words = heard.printed[-_LAST_WORDS:].decode(errors="replace")
    return Ended(code, heard.done, heard.problem, last_words, child.violation, child.refused)


def _register(selector: selectors.BaseSelector, child: Child, heard: _Heard) -> None:
    for descriptor, take in ((child.messages, heard.message_bytes), (child.output, heard.output_bytes)):
        os.set_blocking(descriptor, False)
        selector.register(descriptor, selectors.EVENT_READ, take)
    selector.register(child.status, selectors.EVENT_READ)


def _until_exit(selector: selectors.BaseSelector, child: Child, deadline: float, check: Callable[[], None]) -> int:
    while True:
        check()
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlinePassed
        for key, _ in selector.select(min(left, _TICK_S)):
            if key.fileobj is child.status:
                if (code := child.exit_code()) is not None:
                    return code
                continue
            _read(selector, key)


def _read(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    """One chunk at a time, so that a child that floods one pipe does not starve the rest."""
    try:
        chunk = os.read(key.fd, _CHUNK)
    except BlockingIOError:
        return
    if chunk:
        key.data(chunk)
    else:
        selector.unregister(key.fileobj)  # closed its end; its exit is still to come


def _drain(selector: selectors.BaseSelector, child: Child) -> None:
    """What the dead child had written and nobody had read."""
    selector.unregister(child.status)
    give_up = time.monotonic() + _AFTER_THE_END_S
    while selector.get_map() and time.monotonic() < give_up:
        for key, _ in selector.select(0.05):
            _read(selector, key)


def _kill_and_wait(selector: selectors.BaseSelector, child: Child) -> None:
    """Its folder may be wiped only when it is dead."""
    child.kill()
    give_up = time.monotonic() + 5
    while time.monotonic() < give_up:
        for key, _ in selector.select(0.05):
            if key.fileobj is not child.status:
                _read(selector, key)
            elif _is_over(child):
                return


def _is_over(child: Child) -> bool:
    try:
        return child.exit_code() is not None
    except ForkServerLost:  # the kernel killed it with its server
        return True


def _killed(number: int) -> JobProblem:
    if number == signal.SIGKILL:
        return JobProblem.of(
            "out-of-memory", "The kernel ended the engine with SIGKILL, as it does when the machine is out of memory."
        )
    name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
    if number == signal.SIGXCPU:
        return JobProblem.of("time-limit-exceeded", "The engine used more processor time than its job may.")
    if number == signal.SIGXFSZ:
        return JobProblem.of("sandbox-violation", "The model wrote a larger file than a job may (SIGXFSZ).")
    if number == signal.SIGSYS:
        return JobProblem.of("sandbox-violation", "The model made a system call its sandbox does not allow (SIGSYS).")
    return JobProblem.of("internal-error", f"The engine was ended by signal {name}.")


def _text(text: str, longest: int) -> str:
    """Cut to size, and without the lone surrogates that JSON can spell and UTF-8 cannot."""
    return text[:longest].encode(errors="replace").decode()


def _decoded(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
