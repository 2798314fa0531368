"""Starting the measuring processes: quiet, offline, two threads, and otherwise as a user's process is.

A process of its own matters. torch's time depends on who else lives there: alone, torch.ao's BERT took 1.6 million page
faults and 23 to 33 ms a batch; beside the other peers, or with malloc told to keep large blocks, 14 to 18 ms.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers.turns import THREADS
from local.stack import ROOT

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "NNCF_CI": "1",  # NNCF reports its use to its makers otherwise
    "OMP_NUM_THREADS": str(THREADS),
}
TAIL = 2000


def run_table(name: str) -> dict[str, Any]:
    """The table's fields. Raises ``RuntimeError`` with the end of what the process said."""
    with tempfile.TemporaryDirectory(prefix="fewbit-bench-") as folder:
        _start(name, folder)
        table: dict[str, Any] = json.loads((Path(folder) / "table.json").read_text())
        return table


def run_alone(name: str, folder: Path, route: str) -> dict[str, dict[str, float]]:
    """A route's turns by shape, in a process where it is alone."""
    _start(name, str(folder), route)
    times: dict[str, dict[str, float]] = json.loads((folder / "alone.json").read_text())
    return times


def _start(*arguments: str) -> None:
    command = [sys.executable, "-m", "benchmarks.peers", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {(done.stdout + done.stderr)[-TAIL:]}")
