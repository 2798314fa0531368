"""Programs with operators that one kind or another has no form for, or a form that gives something else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.workers.engine.programs.program import SmallProgram, linear, module, normals


def flatten_by_view(self: Any, x: Tensor) -> Tensor:
    y = F.max_pool2d(torch.relu(self.a(x)), 2)
    y = F.max_pool2d(torch.relu(self.b(y)), 2)
    return self.f(y.view(y.size(0), -1))


def view_right_after_convolution(self: Any, x: Tensor) -> Tensor:
    y = self.b(torch.relu(self.a(x)))
    return self.f(y.view(y.size(0), 8, -1).mean(-1))


def attention_3d(self: Any, x: Tensor) -> Tensor:
    q, k, v = self.q(x).chunk(3, -1)
    return self.o(F.scaled_dot_product_attention(q, k, v))


def attention_4d_masked(self: Any, x: Tensor) -> Tensor:
    b, s, _ = x.shape
    q, k, v = (part.view(b, s, 2, 8).transpose(1, 2) for part in self.q(x).chunk(3, -1))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return self.o(y.transpose(1, 2).reshape(b, s, 16))


def random_draw(self: Any, x: Tensor) -> Tensor:
    mean, log_variance = self.e(x).chunk(2, -1)
    return self.d(mean + torch.randn_like(mean) * (log_variance / 2).exp())


def padded_depthwise(self: Any, x: Tensor) -> Tensor:
    return self.o(torch.relu(self.d(F.pad(x, (0, 1, 0, 1)))).mean((2, 3)))


def filled(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    return self.o(torch.where(x > 0, y, torch.full_like(y, 0.25)) + x.new_full((16,), 0.5) + torch.full((16,), 2.0))


def _pooled(*, pool: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), pool, nn.Conv2d(8, 4, 3))


IMAGES = normals((16, 3, 18, 18))

OPERATORS = (
    SmallProgram(
        "flatten by view",
        lambda: module(flatten_by_view, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 3), f=linear(72, 4)),
        IMAGES,
    ),
    SmallProgram(
        "view right after a convolution",
        lambda: module(view_right_after_convolution, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 16, 3), f=linear(8, 4)),
        IMAGES,
    ),
    SmallProgram("3-D attention", lambda: module(attention_3d, q=linear(16, 48), o=linear(16, 4)), normals((8, 9, 16))),
    SmallProgram(
        "4-D attention, causal", lambda: module(attention_4d_masked, q=linear(16, 48), o=linear(16, 4)),
        normals((8, 9, 16)),
    ),
    SmallProgram("pooling with a divisor", lambda: _pooled(pool=nn.AvgPool2d(2, 2, divisor_override=3)), IMAGES),
    SmallProgram("pooling with ceil_mode", lambda: _pooled(pool=nn.AvgPool2d(3, 2, ceil_mode=True)), IMAGES),
    SmallProgram(
        "pooling with padding and ceil_mode",
        lambda: _pooled(pool=nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=True)),
        IMAGES,
    ),
    SmallProgram("random draw", lambda: module(random_draw, e=linear(16, 16), d=linear(8, 16)), normals((64, 16)),
                 random=True),
    SmallProgram(
        "depthwise behind a pad",
        lambda: module(padded_depthwise, d=nn.Conv2d(16, 16, 3, 2, groups=16), o=linear(16, 4)),
        normals((16, 16, 14, 14)),
    ),
    SmallProgram("filled with constants", lambda: module(filled, a=linear(16, 16), o=linear(16, 4)), normals((32, 16))),
)  # fmt: skip
