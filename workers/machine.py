"""What a worker announces about its machine, found without torch, which the Celery process never imports."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# CPU flag and name, best first. The names are those of torch.backends.cpu.get_cpu_capability(), plus VNNI.
_ISA = (
    ("amx_int8", "AMX"),
    ("avx512_vnni", "AVX512_VNNI"),
    ("avx512f", "AVX512"),
    ("avx_vnni", "AVX2_VNNI"),
    ("avx2", "AVX2"),
    ("i8mm", "I8MM"),
    ("sve", "SVE"),
    ("asimd", "NEON"),
)
_PACKAGES = ("fewbit", "torch", "torchao", "numpy", "celery")


def cpu_name() -> str:
    """The processor's name, as ``/proc/cpuinfo`` gives it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def isa() -> str:
    """The best instruction set for int8 this CPU has: ``AVX2``, ``AVX512_VNNI``, ``NEON``, ..."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return next((name for flag, name in _ISA if flag in flags), "DEFAULT")


def cores() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """The versions of the packages that a job's numbers depend on, from package metadata."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
