"""Fixed ranges: one pass of the float model over the calibration data, an observer on every value that needs one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from fewbit.runtime.program import Program
from workers.engine.chains import FixedValue, fixed_values
from workers.engine.data import Data
from workers.engine.errors import EngineError, first_line
from workers.engine.observers import Observer, QParams, observer_for
from workers.engine.plan import Planned
from workers.engine.reference import FixedRange
from workers.engine.run import ProgramRun


def ranges_of(
    program: Program, planned: Sequence[Planned], data: Callable[[], Data], advance: Callable[[float], None]
) -> dict[fx.Node, FixedRange]:
    """The ranges this plan needs; ``data`` is read only when it needs any."""
    values = fixed_values(program, planned)
    return calibrate(program, values, data(), advance) if values else {}


def calibrate(
    program: Program, values: Mapping[fx.Node, FixedValue], data: Data, advance: Callable[[float], None]
) -> dict[fx.Node, FixedRange]:
    """The range of every value. Raises ``EngineError('calibration-failed')``, naming the batch or the value."""
    observers = {node: observer_for(each.settings.range) for node, each in values.items() if each.like is None}
    run_over(program, {node: _watch(each) for node, each in observers.items()}, data, advance)
    ranges: dict[fx.Node, FixedRange] = {}
    for node, each in values.items():
        found = ranges[each.like].qparams if each.like is not None else _qparams(node, each, observers[node])
        ranges[node] = FixedRange(found, each.everywhere)
    return ranges


def run_over(program: Program, around: Mapping[fx.Node, Any], data: Data, advance: Callable[[float], None]) -> None:
    """One pass over all of ``data``. Raises ``EngineError('calibration-failed')`` naming the batch that fails."""
    for batch in data.batches():
        try:
            ProgramRun(program, dict(around)).outputs(batch.inputs)
        except EngineError:
            raise
        except Exception as error:  # the user's model, on the user's data
            last = batch.start + batch.count - 1
            message = f"the float model fails on calibration samples {batch.start} to {last}: {first_line(error)}"
            raise EngineError("calibration-failed", message) from error
        advance((batch.start + batch.count) / data.samples)


def _watch(observer: Observer) -> Callable[..., Any]:
    def around(_: fx.Node, compute: Callable[[], Any], __: Callable[[Any], Any]) -> Any:
        result = compute()
        if isinstance(result, Tensor):
            observer.observe(result.detach())
        return result

    return around


def _qparams(node: fx.Node, value: FixedValue, observer: Observer) -> QParams:
    """As the kernels keep it, unsigned: signed integers are the same steps, counted from -128."""
    try:
        found = observer.qparams(value.settings.dtype, value.reduced)
    except EngineError as error:
        raise EngineError("calibration-failed", f"{node.name}: {error.detail}") from error
    shift = -torch.iinfo(torch.int8).min if value.settings.dtype == "int8" else 0
    return replace(found, zero_point=found.zero_point + shift, qmin=found.qmin + shift, qmax=found.qmax + shift)
