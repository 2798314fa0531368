"""SmoothQuant: what makes activations hard to quantize moves into the weights, where there is room for it.

A few input channels that are far larger than the rest set the scale of every row. For a group of linear layers that
read the same value, each input channel is divided by ``s`` and the weights' column multiplied by it (Xiao et al. 2022,
section 4):

    s[j] = max|X[j]| ** alpha / max|W[j]| ** (1 - alpha)        (X / s) @ (W * s).T == X @ W.T

The division is free where the value comes from a layer norm that only the group reads: it goes into the norm's own
weight and bias; likewise for a linear, even through a relu. Elsewhere it is one multiplication. Which alpha is right
depends on the model (between 0.3 and 0.7 of one encoder lay 14 dB), so "auto" tries several on calibration data, group
by group, and keeps the one whose quantized outputs are closest to the float ones; a group that would gain little is
left alone. Where only weights are quantized, the same factors spend their integers on the channels that matter most
(AWQ, Lin et al. 2023).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fewbit.contract.report import LayerReport
from fewbit.contract.spec import Clip, Smooth
from fewbit.runtime.program import Program, dtype_of, rank
from workers.engine.calibration.activation_statistics import InputWatch
from workers.engine.calibration.calibrate import run_over
from workers.engine.data import Data
from workers.engine.graph.editor import Surgery, after
from workers.engine.graph.layers import VIEWS, Layer, find_layers
from workers.engine.quantization.observers import fake_quantize, observer_for
from workers.engine.quantization.plan import Planned
from workers.engine.quantization.simulation import per_token
from workers.engine.quantization.weights import quantize_weight

aten = torch.ops.aten

ALPHAS = (0.2, 0.4, 0.6, 0.8)
FINER = (0.1, 0.05)  # then to either side of the best: the error has one valley
SHARED = 2.0  # how much more an error that all rows share counts: later averages over rows do not average it out
LEAST_GAIN = 0.2  # share of the error that must go: 1 dB. Groups that gained less made whole models worse
ROWS = 512  # of each group's input, from all over the calibration data
MOST_KEPT = 2**26  # elements of rows over all groups: 256 MB
OUTPUTS = 128  # of each layer's output channels, to compare by
LEAST_RANGE = 1e-5  # of a channel's largest magnitude, relative to the largest channel's

MAKERS: dict[Any, tuple[int, int]] = {
    aten.layer_norm.default: (2, 1), aten.native_layer_norm.default: (2, 1), aten.linear.default: (1, 2),
}  # fmt: skip
"""Calls whose result is divided by dividing their weight and bias: where the two stand, and the weight's rank."""
SAME = frozenset((aten.contiguous.default, aten.clone.default, aten.relu.default))


@dataclass(frozen=True)
class Smoothed:
    """The program with its groups smoothed, its layers and their plan, and the alpha of each layer that was smoothed,
    by name."""

    program: Program
    layers: tuple[Layer, ...]
    planned: tuple[Planned, ...]
    alphas: Mapping[str, float]


def smoothed(
    program: Program,
    planned: tuple[Planned, ...],
    smooth: Smooth | None,
    data: Callable[[], Data],
    advance: Callable[[float], None],
) -> Smoothed:
    """``program`` computing the same in float, easier to quantize. It is not changed itself, and layers keep their
    names; ``data`` is read only when there is a group. Raises ``EngineError('calibration-failed')`` naming the batch
    on which the model fails."""
    groups = _groups(program, planned) if smooth is not None else []
    before = Smoothed(program, tuple(each.layer for each in planned), planned, {})
    if smooth is None or not groups:
        return before
    seen = _watched(program, groups, data(), lambda share: advance(share / 2))
    fixed = {use.node.name for each in planned if not _may_scale_rows(each) for use in each.layer.uses}
    surgery, alphas = Surgery(program), dict[str, float]()
    for index, group in enumerate(groups):
        found = _found(group, seen[group.input], smooth)
        if found is not None:
            _divide(surgery, group, found.factors, fixed)
            alphas.update((each.planned.layer.name, found.alpha) for each in group.members)
        advance(0.5 + (index + 1) / len(groups) / 2)
    return _replanned(surgery.finish(), planned, alphas) if alphas else before


def _replanned(program: Program, planned: Iterable[Planned], alphas: Mapping[str, float]) -> Smoothed:
    """The plan stays: only the values of weights changed, and where their inputs come from."""
    layers, _ = find_layers(program)
    pairs = zip(layers, planned, strict=True)
    return Smoothed(program, layers, tuple(replace(each, layer=layer) for layer, each in pairs), alphas)


def with_alphas(rows: Iterable[LayerReport], alphas: Mapping[str, float]) -> tuple[LayerReport, ...]:
    """The layer table, saying of each layer that was smoothed with which alpha."""
    return tuple(
        row.model_copy(update={"scheme": row.scheme.model_copy(update={"smooth": alphas[row.name]})})
        if row.scheme is not None and row.name in alphas
        else row
        for row in rows
    )


# --- Which layers belong together -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Member:
    """A linear layer, the parameter or buffer that is its weight, and the axis of that over input channels."""

    planned: Planned
    target: str
    axis: int

    @property
    def weight(self) -> Tensor:
        """float32 [out_features, in_features]."""
        return self.planned.layer.weight.detach().to(torch.float32)


@dataclass(frozen=True)
class _Group:
    """The layers that read ``input``: a float value, input channels on its last axis."""

    input: fx.Node
    members: tuple[_Member, ...]

    @property
    def calls(self) -> list[fx.Node]:
        return [use.node for each in self.members for use in each.planned.layer.uses]


def _groups(program: Program, planned: Iterable[Planned]) -> list[_Group]:
    """In graph order of first use."""
    members: dict[fx.Node, list[_Member]] = {}
    for each in planned:
        member = _member(program, each) if _is_eligible(each) else None
        if member is not None:
            members.setdefault(each.layer.uses[0].input, []).append(member)
    return [_Group(node, tuple(found)) for node, found in members.items()]


def _is_eligible(planned: Planned) -> bool:
    """Whether the layer multiplies rows of one value by a quantized weight. Bounds that the user gave in the units of a
    weight or an input hold for what is there: such layers are left alone."""
    layer = planned.layer
    clipped = planned.arithmetic.mode == "static" and isinstance(planned.activations.range, Clip)
    return (
        layer.kind == "linear"
        and planned.weights is not None
        and not (clipped or isinstance(planned.weights.range, Clip))
        and len({use.input for use in layer.uses}) == 1
        and all(use.axes == (-1,) and use.bias is not use.input for use in layer.uses)
    )


def _may_scale_rows(planned: Planned) -> bool:
    """Whether a factor for each output channel changes no integer of this layer's weight. A layer that stays float has
    none."""
    weights = planned.weights
    return weights is None or not (weights.granularity == "per_tensor" or isinstance(weights.range, Clip))


def _member(program: Program, planned: Planned) -> _Member | None:
    """None for a weight that is computed, or that something else reads too: it cannot change for this layer alone."""
    layer = planned.layer
    node, swapped = layer.uses[0].operands[0], layer.operands[0].transposed
    while node.target in VIEWS and node not in program.constants:
        swapped ^= _swaps(node)
        node = node.args[0]  # type: ignore[assignment]
    constant = program.constants.get(node)
    if constant is None or not _read_only_by(node, {use.node for use in layer.uses}):
        return None
    if sum(each.value.data_ptr() == constant.value.data_ptr() for each in program.constants.values()) > 1:
        return None  # tied: an embedding's table, kept once
    return _Member(planned, constant.name, 0 if swapped else 1)


def _swaps(node: fx.Node) -> bool:
    """Whether this view of a matrix is its transpose."""
    if node.target is aten.permute.default:
        return int(node.args[1][0]) % 2 == 1  # type: ignore[index,arg-type]
    return node.target in (aten.t.default, aten.transpose.int)


def _read_only_by(node: fx.Node, calls: set[fx.Node]) -> bool:
    return all(user in calls or (user.target in VIEWS and _read_only_by(user, calls)) for user in node.users)


# --- What flows into them ---------------------------------------------------------------------------------------------


class _Seen:
    """``largest``: max|X[j]|, float32 [channels], over everything; ``rows``: float32 [at most ``ROWS``, channels]."""

    def __init__(self, channels: int, quota: int, generator: torch.Generator) -> None:
        self.largest = torch.zeros(channels)
        self._quota, self._generator = quota, generator
        self._kept: list[Tensor] = []

    def observe(self, x: Tensor) -> None:
        rows = x.detach().reshape(-1, x.shape[-1]).to(torch.float32)
        if not len(rows):
            return
        self.largest = torch.maximum(self.largest, rows.abs().amax(0))
        chosen = torch.randperm(len(rows), generator=self._generator)[: self._quota]  # a stride would hit one position
        self._kept.append(rows[chosen])

    @property
    def rows(self) -> Tensor:
        return torch.cat(self._kept) if self._kept else torch.zeros(0, len(self.largest))

    @property
    def usable(self) -> bool:
        return bool(self._kept) and bool(torch.isfinite(self.largest).all())


def _watched(
    program: Program, groups: list[_Group], data: Data, advance: Callable[[float], None]
) -> dict[fx.Node, _Seen]:
    """One pass over the data. Every batch gives its share of the rows."""
    widths = {group.input: group.members[0].planned.layer.shape[1] for group in groups}
    rows = max(1, min(ROWS, MOST_KEPT // sum(widths.values())))
    quota = -(-rows // -(-data.samples // data.batch_size))
    generator = torch.Generator().manual_seed(0)
    seen = {node: _Seen(width, quota, generator) for node, width in widths.items()}
    run_over(program, {node: _around(each) for node, each in seen.items()}, data, advance)
    return seen


def _around(seen: _Seen) -> Callable[..., Any]:
    def around(_: fx.Node, compute: Callable[[], Any], __: Callable[[Any], Any]) -> Any:
        result = compute()
        seen.observe(result)
        return result

    return around


# --- Which alpha ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """An alpha, and its ``s``: float32 [channels]."""

    alpha: float
    factors: Tensor


def _found(group: _Group, seen: _Seen, smooth: Smooth) -> _Found | None:
    """What to smooth this group with; None to leave it alone."""
    weights = [each.weight for each in group.members]
    columns = torch.stack([each.abs().amax(0) for each in weights]).amax(0)
    if not seen.usable or not bool(torch.isfinite(columns).all()):
        return None
    if not isinstance(smooth.alpha, str):
        return _Found(smooth.alpha, factors_of(seen.largest, columns, smooth.alpha))
    trial, errors = _Trial(group, seen.rows), dict[float, float]()

    def error(alpha: float) -> float:
        if alpha not in errors:
            errors[alpha] = trial.error(factors_of(seen.largest, columns, alpha))
        return errors[alpha]

    best = min(ALPHAS, key=error)
    for step in FINER:
        best = min((best, round(best - step, 2), round(best + step, 2)), key=error)
    off = trial.error(torch.ones_like(columns))
    return _Found(best, factors_of(seen.largest, columns, best)) if errors[best] < (1 - LEAST_GAIN) * off else None


def factors_of(largest: Tensor, columns: Tensor, alpha: float) -> Tensor:
    """``s`` for max|X[j]| and max|W[j]|, all float32 [channels]. 1 for a channel that nothing comes through; its
    extremes lie evenly around 1, which changes no integer and keeps half precision in its range."""
    used = (largest > 0) & (columns > 0)
    x = largest.clamp_min(float(largest.max()) * LEAST_RANGE).double()
    weight = columns.clamp_min(float(columns.max()) * LEAST_RANGE).double()
    factors = torch.where(used, x**alpha / weight ** (1 - alpha), 1.0)
    known = factors[used] if bool(used.any()) else factors
    return torch.where(used, factors / (known.max() * known.min()).sqrt(), 1.0).to(torch.float32)


class _Trial:
    """The layers of a group on the rows that were kept, at most ``OUTPUTS`` channels of each, and what they give in
    float."""

    def __init__(self, group: _Group, rows: Tensor) -> None:
        self.rows = rows
        self.members = [(each.planned, self._some(each.weight)) for each in group.members]
        self.wanted = [rows @ weight.t() for _, weight in self.members]

    def _some(self, weight: Tensor) -> Tensor:
        return weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))[:OUTPUTS]]

    def error(self, factors: Tensor) -> float:
        """The squared error of the quantized layers, smoothed by these factors; what all rows share counts more."""
        rows, total = self.rows / factors, 0.0
        quantized: dict[object, Tensor] = {}
        for (planned, weight), wanted in zip(self.members, self.wanted, strict=True):
            assert planned.weights is not None
            key = (planned.arithmetic, planned.activations)
            if key not in quantized:
                quantized[key] = _quantized(rows, planned)
            integers = quantize_weight(weight * factors, planned.weights)
            difference = quantized[key] @ integers.dequantize().t() - wanted
            shared = difference.mean(0).square().sum() * len(difference)
            total += float(difference.square().sum() + (SHARED - 1) * shared)
        return total


def _quantized(rows: Tensor, planned: Planned) -> Tensor:
    """Quantized and dequantized as the layer's arithmetic does it, if it does."""
    if planned.arithmetic.mode == "float":
        return rows
    if planned.arithmetic.mode == "per_token":
        return per_token(rows, (-1,), planned.arithmetic)
    observer = observer_for(planned.activations.range)
    observer.observe(rows)
    return fake_quantize(rows, observer.qparams(planned.activations.dtype, planned.arithmetic.reduced))


def possible_gain_db(
    program: Program, planned: Iterable[Planned], names: Collection[str], seen: Mapping[fx.Node, InputWatch]
) -> dict[str, float]:
    """By layer, of those ``names`` that could be smoothed: how many dB nearer to float the best of ``ALPHAS`` would
    bring its group, judged on the rows that were kept of its input."""
    gains: dict[str, float] = {}
    for group in _groups(program, planned):
        members = [each.planned.layer.name for each in group.members]
        rows = seen[group.input].rows if group.input in seen else None
        if rows is None or not set(members) & set(names):
            continue
        trial, largest = _Trial(group, rows), rows.abs().amax(0)
        columns = torch.stack([each.weight.abs().amax(0) for each in group.members]).amax(0)
        off = trial.error(torch.ones_like(columns))
        best = min(trial.error(factors_of(largest, columns, alpha)) for alpha in ALPHAS)
        gains.update(dict.fromkeys(members, round(10 * math.log10(max(off, 1e-30) / max(best, 1e-30)), 2)))
    return gains


# --- Changing the program ---------------------------------------------------------------------------------------------


def _divide(surgery: Surgery, group: _Group, factors: Tensor, fixed: set[str]) -> None:
    """Weights times ``factors``, their input by it. ``fixed``: calls whose own weight must stay."""
    for each in group.members:
        _scale(surgery, each.target, factors if each.axis == 1 else factors.unsqueeze(1))
    x = surgery.originals[group.input.name]
    calls = {surgery.originals[node.name] for node in group.calls}
    maker = _maker(x, calls)
    held = _held(surgery, maker) if maker is not None and maker.name not in fixed else None
    for target in held or ():
        shape = [-1, *[1] * (surgery.held(target).dim() - 1)]  # type: ignore[union-attr]
        _scale(surgery, target, factors.reciprocal().view(shape))
    if held is None:
        _multiply(surgery, group, x, factors.reciprocal())


def _scale(surgery: Surgery, target: str, factors: Tensor) -> None:
    value = surgery.held(target)
    assert value is not None
    surgery.put(target, (value.detach().to(torch.float32) * factors).to(value.dtype))


def _maker(x: fx.Node, calls: set[fx.Node]) -> fx.Node | None:
    """The layer norm or linear whose result, in whatever order of its other axes, only these calls read."""
    readers = calls
    while set(x.users) <= readers:
        if x.target in MAKERS:
            return x
        if not _keeps_channels(x):
            return None
        readers, x = {x}, x.args[0]  # type: ignore[assignment]
    return None


def _keeps_channels(node: fx.Node) -> bool:
    """Whether the result's last axis is the argument's, and its values scale with them."""
    if node.target is operator.getitem:
        return bool(node.args[1] == 0)  # of native_layer_norm's results, the norm
    if node.target is aten.transpose.int:
        return all(int(axis) % rank(node) != rank(node) - 1 for axis in node.args[1:3])  # type: ignore[arg-type]
    if node.target is aten.permute.default:
        return int(node.args[1][-1]) % rank(node) == rank(node) - 1  # type: ignore[index,arg-type]
    return node.target in SAME or (node.target is aten.dropout.default and not node.args[2])


def _held(surgery: Surgery, maker: fx.Node) -> list[str] | None:
    """The constants that every channel of the maker's result is a multiple of; None unless they are its alone."""
    place, rank_of_weight = MAKERS[maker.target]
    given: Any = maker.args[place : place + 2]
    owned = [each for each in given if each is not None]
    if not given or given[0] is None or rank(given[0]) != rank_of_weight or maker.kwargs.get("bias") is not None:
        return None
    if any(each.op != "placeholder" or len(each.users) > 1 for each in owned):
        return None
    targets = [surgery.target_of(each) for each in owned]
    known = [each for each in targets if each is not None and surgery.held(each) is not None]
    return known if len(known) == len(owned) else None


def _multiply(surgery: Surgery, group: _Group, x: fx.Node, factors: Tensor) -> None:
    name = f"{group.members[0].planned.layer.name}.smoothing".lstrip(".")
    with surgery.graph.inserting_before(after(x)):
        product = surgery.call(x, aten.mul.Tensor, x, surgery.buffer(name, factors.to(dtype_of(x))))
    for node in group.calls:
        surgery.originals[node.name].replace_input_with(x, product)
