"""SmoothQuant: the scale of large activation channels moves into the weights, which quantize easily.

A few input channels that are far larger than the rest set the scale of every row. For a group of linear layers that
read the same value, each input channel is divided by ``s`` and the weights' column multiplied by it (Xiao et al. 2022,
section 4):

    s[j] = max|X[j]| ** alpha / max|W[j]| ** (1 - alpha)        (X / s) @ (W * s).T == X @ W.T

The division is free where the value comes from a layer norm that only the group reads: it goes into the norm's own
weight and bias. The same holds for a linear, even through a relu. Elsewhere it is one multiplication. The right alpha
depends on the model (0.3 and 0.7 differed by 14 dB in one encoder), so "auto" tries several on calibration data, group
by group, and keeps the one whose quantized outputs are closest to float. A group that would gain little is left
unchanged. Where only weights are quantized, the same factors spend their integers on the channels that matter most
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

from fewbit.contract.spec import Clip, Smooth
from fewbit.runtime.program import Program, dtype_of, rank
from workers.engine.calibration.activation_statistics import InputStatistics
from workers.engine.calibration.conversion import Conversion
from workers.engine.calibration.data_pass import run_calibration
from workers.engine.data import Data
from workers.engine.graph.editor import GraphEditor, after
from workers.engine.graph.layers import find_layers
from workers.engine.graph.ops import CHANNELWISE, PRODUCERS, VIEWS
from workers.engine.quantization.observers import fake_quantize, observer_for
from workers.engine.quantization.plan import Planned
from workers.engine.quantization.simulation import per_token
from workers.engine.quantization.weights import quantize_weight

aten = torch.ops.aten

ALPHAS = (0.2, 0.4, 0.6, 0.8)
FINER_STEPS = (0.1, 0.05)  # then to either side of the best: the error has one minimum
SHARED_WEIGHT = 2.0  # an error that all rows share counts more: later means over rows do not remove it
LEAST_GAIN = 0.2  # share of the error that must go: 1 dB. Groups that gained less made whole models worse
ROWS = 512  # of each group's input, spread over the calibration data
MOST_KEPT = 2**26  # elements of rows over all groups: 256 MB
OUTPUTS = 128  # of each layer's output channels, to compare by
LEAST_RANGE = 1e-5  # of a channel's largest magnitude, relative to the largest channel's


def smooth(
    conversion: Conversion,
    settings: Smooth | None,
    read_data: Callable[[], Data],
    advance: Callable[[float], None],
) -> Conversion:
    """The conversion with a program that computes the same in float and is easier to quantize. The program given is
    not changed, and layers keep their names. ``read_data`` is called only when there is a group to smooth.

    Raises ``EngineError('calibration-failed')`` naming the batch on which the model fails.
    """
    program, planned = conversion.program, conversion.planned
    groups = _groups(program, planned) if settings is not None else []
    if settings is None or not groups:
        return conversion
    samples = _sample_inputs(program, groups, read_data(), lambda share: advance(share / 2))
    fixed = {use.node.name for entry in planned if not _may_scale_rows(entry) for use in entry.layer.uses}
    editor, alphas = GraphEditor(program), dict[str, float]()
    for index, group in enumerate(groups):
        choice = _choose_alpha(group, samples[group.input], settings)
        if choice is not None:
            _divide_input(editor, group, choice.factors, fixed)
            alphas.update((member.planned.layer.name, choice.alpha) for member in group.members)
        advance(0.5 + (index + 1) / len(groups) / 2)
    return _replan(conversion, editor.finish(), alphas) if alphas else conversion


def _replan(conversion: Conversion, program: Program, alphas: Mapping[str, float]) -> Conversion:
    """The plan stays: only the values of weights changed, and where their inputs come from."""
    layers, _ = find_layers(program)
    pairs = zip(layers, conversion.planned, strict=True)
    planned = tuple(replace(entry, layer=layer) for layer, entry in pairs)
    return replace(conversion, program=program, layers=layers, planned=planned, alphas=alphas)


# --- Groups of layers that read the same value ------------------------------------------------------------------------


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
        return [use.node for member in self.members for use in member.planned.layer.uses]


def _groups(program: Program, planned: Iterable[Planned]) -> list[_Group]:
    """All groups, in graph order of first use."""
    members: dict[fx.Node, list[_Member]] = {}
    for entry in planned:
        member = _group_member(program, entry) if _is_eligible(entry) else None
        if member is not None:
            members.setdefault(entry.layer.uses[0].input, []).append(member)
    return [_Group(node, tuple(readers)) for node, readers in members.items()]


def _is_eligible(planned: Planned) -> bool:
    """Whether the layer multiplies rows of one value by a quantized weight. Layers with clip bounds are not eligible:
    the user gave the bounds in the units of the unchanged weight or input."""
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
    """Whether a factor per output channel leaves the integers of this layer's weight unchanged. A layer that stays
    float has none."""
    weights = planned.weights
    return weights is None or not (weights.granularity == "per_tensor" or isinstance(weights.range, Clip))


def _group_member(program: Program, planned: Planned) -> _Member | None:
    """None for a weight that is computed, or that something else reads too: it cannot change for this layer alone."""
    layer = planned.layer
    node, transposed = layer.uses[0].operands[0], layer.operands[0].transposed
    while node.target in VIEWS and node not in program.constants:
        transposed ^= _is_transpose(node)
        node = node.all_input_nodes[0]
    constant = program.constants.get(node)
    if constant is None or not _read_only_by(node, {use.node for use in layer.uses}):
        return None
    if sum(other.value.data_ptr() == constant.value.data_ptr() for other in program.constants.values()) > 1:
        return None  # tied: an embedding's table, kept once
    return _Member(planned, constant.name, 0 if transposed else 1)


def _is_transpose(node: fx.Node) -> bool:
    """Whether this view of a matrix is its transpose."""
    if node.target is aten.permute.default:
        return _axes(node)[0] % 2 == 1
    return node.target in (aten.t.default, aten.transpose.int)


def _axes(node: fx.Node) -> list[int]:
    """The axes of a permutation, or the two that a transpose swaps."""
    given: Any = node.args[1] if node.target is aten.permute.default else node.args[1:3]
    return [int(axis) for axis in given]


def _read_only_by(node: fx.Node, calls: set[fx.Node]) -> bool:
    return all(user in calls or (user.target in VIEWS and _read_only_by(user, calls)) for user in node.users)


# --- Samples of their inputs ------------------------------------------------------------------------------------------


class _InputSample:
    """``largest``: max|X[j]|, float32 [channels], over all data; ``rows``: float32 [at most ``ROWS``, channels]."""

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


def _sample_inputs(
    program: Program, groups: list[_Group], data: Data, advance: Callable[[float], None]
) -> dict[fx.Node, _InputSample]:
    """One pass over the data. Every batch gives its share of the rows."""
    widths = {group.input: group.members[0].planned.layer.shape[1] for group in groups}
    rows = max(1, min(ROWS, MOST_KEPT // sum(widths.values())))
    quota = -(-rows // -(-data.samples // data.batch_size))
    generator = torch.Generator().manual_seed(0)
    samples = {node: _InputSample(width, quota, generator) for node, width in widths.items()}
    run_calibration(program, {node: _observe_with(sample) for node, sample in samples.items()}, data, advance)
    return samples


def _observe_with(sample: _InputSample) -> Callable[..., Any]:
    def around(_: fx.Node, compute: Callable[[], Any], __: Callable[[Any], Any]) -> Any:
        result = compute()
        sample.observe(result)
        return result

    return around


# --- Choosing alpha ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    """An alpha, and its ``s``: float32 [channels]."""

    alpha: float
    factors: Tensor


def _choose_alpha(group: _Group, sample: _InputSample, settings: Smooth) -> _Choice | None:
    """The factors to smooth this group with; None to leave it unchanged."""
    columns = _column_maxima(group)
    if not sample.usable or not bool(torch.isfinite(columns).all()):
        return None
    if not isinstance(settings.alpha, str):
        return _Choice(settings.alpha, smoothing_factors(sample.largest, columns, settings.alpha))
    trial, errors = _Trial(group, sample.rows), dict[float, float]()

    def error(alpha: float) -> float:
        if alpha not in errors:
            errors[alpha] = trial.error(smoothing_factors(sample.largest, columns, alpha))
        return errors[alpha]

    best = min(ALPHAS, key=error)
    for step in FINER_STEPS:
        best = min((best, round(best - step, 2), round(best + step, 2)), key=error)
    unsmoothed = trial.error(torch.ones_like(columns))
    if errors[best] >= (1 - LEAST_GAIN) * unsmoothed:
        return None
    return _Choice(best, smoothing_factors(sample.largest, columns, best))


def _column_maxima(group: _Group) -> Tensor:
    """max|W[j]| over all layers of the group: float32 [channels]."""
    return torch.stack([member.weight.abs().amax(0) for member in group.members]).amax(0)


def smoothing_factors(largest: Tensor, columns: Tensor, alpha: float) -> Tensor:
    """``s`` for max|X[j]| and max|W[j]|, all float32 [channels]. A channel that is always 0 gets 1. The extremes lie
    evenly around 1, which changes no integer and keeps half precision in its range."""
    used = (largest > 0) & (columns > 0)
    x = largest.clamp_min(float(largest.max()) * LEAST_RANGE).double()
    weight = columns.clamp_min(float(columns.max()) * LEAST_RANGE).double()
    factors = torch.where(used, x**alpha / weight ** (1 - alpha), 1.0)
    known = factors[used] if bool(used.any()) else factors
    return torch.where(used, factors / (known.max() * known.min()).sqrt(), 1.0).to(torch.float32)


class _Trial:
    """The layers of a group on the sampled rows, at most ``OUTPUTS`` channels of each, and their float outputs."""

    def __init__(self, group: _Group, rows: Tensor) -> None:
        self.rows = rows
        self.members = [(member.planned, self._sample_outputs(member.weight)) for member in group.members]
        self.outputs = [rows @ weight.t() for _, weight in self.members]

    def _sample_outputs(self, weight: Tensor) -> Tensor:
        return weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))[:OUTPUTS]]

    def error(self, factors: Tensor) -> float:
        """The squared error of the quantized layers, smoothed by these factors; error that all rows share counts
        more."""
        rows, total = self.rows / factors, 0.0
        quantized: dict[object, Tensor] = {}
        for (planned, weight), output in zip(self.members, self.outputs, strict=True):
            assert planned.weights is not None
            key = (planned.arithmetic, planned.activations)
            if key not in quantized:
                quantized[key] = _fake_quantize_rows(rows, planned)
            integers = quantize_weight(weight * factors, planned.weights)
            difference = quantized[key] @ integers.dequantize().t() - output
            shared = difference.mean(0).square().sum() * len(difference)
            total += float(difference.square().sum() + (SHARED_WEIGHT - 1) * shared)
        return total


def _fake_quantize_rows(rows: Tensor, planned: Planned) -> Tensor:
    """Quantize and dequantize rows as the layer's arithmetic does; unchanged where it multiplies in float."""
    if planned.arithmetic.mode == "float":
        return rows
    if planned.arithmetic.mode == "per_token":
        return per_token(rows, (-1,), planned.arithmetic)
    observer = observer_for(planned.activations.range)
    observer.observe(rows)
    return fake_quantize(rows, observer.qparams(planned.activations.dtype, planned.arithmetic.reduced))


def possible_gain_db(
    conversion: Conversion, names: Collection[str], inputs: Mapping[fx.Node, InputStatistics]
) -> dict[str, float]:
    """For those of ``names`` that could be smoothed: how many dB nearer to float the best of ``ALPHAS`` would bring
    the layer's group, judged on the rows that were kept of its input."""
    gains: dict[str, float] = {}
    for group in _groups(conversion.program, conversion.planned):
        members = [member.planned.layer.name for member in group.members]
        rows = inputs[group.input].rows if group.input in inputs else None
        if rows is None or not set(members) & set(names):
            continue
        trial, largest, columns = _Trial(group, rows), rows.abs().amax(0), _column_maxima(group)
        unsmoothed = trial.error(torch.ones_like(columns))
        best = min(trial.error(smoothing_factors(largest, columns, alpha)) for alpha in ALPHAS)
        gains.update(dict.fromkeys(members, round(10 * math.log10(max(unsmoothed, 1e-30) / max(best, 1e-30)), 2)))
    return gains


# --- Changing the program ---------------------------------------------------------------------------------------------


def _divide_input(editor: GraphEditor, group: _Group, factors: Tensor, fixed: set[str]) -> None:
    """Multiply the group's weights by ``factors``, and divide its input. ``fixed``: calls whose weight must stay."""
    for member in group.members:
        _scale_constant(editor, member.target, factors if member.axis == 1 else factors.unsqueeze(1))
    x = editor.originals[group.input.name]
    calls = {editor.originals[node.name] for node in group.calls}
    producer = _producer(x, calls)
    targets = _scalable_constants(editor, producer) if producer is not None and producer.name not in fixed else None
    if targets is None:
        _insert_multiplication(editor, group, x, factors.reciprocal())
    for target in targets or ():
        _scale_rows(editor, target, factors.reciprocal())


def _scale_rows(editor: GraphEditor, target: str, factors: Tensor) -> None:
    value = editor.value(target)
    assert value is not None
    _scale_constant(editor, target, factors.view([-1, *[1] * (value.dim() - 1)]))


def _scale_constant(editor: GraphEditor, target: str, factors: Tensor) -> None:
    value = editor.value(target)
    assert value is not None
    editor.set_value(target, (value.detach().to(torch.float32) * factors).to(value.dtype))


def _producer(x: fx.Node, calls: set[fx.Node]) -> fx.Node | None:
    """The layer norm or linear whose result only these calls read, with its other axes in any order."""
    readers = calls
    while set(x.users) <= readers:
        if x.target in PRODUCERS:
            return x
        if not _keeps_channels(x):
            return None
        readers, x = {x}, x.all_input_nodes[0]
    return None


def _keeps_channels(node: fx.Node) -> bool:
    """Whether the result's last axis is the argument's, and its values scale with them."""
    if node.target is operator.getitem:
        return bool(node.args[1] == 0)  # of native_layer_norm's results, the norm
    if node.target is aten.transpose.int:
        return all(axis % rank(node) != rank(node) - 1 for axis in _axes(node))
    if node.target is aten.permute.default:
        return _axes(node)[-1] % rank(node) == rank(node) - 1
    return node.target in CHANNELWISE or (node.target is aten.dropout.default and not node.args[2])


def _scalable_constants(editor: GraphEditor, producer: fx.Node) -> list[str] | None:
    """The producer's weight and bias, which each channel of its result is proportional to; None if others read them
    too."""
    place, weight_rank = PRODUCERS[producer.target]
    given: Any = producer.args[place : place + 2]
    owned = [node for node in given if node is not None]
    if not given or given[0] is None or rank(given[0]) != weight_rank or producer.kwargs.get("bias") is not None:
        return None
    if any(node.op != "placeholder" or len(node.users) > 1 for node in owned):
        return None
    targets = [editor.constant_name(node) for node in owned]
    known = [target for target in targets if target is not None and editor.value(target) is not None]
    return known if len(known) == len(owned) else None


def _insert_multiplication(editor: GraphEditor, group: _Group, x: fx.Node, factors: Tensor) -> None:
    name = f"{group.members[0].planned.layer.name}.smoothing".lstrip(".")
    with editor.graph.inserting_before(after(x)):
        product = editor.call(x, aten.mul.Tensor, x, editor.add_buffer(name, factors.to(dtype_of(x))))
    for node in group.calls:
        editor.originals[node.name].replace_input_with(x, product)
