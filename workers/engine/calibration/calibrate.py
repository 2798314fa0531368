"""Fixed ranges: one pass of the float model over the calibration data, an observer on every value that needs one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from fewbit.contract.report import CalibrationReport
from fewbit.contract.spec import ReportParts
from fewbit.runtime.program import Program
from workers.engine.calibration.activation_statistics import InputWatch, watches_of
from workers.engine.calibration.calibration_set import RangeWatch, calibration_report
from workers.engine.calibration.unreached_branches import Branches
from workers.engine.data import Data
from workers.engine.graph.run import ProgramRun
from workers.engine.quantization.arithmetic import FLOAT
from workers.engine.quantization.integer_chains import FixedValue, fixed_values
from workers.engine.quantization.observers import Observer, QParams, observer_for
from workers.engine.quantization.plan import Planned
from workers.engine.quantization.reference import FixedRange
from workers.engine.quantization.repair import cleaned
from workers.errors import EngineError, first_line


@dataclass(frozen=True)
class Calibrated:
    """``planned``: the plan, its layers that no sample reached back on float products; ``unreached`` names those.
    ``inputs``: what layers read in the calibration data; ``report``: of that data itself."""

    planned: tuple[Planned, ...]
    ranges: dict[fx.Node, FixedRange]
    unreached: tuple[str, ...] = ()
    inputs: dict[fx.Node, InputWatch] = field(default_factory=dict)
    report: CalibrationReport | None = None


def ranges_of(
    program: Program,
    planned: tuple[Planned, ...],
    data: Callable[[], Data],
    parts: ReportParts,
    advance: Callable[[float], None],
) -> Calibrated:
    """The ranges this plan needs; ``data`` is read only when it needs any. Raises
    ``EngineError('calibration-failed')``, naming the batch."""
    values = fixed_values(program, planned)
    if not values:
        return Calibrated(planned, {})
    given, branches = data(), Branches(program, [each.layer for each in planned])
    observers = {node: observer_for(each.settings.range) for node, each in values.items() if each.like is None}
    extents = {node: RangeWatch() for node in observers} if parts.calibration else {}
    inputs = watches_of(each.layer for each in planned) if parts.activations else {}
    watched = [*observers.items(), *extents.items(), *inputs.items()]
    run_over(cleaned(program), {**_around(watched), **branches.around()}, given, advance)
    planned, ranges = _known(program, planned, values, observers)
    unseen = {node for node, each in observers.items() if not each.seen}
    missed = (each.layer.name for each in planned if any(use.input in unseen for use in each.layer.uses))
    report = calibration_report(given, list(extents.values())) if parts.calibration else None
    return Calibrated(planned, ranges, (*missed, *branches.never_run), inputs, report)


def _known(
    program: Program,
    planned: tuple[Planned, ...],
    values: Mapping[fx.Node, FixedValue],
    observers: Mapping[fx.Node, Observer],
) -> tuple[tuple[Planned, ...], dict[fx.Node, FixedRange]]:
    """The plan and its ranges without what no sample reached: there is no range to fix, so those layers multiply in
    float, and what their chains would have passed on in integers is asked for again."""
    while True:
        missing = {node for node, each in values.items() if each.like is None and not _was_seen(node, observers)}
        lost = {each.layer.name for each in planned if each.arithmetic.mode == "static" and _touches(each, missing)}
        if not lost:
            known = {node: each for node, each in values.items() if (each.like or node) not in missing}
            return planned, _ranges(known, observers)
        planned = tuple(replace(each, arithmetic=FLOAT) if each.layer.name in lost else each for each in planned)
        values = fixed_values(program, planned)


def _was_seen(node: fx.Node, observers: Mapping[fx.Node, Observer]) -> bool:
    return node in observers and observers[node].seen


def _touches(planned: Planned, missing: set[fx.Node]) -> bool:
    """Whether the layer reads or gives one of these values."""
    return any(missing & {use.input, use.node, *use.node.users} for use in planned.layer.uses)


def _ranges(values: Mapping[fx.Node, FixedValue], observers: Mapping[fx.Node, Observer]) -> dict[fx.Node, FixedRange]:
    ranges: dict[fx.Node, FixedRange] = {}
    for node, each in values.items():
        found = ranges[each.like].qparams if each.like is not None else _qparams(node, each, observers[node])
        ranges[node] = FixedRange(found, each.everywhere)
    return ranges


def run_over(program: Program, around: Mapping[fx.Node, Any], data: Data, advance: Callable[[float], None]) -> None:
    """One pass over all of ``data``. Raises ``EngineError('calibration-failed')`` naming the batch that fails."""
    run = ProgramRun(program, around)
    for batch in data.batches():
        try:
            run.outputs(batch.inputs)
        except EngineError:
            raise
        except Exception as error:  # the user's model, on the user's data
            last = batch.start + batch.count - 1
            message = f"the float model fails on calibration samples {batch.start} to {last}: {first_line(error)}"
            raise EngineError("calibration-failed", message) from error
        advance((batch.start + batch.count) / data.samples)


def _around(watched: Sequence[tuple[fx.Node, Any]]) -> dict[fx.Node, Any]:
    """Every watch of a node sees its value."""
    by_node: dict[fx.Node, list[Any]] = {}
    for node, watch in watched:
        by_node.setdefault(node, []).append(watch)
    return {node: _watch(watches) for node, watches in by_node.items()}


def _watch(watches: Sequence[Any]) -> Callable[..., Any]:
    def around(_: fx.Node, compute: Callable[[], Any], __: Callable[[Any], Any]) -> Any:
        result = compute()
        if isinstance(result, Tensor):
            for each in watches:
                each.observe(result.detach())
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
