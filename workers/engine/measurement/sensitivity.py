"""What the model loses if only one layer is quantized, for all layers at once.

One pass tells the error ``d[l]`` that quantizing layer ``l`` makes in its own output. To first order it reaches the
model's output as ``J[l] d[l]``, and with random signs ``v`` (Hutchinson 1990)

    E[(v . J[l] d[l])**2] = |J[l] d[l]|**2          v . J[l] d[l] = (J[l].T v) . d[l]

where one backward pass from ``v`` gives ``J[l].T v`` at *every* layer: two or three passes give the number for all
layers, however many there are. Samples of a batch do not mix, so each sample is a draw of its own wherever a layer's
values can be told apart by sample: the gradient of one sample's output shows which are its own.

What sparing a layer gains is measured on the quantized model, because its layers read values that are already rounded
and make other errors. With the model's output error ``e`` in place of ``v``, and ``d`` and ``J`` from its own pass
(gradients pass through rounding unchanged), ``|e - J[l] d[l]|**2 = |e|**2 - 2 e . J[l] d[l] + |J[l] d[l]|**2``.

``brute_force`` evaluates the model once per layer, with only that layer quantized. It is exact, and the only way for
layers whose error has no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx

from fewbit.contract.report import SensitivitySummary
from fewbit.runtime.program import Program
from workers.engine.calibration.conversion import Conversion
from workers.engine.data import Batch, Data
from workers.engine.graph.layers import Use
from workers.engine.graph.run import ProgramRun, differentiable_output, primary_output
from workers.engine.quantization.quantize import QuantizedLayer
from workers.engine.quantization.reference import FixedRange
from workers.engine.quantization.simulation import operand_value, simulate_layer
from workers.errors import EngineError

PASSES = 4.0  # of the float model over all samples: what it may cost
FEWEST_PROBES, MOST_PROBES = 2, 6  # backward passes with random signs
SPARED = 0.25  # of the samples also tell what sparing a layer gains
SPARING = 3  # passes that takes: the quantized model is the float one and its quantized layers, and a backward pass
MOST_SAMPLES = 256
REGIONS = 1.5  # passes for layers inside regions of the graph, if there are any
FEW = 4  # samples that show where in a value each sample lies
LEAST_BATCH = 32  # where the model takes any: a pass costs by the call, too
SMALLEST = 1e-30


@dataclass(frozen=True)
class Sensitivity:
    """By layer name. ``own``: the output's error power over its power with only this layer quantized; ``spared_db``:
    what the output's SQNR gains with only this one spared."""

    own: dict[str, float]
    spared_db: dict[str, float]
    summary: SensitivitySummary


def measure_sensitivity(
    method: str, conversion: Conversion, data: Data, advance: Callable[[float], None]
) -> Sensitivity | None:
    """``method``: estimate, brute_force or off. None if it is off, or no layer is quantized."""
    quantized = conversion.quantized
    if method == "off" or not quantized:
        return None
    if method == "brute_force":
        return brute_force(conversion, list(data.batches()), advance)
    regions = tuple(entry for entry in quantized if entry.layer.kind == "nested")
    try:
        estimated = estimate(conversion, _allocate_budget(data, REGIONS if regions else 0), advance)
        return _add_regions(estimated, replace(conversion, quantized=regions), data, advance) if regions else estimated
    except EngineError:
        raise
    except RuntimeError:  # the model writes over what a gradient needs, or has none
        few = max(1, 4 * data.samples // max(1, 2 * len(quantized) + 1))
        return brute_force(conversion, _first_batches(data, few), advance, data.samples)


def _first_batches(data: Data, samples: int) -> list[Batch]:
    """The first batches that hold this many samples, at least one; smaller ones where the model takes any size."""
    if not data.fixed_batch and not data.rows:
        data = replace(data, batch_size=max(1, min(samples, data.batch_size)))
    return list(islice(data.batches(), max(1, samples // data.batch_size)))


def _add_regions(
    estimated: Sensitivity, regions: Conversion, data: Data, advance: Callable[[float], None]
) -> Sensitivity:
    """Layers inside a region of the graph have no gradient here: they are evaluated one by one, on few samples."""
    few = _first_batches(data, max(1, int(REGIONS * data.samples / (2 * len(regions.quantized) + 2))))
    exact = brute_force(regions, few, advance, data.samples)
    passes = round(estimated.summary.passes + exact.summary.passes, 2)
    return Sensitivity(
        estimated.own | exact.own,
        estimated.spared_db | exact.spared_db,
        estimated.summary.model_copy(update={"passes": passes}),
    )


# --- The estimate -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Budget:
    """What the passes are spent on. ``spared``: batches that also tell what sparing a layer gains; ``others`` do not.
    ``few``: some samples that show how values are laid out; None where the model takes whole batches only, and the
    first batch does."""

    spared: tuple[Batch, ...]
    others: tuple[Batch, ...]
    few: Batch | None
    probes: int
    samples: int
    passes: float


def _allocate_budget(data: Data, taken: float = 0.0) -> _Budget:
    """As many samples, then as many probes, as ``PASSES`` over all of ``data`` pay for, less what is ``taken``."""
    whole = data.fixed_batch or bool(data.rows)  # the model takes batches of this size only
    data = data if whole else replace(data, batch_size=max(data.batch_size, LEAST_BATCH))
    unit = data.batch_size if whole else 1
    total = -(-data.samples // unit)
    few = 0 if whole or data.samples < 2 else min(FEW, max(2, data.samples // 4))
    look = 1 if whole else (2 + 1) * few
    left = int((PASSES - taken) * total) - look
    used = max(1, min(total, MOST_SAMPLES // unit, int(left / (2 + FEWEST_PROBES + SPARING * SPARED))))
    spared = max(1, int(used * SPARED))
    if (2 + FEWEST_PROBES) * used + SPARING * spared > left:
        spared = 0
    probes = max(FEWEST_PROBES, min(MOST_PROBES, (left - SPARING * spared) // used - 2))
    spent = (2 + probes) * used + SPARING * spared + look
    return _Budget(
        spared=tuple(_slice_batches(data, 0, spared * unit)),
        others=tuple(_slice_batches(data, spared * unit, used * unit)),
        few=next(_slice_batches(data, 0, few), None),
        probes=probes,
        samples=min(used * unit, data.samples),
        passes=round(spent / total, 2),
    )


def _slice_batches(data: Data, start: int, stop: int) -> Iterator[Batch]:
    """The batches of samples ``start`` to ``stop``."""
    return data.part(start, stop).batches()


@dataclass
class _Taps:
    """What one forward pass leaves at each layer call: a place to read the gradient, and the error made there."""

    taps: list[Tensor] = field(default_factory=list)
    errors: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def estimate(conversion: Conversion, budget: _Budget, advance: Callable[[float], None]) -> Sensitivity:
    """A forward pass that also computes each layer's error, then as many backward passes as the budget leaves. Some
    batches get one more, from the error of the whole. Raises ``RuntimeError`` where the program has no gradient."""
    own = {entry.layer.name: 0.0 for entry in conversion.quantized}
    changes = dict.fromkeys(own, 0.0) if budget.spared else {}
    signal = everything = 0.0
    generator = torch.Generator().manual_seed(0)
    layouts = _layouts(*_forward(conversion, budget.few), budget.few) if budget.few else None
    batches = (*budget.spared, *budget.others)
    for index, batch in enumerate(batches):
        output, taps = _forward(conversion, batch)
        usable = torch.isfinite(output)
        signal += _power(torch.where(usable, output.detach(), 0.0))
        layouts = layouts or _layouts(output, taps, batch)
        powers = _probe(output, usable, taps, layouts, budget.probes, generator)
        own = {name: power + powers.get(name, 0.0) for name, power in own.items()}
        if index < len(budget.spared):
            rounded, taps = _forward(conversion, batch, rounded=True)
            error = torch.where(usable & torch.isfinite(rounded), rounded - output, 0.0).detach()
            everything += _power(error)
            for name, products in _project_errors(rounded, taps, error, layouts).items():
                changes[name] += powers.get(name, 0.0) - 2 * float(products.sum())
        advance((index + 1) / len(batches))
    return Sensitivity(
        {name: power / max(signal, SMALLEST) for name, power in own.items()},
        {name: _gain_db(everything, everything + change) for name, change in changes.items()},
        SensitivitySummary(method="estimate", samples=budget.samples, passes=budget.passes),
    )


def _probe(
    output: Tensor,
    usable: Tensor,
    taps: _Taps,
    layouts: Sequence[_Layout | None],
    probes: int,
    generator: torch.Generator,
) -> dict[str, float]:
    """By layer, ``|J d|**2`` estimated from backward passes with random signs. ``usable``: where the output is
    finite."""
    powers: dict[str, float] = {}
    for _ in range(probes):
        signs = torch.randint(0, 2, output.shape, generator=generator).to(output.dtype).mul_(2).sub_(1)
        for name, products in _project_errors(output, taps, torch.where(usable, signs, 0.0), layouts).items():
            powers[name] = powers.get(name, 0.0) + float(products.square().sum()) / probes
    return powers


def _forward(conversion: Conversion, batch: Batch, rounded: bool = False) -> tuple[Tensor, _Taps]:
    """The output of the float model, or of the ``rounded`` one, with a gradient at every layer."""
    taps = _Taps()
    around = {
        use.node: _tap(entry, use, conversion.ranges, taps, rounded)
        for entry in conversion.quantized
        for use in entry.layer.uses
    }
    output = differentiable_output(ProgramRun(conversion.program, around).outputs(batch.inputs, grad=True))
    if not output.requires_grad:
        raise RuntimeError("the output has no gradient")
    return output.reshape(output.shape or (1,)), taps


def _tap(quantized: QuantizedLayer, use: Use, ranges: Mapping[fx.Node, FixedRange], taps: _Taps, rounded: bool) -> Any:
    def around(_: fx.Node, compute: Callable[[], Any], value: Callable[[Any], Any]) -> Any:
        with torch.no_grad():
            approximation = simulate_layer(quantized, use, value, ranges)
        result = compute()
        first = result[0] if isinstance(result, list | tuple) else result
        if approximation is None:
            return result
        tap = torch.zeros_like(first, requires_grad=True)
        error = torch.nan_to_num((approximation - first).detach(), posinf=0.0, neginf=0.0)
        taps.taps.append(tap)
        taps.errors.append(error.float())
        taps.names.append(quantized.layer.name)
        return _replace_first(result, first + error + tap if rounded else first + tap)

    return around


def _replace_first(result: Any, first: Tensor) -> Any:
    return type(result)((first, *result[1:])) if isinstance(result, list | tuple) else first


def _project_errors(
    output: Tensor, taps: _Taps, direction: Tensor, layouts: Sequence[_Layout | None]
) -> dict[str, Tensor]:
    """By layer, ``direction . J d``, per sample where samples can be told apart: float64 [samples] or [1]."""
    gradients = torch.autograd.grad(output, taps.taps, direction, retain_graph=True, allow_unused=True)
    sums: dict[str, Tensor] = {}
    for name, gradient, error, layout in zip(taps.names, gradients, taps.errors, layouts, strict=True):
        product = error.new_zeros(1) if gradient is None else torch.nan_to_num(gradient.float() * error)
        known = layout is not None and gradient is not None and len(output) > 1
        part = layout.by_sample(product, len(output)) if known and layout else product.sum(dtype=torch.float64)[None]
        before = sums.get(name)
        if before is not None and before.shape != part.shape:
            before, part = before.sum()[None], part.sum()[None]
        sums[name] = part if before is None else before + part
    return sums


@dataclass(frozen=True)
class _Layout:
    """Where samples lie in a value: on ``axis``, in blocks one after the other, or every so many-th (``strided``)."""

    axis: int
    strided: bool

    def by_sample(self, product: Tensor, samples: int) -> Tensor:
        """The sum of each sample's values: float64 [samples]."""
        rows = product.movedim(self.axis, 0).flatten(1).sum(1, dtype=torch.float64)
        return rows.view(-1, samples).sum(0) if self.strided else rows.view(samples, -1).sum(1)


def _layouts(output: Tensor, taps: _Taps, batch: Batch) -> list[_Layout | None]:
    gradients = _gradients_of_second_sample(output, taps, batch)
    return [_layout(gradient, batch.size) for gradient in gradients]


def _gradients_of_second_sample(output: Tensor, taps: _Taps, batch: Batch) -> tuple[Tensor | None, ...]:
    """The gradient of the second sample's output at each layer; None where the batch has no such sample."""
    samples = batch.size
    if samples < 2 or len(output) != samples:
        return (None,) * len(taps.taps)
    direction = torch.zeros_like(output)
    direction[1] = 1.0
    return torch.autograd.grad(output, taps.taps, direction, retain_graph=True, allow_unused=True)


def _layout(gradient: Tensor | None, samples: int) -> _Layout | None:
    """Read off the gradient of the second sample's output; None where its values cannot be told from the others'."""
    if gradient is None or not bool(gradient.any()):
        return None
    for axis, size in enumerate(gradient.shape):
        if size % samples:
            continue
        touched = gradient.movedim(axis, 0).flatten(1).any(1)
        for strided in (False, True):
            own = touched.view(-1, samples)[:, 1] if strided else touched.view(samples, -1)[1]
            if int(own.sum()) == int(touched.sum()):
                return _Layout(axis, strided)
    return None


def _gain_db(before: float, after: float) -> float:
    """How much less error there is, in dB; what rounding leaves of nothing counts as a thousandth."""
    if before <= SMALLEST:
        return 0.0
    return round(10 * math.log10(before / max(after, before * 1e-3)), 3)


# --- The truth --------------------------------------------------------------------------------------------------------


def brute_force(
    conversion: Conversion, batches: Sequence[Batch], advance: Callable[[float], None], samples: int | None = None
) -> Sensitivity:
    """Two passes per layer: with only that layer quantized, and with all others quantized."""
    program, quantized = conversion.program, conversion.quantized
    own = {entry.layer.name: 0.0 for entry in quantized}
    spared = dict.fromkeys(own, 0.0)
    signal = everything = 0.0
    for index, batch in enumerate(batches):
        output = primary_output(ProgramRun(program).outputs(batch.inputs))
        signal += _power(torch.where(torch.isfinite(output), output, 0.0))
        everything += _power(_output_error(conversion, batch, output))
        for position, entry in enumerate(quantized):
            only = replace(conversion, quantized=(entry,))
            others = replace(conversion, quantized=tuple(other for other in quantized if other is not entry))
            own[entry.layer.name] += _power(_output_error(only, batch, output))
            spared[entry.layer.name] += _power(_output_error(others, batch, output))
            advance((index + (position + 1) / len(quantized)) / len(batches))
    used = sum(batch.count for batch in batches)
    passes = round((2 * len(quantized) + 2) * used / max(1, samples or used), 2)
    return Sensitivity(
        {name: power / max(signal, SMALLEST) for name, power in own.items()},
        {name: _gain_db(everything, power) for name, power in spared.items()},
        SensitivitySummary(method="brute_force", samples=used, passes=passes),
    )


def _output_error(conversion: Conversion, batch: Batch, output: Tensor) -> Tensor:
    """How far the output of the quantized layers' model is from ``output``, the float one; 0 where either is not
    finite."""
    quantized, ranges = conversion.quantized, conversion.ranges
    around = {use.node: _substitute_output(entry, use, ranges) for entry in quantized for use in entry.layer.uses}
    run = ProgramRun(_quantize_regions(conversion.program, quantized), around)
    difference = primary_output(run.outputs(batch.inputs)) - output
    return torch.where(torch.isfinite(output) & torch.isfinite(difference), difference, 0.0)


def _quantize_regions(program: Program, quantized: Iterable[QuantizedLayer]) -> Program:
    """The program with integer weights for layers inside regions, which only have their weights in integers."""
    inside = [entry for entry in quantized if entry.layer.kind == "nested"]
    weights = {
        use.operands[0]: operand_value(entry.layer.operands[0], entry.weights[0])
        for entry in inside
        for use in entry.layer.uses
    }
    constants = {
        node: replace(constant, value=weights[node].to(constant.value.dtype)) if node in weights else constant
        for node, constant in program.constants.items()
    }
    return replace(program, constants=constants, folded={}) if inside else program


def _substitute_output(quantized: QuantizedLayer, use: Use, ranges: Mapping[fx.Node, FixedRange]) -> Any:
    def around(_: fx.Node, compute: Callable[[], Any], value: Callable[[Any], Any]) -> Any:
        approximation = simulate_layer(quantized, use, value, ranges)
        result = compute()
        return result if approximation is None else _replace_first(result, approximation)

    return around


def _power(error: Tensor) -> float:
    return float(error.double().square().sum())
