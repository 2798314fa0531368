"""Fixed ranges: one pass of the float model over the calibration data, an observer on every value that needs one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from fewbit.contract.spec import ReportParts
from fewbit.runtime.program import Program
from workers.engine.calibration.activation_statistics import input_statistics
from workers.engine.calibration.calibration_set import SampleRanges, calibration_report
from workers.engine.calibration.conversion import Calibration, Conversion
from workers.engine.calibration.data_pass import run_calibration
from workers.engine.calibration.unreached_branches import BranchCoverage
from workers.engine.data import Data
from workers.engine.quantization.arithmetic import FLOAT
from workers.engine.quantization.integer_chains import FixedValue, fixed_values
from workers.engine.quantization.observers import Observer, QParams, observer_for
from workers.engine.quantization.plan import Planned
from workers.engine.quantization.reference import FixedRange
from workers.engine.quantization.repair import with_finite_weights
from workers.errors import EngineError


def calibrate(
    conversion: Conversion, read_data: Callable[[], Data], parts: ReportParts, advance: Callable[[float], None]
) -> Conversion:
    """Fix the ranges that this plan needs. Layers that no sample reached go back to float products in the plan.

    ``read_data`` is called only when a range is needed. Raises ``EngineError('calibration-failed')``, naming the batch.
    """
    program, planned = conversion.program, conversion.planned
    values = fixed_values(program, planned)
    if not values:
        return conversion
    data, branches = read_data(), BranchCoverage(program, conversion.layers)
    observers = {node: observer_for(value.settings.range) for node, value in values.items() if value.like is None}
    extents = {node: SampleRanges() for node in observers} if parts.calibration else {}
    inputs = input_statistics(conversion.layers) if parts.activations else {}
    observed = _observe_values([*observers.items(), *extents.items(), *inputs.items()])
    run_calibration(with_finite_weights(program), {**observed, **branches.around()}, data, advance)
    planned, ranges = _drop_unreached(program, planned, values, observers)
    unreached = (*_layers_without_data(planned, observers), *branches.never_run)
    report = calibration_report(data, list(extents.values())) if parts.calibration else None
    return replace(conversion, planned=planned, calibration=Calibration(ranges, unreached, inputs, report))


def _layers_without_data(planned: Sequence[Planned], observers: Mapping[fx.Node, Observer]) -> list[str]:
    unseen = {node for node, observer in observers.items() if not observer.seen}
    return [entry.layer.name for entry in planned if any(use.input in unseen for use in entry.layer.uses)]


def _drop_unreached(
    program: Program,
    planned: tuple[Planned, ...],
    values: Mapping[fx.Node, FixedValue],
    observers: Mapping[fx.Node, Observer],
) -> tuple[tuple[Planned, ...], dict[fx.Node, FixedRange]]:
    """The plan and its ranges without the values that no sample reached. They have no range, so their layers multiply
    in float; that changes what chains pass on in integers, so the values are worked out again until nothing changes."""
    while True:
        missing = {node for node, value in values.items() if value.like is None and not _has_data(node, observers)}
        lost = {entry.layer.name for entry in planned if entry.arithmetic.mode == "static" and _touches(entry, missing)}
        if not lost:
            known = {node: value for node, value in values.items() if (value.like or node) not in missing}
            return planned, _fixed_ranges(known, observers)
        planned = tuple(replace(entry, arithmetic=FLOAT) if entry.layer.name in lost else entry for entry in planned)
        values = fixed_values(program, planned)


def _has_data(node: fx.Node, observers: Mapping[fx.Node, Observer]) -> bool:
    return node in observers and observers[node].seen


def _touches(planned: Planned, values: set[fx.Node]) -> bool:
    """Whether the layer reads or returns one of these values."""
    return any(values & {use.input, use.node, *use.node.users} for use in planned.layer.uses)


def _fixed_ranges(
    values: Mapping[fx.Node, FixedValue], observers: Mapping[fx.Node, Observer]
) -> dict[fx.Node, FixedRange]:
    ranges: dict[fx.Node, FixedRange] = {}
    for node, value in values.items():
        qparams = ranges[value.like].qparams if value.like is not None else _qparams(node, value, observers[node])
        ranges[node] = FixedRange(qparams, value.everywhere)
    return ranges


def _observe_values(pairs: Sequence[tuple[fx.Node, Any]]) -> dict[fx.Node, Any]:
    """A node may have several observers: each of them sees its value."""
    by_node: dict[fx.Node, list[Any]] = {}
    for node, observer in pairs:
        by_node.setdefault(node, []).append(observer)
    return {node: _observe_with(observers) for node, observers in by_node.items()}


def _observe_with(observers: Sequence[Any]) -> Callable[..., Any]:
    def around(_: fx.Node, compute: Callable[[], Any], __: Callable[[Any], Any]) -> Any:
        result = compute()
        if isinstance(result, Tensor):
            for observer in observers:
                observer.observe(result.detach())
        return result

    return around


def _qparams(node: fx.Node, value: FixedValue, observer: Observer) -> QParams:
    """Unsigned, as the kernels keep it: signed integers are the same steps, counted from -128."""
    try:
        qparams = observer.qparams(value.settings.dtype, value.reduced)
    except EngineError as error:
        raise EngineError("calibration-failed", f"{node.name}: {error.detail}") from error
    shift = -torch.iinfo(torch.int8).min if value.settings.dtype == "int8" else 0
    return replace(qparams, zero_point=qparams.zero_point + shift, qmin=qparams.qmin + shift, qmax=qparams.qmax + shift)
