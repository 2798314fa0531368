"""The ``.pt2`` artifact: the reference itself, plain ATen with integer weights, and its record beside it.

It loads with ``torch.export.load`` alone and runs anywhere, in float arithmetic over quantized values;
``fewbit.runtime.load`` puts the kernels of the machine it runs on in their place.
"""

from __future__ import annotations

from pathlib import Path

import torch

from fewbit.runtime.lowering import Lowering, operator_of
from fewbit.runtime.record import FILE
from fewbit.runtime.script import Call, of_layers
from workers.engine.artifacts.compression import shrink
from workers.engine.quantization.reference import Reference


def save_pt2(reference: Reference, path: Path) -> tuple[Call, ...]:
    """Write ``path``. Returns the calls its layers make."""
    torch.export.save(reference.program.exported, path, extra_files={FILE: reference.record.model_dump_json()})
    shrink(path)
    callers = Lowering(reference.program, reference.record).callers
    calls = (node for node in reference.program.graph.nodes if node.op == "call_function")
    return of_layers(Call(operator_of(node), callers.get(node)) for node in calls)
