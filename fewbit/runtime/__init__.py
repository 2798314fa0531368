"""Running a Fewbit ``.pt2`` on the int8 kernels of the machine at hand: ``pip install fewbit[torch]``.

model = fewbit.runtime.load("model.pt2")
model(x)
"""

from __future__ import annotations

from fewbit.runtime.model import Model, load

__all__ = ["Model", "load"]
