"""Layers inside regions of the graph: contexts and control flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.workers.engine.situations.situation import Situation, normal

Region = Callable[[nn.Module, Tensor], Tensor]


class Around(nn.Module):
    """A layer, and a region with another inside."""

    def __init__(self, region: Region) -> None:
        super().__init__()
        self.outer = nn.Linear(8, 8)
        self.inner = nn.Linear(8, 8)
        self.region = region

    def forward(self, x: Tensor) -> Tensor:
        return self.region(self.inner, self.outer(x))


def no_grad(inner: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = inner(x)
    return torch.relu(x)


def enable_grad(inner: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = x * 2
        with torch.enable_grad():
            x = inner(x)
        x = x + 1
    return x * 3


def autocast(inner: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        x = inner(x)
    return x.float()


def no_autocast(inner: nn.Module, x: Tensor) -> Tensor:
    """What Llama's rotary embedding does."""
    with torch.autocast("cpu", enabled=False):
        return inner(x.float())


def autocast_under_no_grad(inner: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        x = torch.relu(inner(x))
    return x.float()


def condition(inner: nn.Module, x: Tensor) -> Tensor:
    return torch.cond(x.sum() > -1e9, inner, lambda x: x * 1.5, (x,))


def nested_condition(inner: nn.Module, x: Tensor) -> Tensor:
    def upper(x: Tensor) -> Tensor:
        return torch.cond(x.mean() > -1e9, inner, torch.sin, (x,))

    return torch.cond(x.sum() > -1e9, upper, torch.cos, (x,))


def map_region(inner: nn.Module, x: Tensor) -> Tensor:
    from torch._higher_order_ops.map import map as each_of

    return each_of(inner, x)


def scan_region(inner: nn.Module, x: Tensor) -> Tensor:
    from torch._higher_order_ops.scan import scan

    def step(carry: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        carry = torch.tanh(inner(carry + row))
        return carry, carry.clone()

    return scan(step, torch.zeros_like(x[0]), x)[1]


def loop_region(inner: nn.Module, x: Tensor) -> Tensor:
    from torch._higher_order_ops.while_loop import while_loop

    def going(count: Tensor, _: Tensor) -> Tensor:
        return count < 3

    def step(count: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        return count + 1, torch.tanh(inner(row))

    return while_loop(going, step, (torch.zeros((), dtype=torch.int64), x))[1]


def checkpoint_region(inner: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(inner, x, use_reentrant=False)


def region(name: str, code: str, body: Region, **more: Any) -> Situation:
    return Situation(name, code, lambda: Around(body), normal(3, 8), gemms=2, **more)


def only_pt2(name: str, code: str, body: Region, **more: Any) -> Situation:
    """A region that TorchScript has no form for."""
    return region(name, code, body, artifacts=("pt2",), **more)


REGIONS = (
    region("no_grad", "higher-order-op", no_grad),
    region("enable_grad in no_grad", "higher-order-op", enable_grad),
    only_pt2("autocast", "autocast", autocast),
    region("autocast switched off", "autocast", no_autocast),
    only_pt2("autocast under no_grad", "autocast", autocast_under_no_grad),
    only_pt2("cond", "higher-order-op", condition),
    only_pt2("cond in cond", "higher-order-op", nested_condition),
    only_pt2("map", "higher-order-op", map_region, dynamic=False),
    only_pt2("scan", "higher-order-op", scan_region, dynamic=False),
    only_pt2("while_loop", "higher-order-op", loop_region),
    region("checkpoint", "higher-order-op", checkpoint_region),
)
