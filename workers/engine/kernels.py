"""Which kernel each layer really ran on: the profiler's record of one forward pass, matched call by call."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fewbit.runtime.script import Call

KERNELS = re.compile(
    r"mm$|mkldnn|convolution|rnn|lstm|gru|index_select|embedding_bag|bilinear"
)  # not the copies around
OPERATOR_SPACES = ("aten::", "quantized::")


def executed_kernels(calls: Sequence[Call], forward: Callable[[], Any]) -> dict[str, str]:
    """Layer name to kernel. A layer is left out when the pass made another number of calls than the program says, but
    for equal calls of one layer, which TorchScript makes once."""
    wanted: dict[str, list[str | None]] = defaultdict(list)
    for call in calls:
        wanted[call.operator].append(call.layer)
    seen = _profiled(forward, frozenset(wanted))
    executed: dict[str, str] = {}
    for operator, layers in wanted.items():
        kernels = seen[operator]
        distinct = layers if len(layers) == len(kernels) else list(dict.fromkeys(layers))
        if len(distinct) == len(kernels):
            pairs = zip(distinct, kernels, strict=True)
            executed.update((layer, kernel) for layer, kernel in pairs if layer is not None)
    return executed


def _profiled(forward: Callable[[], Any], operators: frozenset[str]) -> dict[str, list[str]]:
    """For each operator, in order, the kernel below each of its outermost calls."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as record:
        forward()
    seen: dict[str, list[str]] = defaultdict(list)
    for event in sorted(record.events(), key=lambda each: each.time_range.start):
        if event.name in operators and not _inside_operator(event):
            seen[event.name].append(_kernel(event))
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
