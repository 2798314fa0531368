"""Weights that hold NaN or infinity: where they are, and the program with finite ones in their place.

NaN becomes 0, which takes one connection out; infinity the largest finite magnitude of its tensor, which is what an
overflow of a smaller type meant to be.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from fewbit.runtime.program import Program
from workers.engine.graph.editor import GraphEditor


def non_finite(program: Program) -> dict[str, int]:
    """By the name of a parameter or buffer, how many of its values are NaN or infinite, where any is."""
    counts = {constant.name: _count(constant.value) for constant in program.constants.values()}
    return {name: count for name, count in counts.items() if count}


def with_finite_weights(program: Program) -> Program:
    """``program`` on finite constants, on the same graph: what is behind a NaN can be measured again. ``program``
    itself where there is none."""
    broken = non_finite(program)
    if not broken:
        return program
    constants = {
        node: replace(constant, value=finite(constant.value)) if constant.name in broken else constant
        for node, constant in program.constants.items()
    }
    return replace(program, constants=constants, folded={})


def repair_constants(program: Program, names: Collection[str]) -> Program:
    """A program whose parameters and buffers of these names are finite. ``program`` is not changed."""
    editor = GraphEditor(program)
    for name in names:
        value = editor.value(name)
        if value is not None:
            editor.set_value(name, finite(value.detach()))
    return editor.finish()


def finite(value: Tensor) -> Tensor:
    """``value`` without NaN and infinity."""
    known = value[torch.isfinite(value)]
    largest = float(known.abs().max()) if known.numel() else 0.0
    return torch.nan_to_num(value, nan=0.0, posinf=largest, neginf=-largest)


def _count(value: Tensor) -> int:
    if value.layout is not torch.strided or not (value.dtype.is_floating_point or value.dtype.is_complex):
        return 0
    if bool(torch.isfinite(value.sum(dtype=torch.float64 if value.dtype.is_floating_point else None))):
        return 0  # a finite sum has finite terms; two infinities would cancel to NaN
    return int((~torch.isfinite(value)).sum())
