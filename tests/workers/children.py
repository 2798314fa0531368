"""What test children do. Named to a ``ForkServer`` as its entry, so it is imported in the fork server."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from workers.sandbox import fence
from workers.sandbox.limits import Limits


def preload() -> None:
    pass


def preload_torch() -> None:
    import torch

    torch.ones(2).sum()


def preload_fails() -> None:
    raise ImportError("there is no such engine")


def main(request: dict[str, Any], messages: int) -> None:
    _DEEDS[request["deed"]](request, messages)


def _say_hello(request: dict[str, Any], messages: int) -> None:
    print("on stdout")
    print("on stderr", file=sys.stderr)
    os.write(messages, b'{"done": {}}\n')


def _die_by_signal(request: dict[str, Any], messages: int) -> None:
    os.kill(os.getpid(), signal.Signals[request["signal"]])
    time.sleep(60)


def _segfault(request: dict[str, Any], messages: int) -> None:
    ctypes.string_at(0)


def _exit(request: dict[str, Any], messages: int) -> None:
    os._exit(request["code"])


def _print_much(request: dict[str, Any], messages: int) -> None:
    line = b"x" * 65535 + b"\n"
    for _ in range(request["bytes"] // len(line)):
        os.write(1, line)
    os.write(1, b"the last words\n")


def _close_pipes_and_sleep(request: dict[str, Any], messages: int) -> None:
    for descriptor in (0, 1, 2, messages):
        os.close(descriptor)
    time.sleep(request["sleep"])


def _spawn_grandchildren(request: dict[str, Any], messages: int) -> None:
    """Two generations that keep the pipes open; their pids go into a file."""
    pids = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        pids.append(pid)
    Path(request["file"]).write_text(" ".join(map(str, [os.getpid(), *pids])))
    if request.get("stay", True):
        time.sleep(600)


def _list_descriptors(request: dict[str, Any], messages: int) -> None:
    os.write(messages, " ".join(sorted(entry.name for entry in Path("/proc/self/fd").iterdir())).encode())


def _describe_self(request: dict[str, Any], messages: int) -> None:
    os.write(messages, f"{os.getpid()} {os.getsid(0)} {os.getpgid(0)}".encode())


def _raise(request: dict[str, Any], messages: int) -> None:
    raise RuntimeError("nobody caught this")


def _shut_in(request: dict[str, Any], messages: int) -> None:
    """Do what the runner does first, and tell what is left."""
    fence.enter(Path(request["folder"]), Limits.of(0, 1, 60), "required")
    seen = {
        "environment": sorted(os.environ),
        "cwd": os.getcwd(),  # noqa: PTH109
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "umask": os.umask(0),
    }
    os.write(messages, json.dumps(seen).encode())


def _load_unscanned(request: dict[str, Any], messages: int) -> None:
    """Load a hostile model as the engine does, without the scan in front."""
    fence.enter(Path(request["folder"]), Limits.of(0, 1, 60), "required")
    import torch

    torch.export.load(request["model"])


_DEEDS = {
    "shut in": _shut_in,
    "load unscanned": _load_unscanned,
    "hello": _say_hello,
    "signal": _die_by_signal,
    "segfault": _segfault,
    "exit": _exit,
    "print": _print_much,
    "close": _close_pipes_and_sleep,
    "family": _spawn_grandchildren,
    "descriptors": _list_descriptors,
    "self": _describe_self,
    "raise": _raise,
}
