"""The fence around a child that opens an upload: what the kernel lets it do from then on, whatever it runs.

    limits          address space, processor time, file size, open files, processes, no core file
    no_new_privs    no program can give it more rights
    Landlock        reads the interpreter, its libraries and its own inputs; writes its own folder; no TCP
    seccomp         no sockets, programs, other processes, keys, mounts, io_uring (seccomp.py has the list)
    environment     nothing of the worker's, and no descriptors but output and messages

The fork server has given the child a session of its own. The order matters: each step needs what the next one removes.
Violations are reported by the fork server (system calls), by the exception (paths), or by the watcher (memory, disk).
"""

from __future__ import annotations

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

LISTENER_TO = 4  # the descriptor through which a child sends its listener; closed right after
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
_PR_SET_NO_NEW_PRIVS = 38
_MOST_OPEN_FILES, _MOST_TASKS = 1024, 4096
_STACKS_AND_ARENAS = 16 << 30  # a thread reserves 8 MiB of stack and 128 MiB of malloc arena, and touches little of it

# What libc, libgomp, oneDNN and Python read about the machine, beside the libraries.
_SYSTEM = (
    "/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/usr/share/zoneinfo", "/usr/share/locale",
    "/etc/ld.so.cache", "/etc/localtime", "/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm", "/proc/cpuinfo",
    "/proc/meminfo", "/proc/stat", "/proc/self", "/proc/sys/vm", "/proc/sys/kernel/osrelease", "/proc/filesystems",
    "/dev/urandom", "/dev/random", "/dev/zero",
)  # fmt: skip
_PACKAGES = ("fewbit", "workers")  # not their parent folder: the store may be in it too


class NoFence(Exception):
    """The kernel lacks a part of the fence, and the fence is required."""


@dataclass(frozen=True)
class Support:
    """What this kernel offers: Landlock's ABI (0: none), and seccomp with a listener."""

    landlock: int
    seccomp: bool

    @property
    def missing(self) -> list[str]:
        """The parts this kernel lacks, and what a model can do for it. Landlock's TCP and signal rules do not count:
        seccomp covers both."""
        parts = {
            "Landlock: a model can read what the worker can read": self.landlock < 1,
            "seccomp: a model can use the network and start programs": not self.seccomp,
            "Landlock ABI 3: a file elsewhere can be emptied": 1 <= self.landlock < 3,
        }
        return [words for words, lacks in parts.items() if lacks]

    @property
    def sufficient(self) -> bool:
        return self.landlock > 0 and self.seccomp


@cache
def support() -> Support:
    """What the kernel of this machine offers."""
    return Support(landlock.abi(), seccomp.available())


def enter(folder: Path, limits: Limits, sandbox: Sandbox, packages: tuple[str, ...] = _PACKAGES) -> None:
    """Confine this process to ``folder``. Raises ``NoFence`` if the fence is required and the kernel lacks a part."""
    kernel = support()
    if sandbox == "required" and not kernel.sufficient:
        raise NoFence(f"This kernel lacks {'; '.join(kernel.missing)}.")
    _forget_environment(folder)
    os.umask(0o077)
    os.chdir(folder)
    _limit(limits)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise NoFence("prctl(PR_SET_NO_NEW_PRIVS) failed.")
    if kernel.landlock:
        landlock.enter([*map(Path, _SYSTEM), *_libraries(packages)], [folder, Path(os.devnull)])
    if kernel.seccomp:
        seccomp.enter(LISTENER_TO)
    os.close(LISTENER_TO)


def _forget_environment(folder: Path) -> None:
    """Drop what libraries would read. The worker's own settings never reach the fork server in the first place."""
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    os.environ.clear()
    os.environ.update(kept)
    os.environ.update(HOME=str(folder), TMPDIR=str(folder))
    # When weights_only=True refuses a pickle, torch.export.load tries again with False; this makes torch ignore False.
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
    """The folders of the interpreter, its packages and ours."""
    found = {Path(sys.prefix), Path(sys.base_prefix), *(Path(path) for path in sysconfig.get_paths().values())}
    found |= {Path(path) for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
    ours = (sys.modules[name].__path__[0] for name in packages if name in sys.modules)
    return tuple(path for path in (*found, *map(Path, ours)) if path != Path("/"))


# What the fence refused

_DENIED = ("Permission denied", "Operation not permitted")
_NOT_NAMED = "something"
_QUOTED = re.compile(r"""(?<![\w./])(/[^\s<>'":,]+)""")  # not in the middle of a relative path


def denied_path(error: BaseException) -> str | None:
    """The path that the fence refused, if that is what ``error`` is about; ``None`` otherwise.

    Python puts the path into the exception; C++ puts it into the message, right before the reason. Landlock reports a
    link from outside the folder as EXDEV.
    """
    for cause in causes(error):
        if isinstance(cause, PermissionError) or (isinstance(cause, OSError) and cause.errno == errno.EXDEV):
            return cause.filename if isinstance(cause.filename, str) else _NOT_NAMED
        text = str(cause)
        denied = next((words for words in _DENIED if words in text), None)
        if denied is not None and not isinstance(cause, OSError):
            before, _, after = text.partition(denied)
            return next(iter([*reversed(_QUOTED.findall(before)), *_QUOTED.findall(after)]), _NOT_NAMED)
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """``error``, then the errors it was raised from or during."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
