"""The machine and the libraries a job ran on."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
from pathlib import Path

import numpy as np
import torch

from fewbit.contract.report import Provenance
from fewbit.runtime.kernels import has_vnni
from fewbit.version import VERSION


def provenance(threads: int, seed: int, timings_s: dict[str, float], peak_memory_bytes: int) -> Provenance:
    return Provenance(
        fewbit=VERSION,
        torch=torch.__version__,
        torchao=_version("torchao"),
        numpy=np.__version__,
        python=platform.python_version(),
        cpu=_cpu_name(),
        isa=torch.backends.cpu.get_cpu_capability() + (" VNNI" if has_vnni() else ""),
        threads=threads,
        seed=seed,
        timings_s={name: round(seconds, 4) for name, seconds in timings_s.items()},
        peak_memory_bytes=peak_memory_bytes,
    )


def peak_memory_bytes() -> int:
    """The largest resident set this process has had, the preloaded libraries it was forked with included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
