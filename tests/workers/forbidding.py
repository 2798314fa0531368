"""A kernel without Landlock, as a container may have it: a filter of system calls that knows none of its calls."""

from __future__ import annotations

import ctypes
import errno
import struct

_LANDLOCK_CREATE_RULESET = 444  # on every machine
_LOAD_NUMBER, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # linux/seccomp.h
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER = 22, 38, 2


def forbid_landlock() -> None:
    """For this process and its children, for good."""
    program = (
        struct.pack("HBBI", _LOAD_NUMBER, 0, 0, 0)
        + struct.pack("HBBI", _JUMP_IF_EQUAL, 0, 1, _LANDLOCK_CREATE_RULESET)
        + struct.pack("HBBI", _RETURN, 0, 0, _ERRNO | errno.ENOSYS)
        + struct.pack("HBBI", _RETURN, 0, 0, _ALLOW)
    )
    held = ctypes.create_string_buffer(program)
    told = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(held)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(_PR_SET_SECCOMP, _FILTER, told, 0, 0) == 0, ctypes.get_errno()
