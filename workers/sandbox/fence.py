"""The fence around a child that touches an upload: what the kernel lets it do from here on, whatever it runs.

    limits          address space, processor time, file size, open files, processes, no core file
    no_new_privs    no program can give it more rights
    Landlock        reads the interpreter, its libraries and its own inputs; writes its own folder; no TCP
    seccomp         no sockets, programs, other processes, keys, mounts, io_uring (seccomp.py has the list)
    environment     none of the worker's, and no descriptors but output and messages

The fork server has made it a session of its own before. The order matters: each step needs what the next takes away.
What it did against the fence is told by the fork server (system calls), by the exception (paths) or by the watcher
(memory, disk).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import resource
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from workers.sandbox import landlock, seccomp
from workers.sandbox.limits import Limits

Sandbox = Literal["required", "best-effort"]

LISTENER_TO = 4  # the descriptor a child sends its listener through, closed right after
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
_PR_SET_NO_NEW_PRIVS = 38
_MOST_OPEN_FILES, _MOST_TASKS = 1024, 4096
_STACKS_AND_ARENAS = 16 << 30  # a thread reserves 8 MiB of stack and 128 MiB of malloc arena, and touches little of it

# What libc, libgomp, oneDNN and Python ask the machine about itself, beside the libraries.
_SYSTEM = (
    "/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/usr/share/zoneinfo", "/usr/share/locale",
    "/etc/ld.so.cache", "/etc/localtime", "/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm", "/proc/cpuinfo",
    "/proc/meminfo", "/proc/stat", "/proc/self", "/proc/sys/vm", "/proc/sys/kernel/osrelease", "/proc/filesystems",
    "/dev/urandom", "/dev/random", "/dev/zero",
)  # fmt: skip
_PACKAGES = ("fewbit", "workers")  # never the folder they lie in: the store may lie there too


class NoFence(Exception):
    """The kernel lacks a part of the fence, and the fence is required."""


@dataclass(frozen=True)
class Support:
    """What this kernel has: Landlock's ABI (0: none), and seccomp with a listener."""

    landlock: int
    seccomp: bool

    @property
    def missing(self) -> list[str]:
        """In words; empty where the whole fence stands. TCP and signals have other walls too (seccomp)."""
        parts = {
            "Landlock: a model can read what the worker can read": self.landlock < 1,
            "seccomp: a model can use the network and start programs": not self.seccomp,
            "Landlock ABI 3: a file elsewhere can be emptied": 1 <= self.landlock < 3,
        }
        return [words for words, lacks in parts.items() if lacks]

    @property
    def stands(self) -> bool:
        return self.landlock > 0 and self.seccomp


@cache
def support() -> Support:
    """Of the kernel this process runs on."""
    return Support(landlock.abi(), seccomp.available())


def enter(folder: Path, limits: Limits, sandbox: Sandbox, packages: tuple[str, ...] = _PACKAGES) -> None:
    """Shut this process in ``folder``. Raises ``NoFence`` when the fence is required and cannot be had."""
    there = support()
    if sandbox == "required" and not there.stands:
        raise NoFence(f"This kernel lacks {'; '.join(there.missing)}.")
    _forget_environment(folder)
    os.umask(0o077)
    os.chdir(folder)
    _limit(limits)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise NoFence("prctl(PR_SET_NO_NEW_PRIVS) failed.")
    if there.landlock:
        landlock.enter([*map(Path, _SYSTEM), *_libraries(packages)], [folder, Path(os.devnull)])
    if there.seccomp:
        seccomp.enter(LISTENER_TO)
    os.close(LISTENER_TO)


def _forget_environment(folder: Path) -> None:
    """The fork server was started without the worker's settings already; this is for what a library would read."""
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    os.environ.clear()
    os.environ.update(kept)
    os.environ.update(HOME=str(folder), TMPDIR=str(folder))
    # torch.export.load answers a refused pickle with weights_only=False; this makes torch ignore that.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def _limit(limits: Limits) -> None:
    space = _mapped_now() + 2 * limits.memory + _STACKS_AND_ARENAS
    wanted = {
        resource.RLIMIT_AS: space,
        resource.RLIMIT_CPU: limits.cpu,
        resource.RLIMIT_FSIZE: limits.disk,
        resource.RLIMIT_NOFILE: _MOST_OPEN_FILES,
        resource.RLIMIT_NPROC: _MOST_TASKS,
        resource.RLIMIT_CORE: 0,
    }
    for what, most in wanted.items():
        hard = resource.getrlimit(what)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (limit, limit))


def _mapped_now() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@cache
def _libraries(packages: tuple[str, ...]) -> tuple[Path, ...]:
    """Where the interpreter, its packages and ours are."""
    found = {Path(sys.prefix), Path(sys.base_prefix), *(Path(path) for path in sysconfig.get_paths().values())}
    found |= {Path(path) for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
    ours = (sys.modules[name].__path__[0] for name in packages if name in sys.modules)
    return tuple(path for path in (*found, *map(Path, ours)) if path != Path("/"))


# ---- what it ran into ----

_DENIED = ("Permission denied", "Operation not permitted")
_NOT_NAMED = "something"
_QUOTED = re.compile(r"""(?<![\w./])(/[^\s<>'":,]+)""")  # not the end of a path that is none of the machine's


def denied_path(error: BaseException) -> str | None:
    """The path behind ``error`` that the fence did not let it touch; ``None`` if that is not what went wrong. C++
    writes the path into its message, right before what was wrong with it, Python into the exception. Landlock calls a
    link from outside EXDEV."""
    for cause in chain(error):
        if isinstance(cause, PermissionError) or (isinstance(cause, OSError) and cause.errno == errno.EXDEV):
            return cause.filename if isinstance(cause.filename, str) else _NOT_NAMED
        text = str(cause)
        denied = next((words for words in _DENIED if words in text), None)
        if denied is not None and not isinstance(cause, OSError):
            before, _, after = text.partition(denied)
            return next(iter([*reversed(_QUOTED.findall(before)), *_QUOTED.findall(after)]), _NOT_NAMED)
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error``, and what it was raised from or during."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


# ---- what the watcher looks at ----


_OWN_MEMORY = re.compile(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", re.MULTILINE)


def memory_of(pid: int) -> int:
    """Resident bytes that are not files' pages, what it shares without a file included; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return 1024 * sum(map(int, _OWN_MEMORY.findall(status)))


def disk_of(folder: Path, most_files: int) -> tuple[int, int]:
    """Bytes on disk and number of entries beneath ``folder``; stops counting past ``most_files``."""
    size = entries = 0
    waiting = [str(folder)]
    while waiting and entries <= most_files:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as found:
            for entry in found:
                entries += 1
                with contextlib.suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                if entries > most_files:
                    break
    return size, entries
