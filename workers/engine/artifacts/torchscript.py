"""The TorchScript artifact: the reference on the int8 kernels of the machine it is made for; see ``fewbit.runtime``."""

from __future__ import annotations

from pathlib import Path

import torch

from fewbit.runtime.script import Call, script
from workers.engine.artifacts.compression import shrink
from workers.engine.quantization.reference import Reference


def save_torchscript(reference: Reference, path: Path) -> tuple[Call, ...]:
    """Write ``path``; it loads with ``torch.jit.load`` alone. Returns the calls its layers make.

    Raises ``NotExpressible`` naming the node TorchScript has no form for.
    """
    made = script(reference.program, reference.record)
    torch.jit.save(made.module, path)
    shrink(path)
    return made.calls
