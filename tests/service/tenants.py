"""Keys made the way an operator makes them: by the command, on the gateway's Redis."""

from __future__ import annotations

import os
import subprocess
import sys

from local.stack import ROOT
from tests.service.gateway import Gateway


def keys(gateway: Gateway, *arguments: str) -> str:
    """What ``python -m service.keys`` prints."""
    ran = run(gateway, *arguments)
    ran.check_returncode()
    return ran.stdout.strip()


def run(gateway: Gateway, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m service.keys``, however it ends."""
    command = [sys.executable, "-m", "service.keys", *arguments]
    environment = {**os.environ, **gateway.env}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
