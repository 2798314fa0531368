"""Keys made the way an operator makes them: by the command, on the gateway's Redis."""

from __future__ import annotations

import os
import subprocess
import sys

from local.stack import ROOT
from tests.service.gateway import Gateway


def keys(gateway: Gateway, *arguments: str) -> str:
    """What ``python -m service.keys`` prints."""
    command = [sys.executable, "-m", "service.keys", *arguments]
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **gateway.env}, capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()
