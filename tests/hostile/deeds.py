"""What a model that runs any code it likes would try, done behind the fence and nothing else: the entry of a fork
server of the tests. Each says on the message pipe how far it got."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workers.sandbox import fence, runner
from workers.sandbox.limits import Limits


def preload() -> None:
    import torch

    torch.ones(2).sum()


def main(request: dict[str, Any], messages: int) -> None:
    limits = Limits(**request["limits"])
    fence.enter(Path(request["folder"]), limits, "required")
    try:
        told = DEEDS[request["deed"]](request)
    except BaseException as error:
        _say(messages, {"problem": runner._problem(error)})
    else:
        _say(messages, {"done": {"told": told}})


def _say(messages: int, said: dict[str, Any]) -> None:
    os.write(messages, json.dumps(said).encode() + b"\n")


def _read(request: dict[str, Any]) -> str:
    return Path(request["path"]).read_bytes().decode(errors="replace")


def _write(request: dict[str, Any]) -> None:
    Path(request["path"]).write_text("was here")


def _rename_out(request: dict[str, Any]) -> None:
    Path("mine").write_text("x")
    Path("mine").rename(request["path"])


def _link_in(request: dict[str, Any]) -> str:
    os.link(request["path"], "mine")
    return Path("mine").read_text()


def _symlink_in(request: dict[str, Any]) -> str:
    Path("mine").symlink_to(request["path"])
    return Path("mine").read_text()


def _call(name: str, *arguments: int) -> Callable[[dict[str, Any]], int]:
    """A system call by its number on this machine, as machine code of a model's would make it."""

    def make(_: dict[str, Any]) -> int:
        from workers.sandbox import seccomp

        known = {called: number for number, called in seccomp.refused().items()}
        return int(ctypes.CDLL(None, use_errno=True).syscall(known[name], *arguments))

    return make


def _attributes(request: dict[str, Any]) -> None:
    os.setxattr(request["path"], "user.mine", b"1")


def _library_mode(_: dict[str, Any]) -> None:
    """A library may be opened, and its owner's process could lock everyone out of it. (Here it keeps its mode.)"""
    with Path(os.__file__).open("rb") as library:
        os.fchmod(library.fileno(), os.fstat(library.fileno()).st_mode & 0o7777)


def _signal_by_file(_: dict[str, Any]) -> None:
    """A pipe that is written to sends a signal of one's choice to a process of one's choice."""
    ours, _theirs = os.pipe()
    fcntl.fcntl(ours, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(ours, fcntl.F_SETOWN, os.getppid())


def _newer_call(request: dict[str, Any]) -> str:
    """fchmodat2 (Linux 6.6), which no table of the fence names."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(452, -100, request["path"].encode(), 0, 0)
    return errno.errorcode[ctypes.get_errno()]


def _touch_shared(_: dict[str, Any]) -> None:
    """Memory that is no process's own."""
    kept = []
    while True:
        kept.append(mmap.mmap(-1, 16 << 20))
        kept[-1].write(b"x" * (16 << 20))


def _own_affinity(_: dict[str, Any]) -> None:
    os.sched_setaffinity(0, os.sched_getaffinity(0))


def _connect(request: dict[str, Any]) -> None:
    socket.create_connection(("127.0.0.1", request["port"]), 2)


def _thread(request: dict[str, Any]) -> None:
    """A thread started behind the fence is behind it too."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            Path(request["path"]).read_text()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    raise failures[0]


def _threads_fenced(_: dict[str, Any]) -> list[list[str]]:
    """NoNewPrivs and Seccomp of every thread, torch's own pool among them."""
    import torch

    torch.set_num_threads(4)
    torch.randn(2000, 2000).sum()
    torch.randn(500, 500).mm(torch.randn(500, 500))
    lines = [(task / "status").read_text().splitlines() for task in Path("/proc/self/task").iterdir()]
    return [[field for field in line if field.startswith(("NoNewPrivs", "Seccomp:"))] for line in lines]


def _kill_group(_: dict[str, Any]) -> None:
    os.kill(0, signal.SIGKILL)


def _kill_parent(_: dict[str, Any]) -> None:
    os.kill(os.getppid(), signal.SIGKILL)


def _kill_everything(_: dict[str, Any]) -> None:
    os.killpg(os.getpgid(os.getppid()), signal.SIGKILL)


def _allocate(_: dict[str, Any]) -> None:
    mmap.mmap(-1, 1 << 40)


def _touch(_: dict[str, Any]) -> None:
    kept = []
    while True:
        kept.append(bytearray(b"x" * (16 << 20)))


def _write_one(_: dict[str, Any]) -> None:
    with Path("big").open("wb", buffering=0) as file:
        while file.write(bytes(1 << 20)):
            pass


def _write_many(_: dict[str, Any]) -> None:
    for number in range(1 << 30):
        Path(str(number)).write_bytes(bytes(1 << 20))


def _write_entries(_: dict[str, Any]) -> None:
    for number in range(1 << 30):
        Path(str(number)).touch()


def _lock(_: dict[str, Any]) -> None:
    for number in range(3):
        Path(f"d{number}/e").mkdir(parents=True)
        Path(f"d{number}/e/f").touch()
        Path(f"d{number}/e").chmod(0)
        Path(f"d{number}").chmod(0o500)


def _loop(_: dict[str, Any]) -> None:
    while True:
        pass


def _print(_: dict[str, Any]) -> None:
    for _number in range(1024):
        os.write(1, b"x" * (1 << 20))


def _environment(_: dict[str, Any]) -> str:
    return Path("/proc/self/environ").read_text() + repr(sorted(os.environ.items()))


def _descriptors(_: dict[str, Any]) -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def _limits(_: dict[str, Any]) -> None:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard * 2, hard * 2))


DEEDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "read": _read,
    "write": _write,
    "rename": _rename_out,
    "link": _link_in,
    "symlink": _symlink_in,
    "mode": lambda request: Path(request["path"]).chmod(0o777),
    "owner": lambda request: os.chown(request["path"], 12345, 12345),
    "times": lambda request: os.utime(request["path"], (0, 0)),
    "attributes": _attributes,
    "library mode": _library_mode,
    "newer call": _newer_call,
    "connect": _connect,
    "thread": _thread,
    "threads fenced": _threads_fenced,
    "system": lambda _: os.system("true"),
    "subprocess": lambda _: subprocess.run(["true"], check=True),
    "fork": lambda _: os.fork(),
    "exec": lambda _: os.execv("/bin/true", ["true"]),
    "setsid": lambda _: os.setsid(),
    "kill group": _kill_group,
    "kill parent": _kill_parent,
    "kill everything": _kill_everything,
    "ptrace": _call("ptrace", 16, os.getppid()),
    "keyctl": _call("keyctl", 0),
    "mount": _call("mount", 0, 0, 0, 0, 0),
    "io_uring": _call("io_uring_setup", 1, 0),
    "bpf": _call("bpf", 0, 0, 0),
    "userfaultfd": _call("userfaultfd", 0),
    "process_vm_readv": _call("process_vm_readv", 1, 0, 0, 0, 0, 0),
    "unshare": _call("unshare", 0x10000000),
    "setns": _call("setns", 0, 0),
    "open_by_handle_at": _call("open_by_handle_at", 0, 0, 0),
    "pidfd_open": _call("pidfd_open", 1, 0),
    "shmget": _call("shmget", 0, 1, 0),
    "shmctl": _call("shmctl", 0, 0, 0),
    "watch": _call("inotify_init1", 0),
    "renice": lambda _: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19),
    "pin": lambda _: os.sched_setaffinity(os.getppid(), {0}),
    "own affinity": _own_affinity,
    "signal by file": _signal_by_file,
    "memory of nobody": lambda _: os.memfd_create("mine"),
    "touch shared": _touch_shared,
    "allocate": _allocate,
    "touch": _touch,
    "write one": _write_one,
    "write many": _write_many,
    "write entries": _write_entries,
    "lock": _lock,
    "loop": _loop,
    "print": _print,
    "environment": _environment,
    "descriptors": _descriptors,
    "limits": _limits,
}
