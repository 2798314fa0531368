"""Which kernel each layer really ran on: the profiler's record of one forward pass, matched call by call."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fewbit.runtime.script import Call

KERNELS = re.compile(
    r"mm$|mkldnn|convolution|rnn|lstm|gru|index_select|embedding_bag|bilinear"
)  # not the copies around
OPERATOR_SPACES = ("aten::", "quantized::")
PASSES = 2


@dataclass(frozen=True)
class Executed:
    """The kernel of one layer, and the milliseconds of all its calls in one pass: the fastest seen of each call."""

    kernel: str
    ms: float


def executed_kernels(calls: Sequence[Call], forward: Callable[[], Any]) -> dict[str, Executed]:
    """By layer. One is left out when the pass made another number of calls than the program says, but for equal calls
    of one layer, which TorchScript makes once."""
    wanted: dict[str, list[str | None]] = defaultdict(list)
    for call in calls:
        wanted[call.operator].append(call.layer)
    seen = _fastest([_profiled(forward, frozenset(wanted)) for _ in range(PASSES)])
    executed: dict[str, Executed] = {}
    for operator, layers in wanted.items():
        kernels = seen[operator]
        distinct = layers if len(layers) == len(kernels) else list(dict.fromkeys(layers))
        pairs = zip(distinct, kernels, strict=True) if len(distinct) == len(kernels) else ()
        for layer, kernel in pairs:
            if layer is not None:
                before = executed[layer].ms if layer in executed else 0.0
                executed[layer] = Executed(kernel.kernel, before + kernel.ms)
    return executed


def _fastest(passes: Sequence[Mapping[str, list[Executed]]]) -> dict[str, list[Executed]]:
    """Call by call: one pass alone is as noisy as the machine is busy."""
    fastest: dict[str, list[Executed]] = defaultdict(list)
    for operator, first in passes[0].items():
        others = [each[operator] for each in passes[1:] if len(each.get(operator, ())) == len(first)]
        columns = zip(first, *others, strict=True)
        fastest[operator] = [min(column, key=lambda each: each.ms) for column in columns]
    return fastest


def _profiled(forward: Callable[[], Any], operators: frozenset[str]) -> dict[str, list[Executed]]:
    """For each operator, in order, the kernel below each of its outermost calls."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as record:
        forward()
    seen: dict[str, list[Executed]] = defaultdict(list)
    for event in sorted(record.events(), key=lambda each: each.time_range.start):
        if event.name in operators and not _inside_operator(event):
            seen[event.name].append(Executed(_kernel(event), event.cpu_time_total / 1000))
    return seen


def _inside_operator(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith(OPERATOR_SPACES):
            return True
        parent = parent.cpu_parent
    return False


def _kernel(event: Any) -> str:
    """The operator that did the work: a quantized one itself, else the one below ``event`` that took most time."""
    if event.name.startswith("quantized::"):
        return str(event.name)
    below = [event]
    for each in below:
        below.extend(child for child in each.cpu_children if child.name.startswith((*OPERATOR_SPACES, "mkldnn::")))
    kernels = [each for each in below if KERNELS.search(each.name)] or below
    return str(max(kernels, key=lambda each: each.self_cpu_time_total).name)
