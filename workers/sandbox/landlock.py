"""Which files a child may reach: Landlock (landlock(7)), which needs no privilege.

Everything the kernel's ABI can refuse is refused, then allowed again beneath the given paths: reading, or everything a
plain file or folder needs. Links, devices, sockets and pipes cannot be made anywhere.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # on every machine
_VERSION = 1
_PATH_BENEATH = 1

# linux/landlock.h: LANDLOCK_ACCESS_FS_*, in the order of their bits
_NAMES = (
    "EXECUTE", "WRITE_FILE", "READ_FILE", "READ_DIR", "REMOVE_DIR", "REMOVE_FILE", "MAKE_CHAR", "MAKE_DIR", "MAKE_REG",
    "MAKE_SOCK", "MAKE_FIFO", "MAKE_BLOCK", "MAKE_SYM", "REFER", "TRUNCATE", "IOCTL_DEV",
)  # fmt: skip
_BIT = {name: 1 << place for place, name in enumerate(_NAMES)}
_KNOWN = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # ABI: how many of these it has
_READ = _BIT["READ_FILE"] | _BIT["READ_DIR"]
_WRITE = _READ | sum(
    _BIT[name] for name in ("WRITE_FILE", "REMOVE_DIR", "REMOVE_FILE", "MAKE_DIR", "MAKE_REG", "REFER", "TRUNCATE")
)
_OF_FILES = _BIT["READ_FILE"] | _BIT["WRITE_FILE"] | _BIT["TRUNCATE"] | _BIT["IOCTL_DEV"] | _BIT["EXECUTE"]
_NET_ABI, _SCOPE_ABI = 4, 6
_BIND_AND_CONNECT = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """The kernel's version of Landlock; 0 without Landlock."""
    return max(0, int(_libc().syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))))


def enter(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """Refuse everything else to this thread and to the threads it will start. Paths that do not exist are left out.

    ``no_new_privs`` has to be set. Raises ``OSError``.
    """
    ruleset = _ruleset(abi())
    try:
        for path in readable:
            _allow(ruleset, path, _READ)
        for path in writable:
            _allow(ruleset, path, _WRITE)
        _checked(_libc().syscall(_RESTRICT, ruleset, ctypes.c_uint32(0)))
    finally:
        os.close(ruleset)


def _ruleset(version: int) -> int:
    rules = _Ruleset(
        (1 << _KNOWN[min(version, max(_KNOWN))]) - 1,
        _BIND_AND_CONNECT if version >= _NET_ABI else 0,
        _ABSTRACT_SOCKETS_AND_SIGNALS if version >= _SCOPE_ABI else 0,
    )
    return _checked(_libc().syscall(_CREATE, ctypes.byref(rules), ctypes.c_size_t(ctypes.sizeof(rules)), 0))


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    known = (1 << _KNOWN[min(abi(), max(_KNOWN))]) - 1
    wanted = access & known & (~0 if path.is_dir() else _OF_FILES)
    try:
        _checked(_libc().syscall(_ADD, ruleset, _PATH_BENEATH, ctypes.byref(_Beneath(wanted, parent)), 0))
    finally:
        os.close(parent)


def _checked(answer: int) -> int:
    if answer < 0:
        raise OSError(ctypes.get_errno(), "Landlock refused")
    return answer


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
