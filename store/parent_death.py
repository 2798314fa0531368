"""Processes that must not outlive the one that started them (prctl(2), ``PR_SET_PDEATHSIG``)."""

from __future__ import annotations

import ctypes

PR_SET_PDEATHSIG = 1


def die_with_parent(signal_number: int) -> None:
    """Ask the kernel for ``signal_number`` when the thread that started this process ends. It survives ``exec``.

    A parent that died before the call goes unnoticed: compare ``os.getppid()`` afterwards. Linux only.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
