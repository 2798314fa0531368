"""What a worker announces, found without torch."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

from workers import machine


def test_the_cpu_has_a_name_and_an_instruction_set() -> None:
    assert machine.cpu_name()
    assert machine.isa() in {name for _, name in machine._ISA} | {"DEFAULT"}
    assert machine.cores() >= 1


def test_versions_are_the_installed_ones() -> None:
    assert machine.versions()["torch"] == version("torch")


def test_the_worker_process_never_imports_torch() -> None:
    script = "import workers.tasks, workers.machine, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
