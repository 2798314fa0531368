"""Runs an artifact the way its user will: in a fresh interpreter that imports torch and nothing else.

The process sees neither this checkout nor Fewbit nor numpy (``python -I`` ignores the working directory and
PYTHONPATH, and the script fails if one of them was imported).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

SCRIPT = """
import json, sys
import torch

artifact, arrays, batch, threads = sys.argv[1], torch.load(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
model = torch.export.load(artifact).module() if artifact.endswith(".pt2") else torch.jit.load(artifact)
with torch.no_grad():
    outputs = [model(x) for x in arrays["x"].split(batch)]
unwanted = [name for name in ("fewbit", "workers", "torchao") if name in sys.modules]
if unwanted:
    sys.exit(f"the artifact needs {unwanted}")
print(json.dumps([int(label) for output in outputs for label in output.argmax(1)]))
"""


def predictions(artifact: Path, x: Tensor, batch: int, threads: int) -> list[int]:
    """The class the artifact predicts for each sample of ``x``. Raises ``RuntimeError`` if it does not run alone."""
    arrays = artifact.with_name("x.pt")
    torch.save({"x": x}, arrays)
    command = [sys.executable, "-I", "-W", "ignore", "-c", SCRIPT, str(artifact), str(arrays), str(batch), str(threads)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{artifact.name} does not run alone:\n{ran.stderr.strip()[-2000:]}")
    classes: list[int] = json.loads(ran.stdout)
    return classes
