"""The kernel that each layer ran on: the profiler's record of a forward pass, matched call by call."""

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
class ExecutedKernel:
    """The kernel of one layer, and the milliseconds of all its calls in one pass, each at its fastest."""

    kernel: str
    ms: float


def executed_kernels(calls: Sequence[Call], forward: Callable[[], Any]) -> dict[str, ExecutedKernel]:
    """The kernels by layer. A layer is left out if the pass made another number of calls than the program has, except
    for equal calls of one layer, which TorchScript merges."""
    layers_of_calls: dict[str, list[str | None]] = defaultdict(list)
    for call in calls:
        layers_of_calls[call.operator].append(call.layer)
    fastest = _fastest_calls([_profile_kernels(forward, frozenset(layers_of_calls)) for _ in range(PASSES)])
    executed: dict[str, ExecutedKernel] = {}
    for operator, layers in layers_of_calls.items():
        kernels = fastest[operator]
        distinct = layers if len(layers) == len(kernels) else list(dict.fromkeys(layers))
        pairs = zip(distinct, kernels, strict=True) if len(distinct) == len(kernels) else ()
        for layer, kernel in pairs:
            if layer is not None:
                before = executed[layer].ms if layer in executed else 0.0
                executed[layer] = ExecutedKernel(kernel.kernel, before + kernel.ms)
    return executed


def _fastest_calls(passes: Sequence[Mapping[str, list[ExecutedKernel]]]) -> dict[str, list[ExecutedKernel]]:
    """The fastest run of each call: a single pass is as noisy as the machine is busy."""
    fastest: dict[str, list[ExecutedKernel]] = defaultdict(list)
    for operator, first in passes[0].items():
        others = [later[operator] for later in passes[1:] if len(later.get(operator, ())) == len(first)]
        runs_of_calls = zip(first, *others, strict=True)
        fastest[operator] = [min(runs, key=lambda kernel: kernel.ms) for runs in runs_of_calls]
    return fastest


def _profile_kernels(forward: Callable[[], Any], operators: frozenset[str]) -> dict[str, list[ExecutedKernel]]:
    """For each operator, the kernels below its outermost calls, in order."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as record:
        forward()
    kernels: dict[str, list[ExecutedKernel]] = defaultdict(list)
    for event in sorted(record.events(), key=lambda event: event.time_range.start):
        if event.name in operators and not _is_inside_operator(event):
            kernels[event.name].append(ExecutedKernel(_kernel_name(event), event.cpu_time_total / 1000))
    return kernels


def _is_inside_operator(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith(OPERATOR_SPACES):
            return True
        parent = parent.cpu_parent
    return False


def _kernel_name(event: Any) -> str:
    """The operator that did the work: a quantized operator itself, else the one below ``event`` that took most time."""
    if event.name.startswith("quantized::"):
        return str(event.name)
    below = [event]
    for parent in below:
        below.extend(child for child in parent.cpu_children if child.name.startswith((*OPERATOR_SPACES, "mkldnn::")))
    kernels = [event for event in below if KERNELS.search(event.name)] or below
    return str(max(kernels, key=lambda event: event.self_cpu_time_total).name)
