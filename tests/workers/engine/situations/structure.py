"""Where the modules live and how they are called: all that makes a swap of modules miss a layer or break it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from tests.workers.engine.situations.modules import First, encoder
from tests.workers.engine.situations.situation import Situation, ids, normal, normals


class Own(nn.Linear):
    """A subclass that changes nothing."""


class Doubling(nn.Linear):
    """A subclass that changes the result."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Linear(nn.Module):
    """No relation of nn.Linear's but the name."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def transposed_weight() -> nn.Module:
    """GPT-2's layer, whose weight is [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return nn.Sequential(Conv1D(4, 8))


class Called(nn.Module):
    """A linear, and a way to call it. ``setup`` may hide it anywhere."""

    def __init__(self, setup: Callable[[Any], None], call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        setup(self)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, torch.relu(self.first(x)))


def module_with(
    call: Callable[[Any, Tensor], Tensor], **attributes: Callable[[nn.Linear], Any]
) -> Callable[[], nn.Module]:
    """Each attribute is made from one more linear, nn.Linear(8, 8), and set in the plain way."""

    def setup(model: Any) -> None:
        hidden = nn.Linear(8, 8)
        for name, make in attributes.items():
            setattr(model, name, make(hidden))

    return lambda: Called(setup, call)


def repeated_layer() -> nn.Module:
    linear = nn.Linear(8, 8)
    return nn.Sequential(linear, nn.ReLU(), linear, nn.ReLU(), linear)


def shared_layer() -> nn.Module:
    linear = nn.Linear(8, 8)
    return nn.Sequential(nn.Sequential(linear, nn.ReLU()), nn.Sequential(linear, nn.Tanh()))


def traced_child() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), torch.jit.trace(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.randn(2, 8)))


def materialised_layer() -> nn.Module:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(4))
    model(torch.randn(2, 8))
    return model


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).mean(1))


class Dispatching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) if isinstance(layer, nn.Linear) else torch.relu(x)
        return x


def patched_forward() -> nn.Module:
    """As accelerate's hooks do it: the forward of one instance replaced."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    original = model[0].forward
    model[0].forward = lambda x: original(x) * 3.0
    return model


def hooked_layer() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model[0].register_forward_hook(lambda module, args, output: output + 1.0)
    model[2].register_forward_pre_hook(lambda module, args: (args[0] * 2.0,))
    model[2].register_forward_hook(lambda module, args, kwargs, output: -output, with_kwargs=True)
    return model


def with_(change: Callable[[nn.Module], Any], make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A model of one layer with its weight under some parametrization."""

    def build() -> nn.Module:
        layer = make()
        return nn.Sequential(change(layer) or layer, nn.ReLU())

    return build


def linear() -> nn.Module:
    return nn.Linear(8, 8)


class Reused(nn.Module):
    """The pattern that FX fusion breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.relu(self.linear(x)))


class Modulated(nn.Module):
    """AdaLN: Python scalars next to the layers, a chunk behind one."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 16)
        self.body = nn.Linear(8, 8)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.gate(condition).chunk(2, dim=-1)
        y = self.body(x) + 1.0
        return (1 + scale) * y + shift + (y + y)


class Unreached(nn.Module):
    """A branch not taken, and a pooler whose result nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = nn.Linear(8, 8)
        self.never = nn.Linear(8, 8)
        self.pooler = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        x = self.taken(x) if x.dim() == 2 else self.never(x)
        self.pooler(x)
        return x


class Looping(nn.Module):
    """Python over shapes, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> dict[str, Tensor]:
        steps = [self.linear(x[:, step]) for step in range(x.shape[1])]
        steps = steps if mask is None else [step * mask for step in steps]
        return {"steps": torch.stack(steps, 1), "count": torch.full((x.shape[0],), len(steps))}


class Named(nn.Module):
    """A call by the name of nn.Linear's argument, where the source line tells it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(input=x)


def folded_away() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardtanh(0.0, 6.0), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def configured_module() -> nn.Module:
    """A layer that an earlier attempt excluded for good."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model[0].qconfig = None
    return model


@torch.fx.wrap
def leaf(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)


STRUCTURE = (
    Situation("subclass", "subclass", lambda: nn.Sequential(Own(8, 8), Own(8, 4)), normal(3, 8), gemms=2),
    Situation("subclass with its own forward", "subclass", lambda: nn.Sequential(Doubling(8, 8)), normal(3, 8)),
    Situation("another class called Linear", "lookalike", lambda: nn.Sequential(Linear(8, 8)), normal(3, 8)),
    Situation("Conv1D of Transformers", "lookalike", transposed_weight, normal(3, 5, 8)),
    Situation("unregistered, in a list", "unregistered",
              module_with(lambda m, x: m.hidden[0](x), hidden=lambda fc: [fc]), normal(3, 8), gemms=2),
    Situation("unregistered, in a partial", "unregistered",
              module_with(lambda m, x: m.hidden(x), hidden=partial), normal(3, 8), gemms=2),
    Situation("alias in a list", "alias",
              module_with(lambda m, x: m.all[0](x), layer=lambda fc: fc, all=lambda fc: [fc]), normal(3, 8),
              gemms=2),
    Situation("alias by a second name", "alias",
              module_with(lambda m, x: m.other(x), layer=lambda fc: fc, other=lambda fc: fc), normal(3, 8), gemms=2),
    Situation("alias by a bound method", "alias",
              module_with(lambda m, x: m.bound(x), layer=lambda fc: fc, bound=lambda fc: fc.forward), normal(3, 8),
              gemms=2),
    Situation("repeated in a Sequential", "alias", repeated_layer, normal(3, 8)),
    Situation("traced child", "script-child", traced_child, normal(3, 8), gemms=2),
    Situation("data parallel", "wrapper", lambda: nn.DataParallel(nn.Linear(8, 4)).module, normal(3, 8)),
    Situation("lazy, after one forward", "lazy", materialised_layer, normal(3, 8), gemms=2),
    Situation("plain tensor", "plain-tensor",
              module_with(lambda m, x: F.linear(x, m.table), table=lambda fc: fc.weight.detach()), normal(3, 8),
              gemms=2),
    Situation("buffer", "plain-tensor",
              module_with(lambda m, x: x @ m.table, table=lambda fc: nn.Buffer(fc.weight.detach())), normal(3, 8),
              gemms=2),
    Situation("shared by two parents", "shared", shared_layer, normal(3, 8)),
    Situation("tied head", "tied", Tied, ids(3, 5)),
    Situation("weight read as an attribute", "weight-attr-read",
              module_with(lambda m, x: m.fc(x.to(m.fc.weight.dtype)) + F.linear(x, m.fc.weight), fc=lambda fc: fc),
              normal(3, 8), gemms=2),
    Situation("isinstance dispatch", "type-dispatch", Dispatching, normal(3, 8), gemms=2),
    Situation("next of parameters", "no-parameters",
              module_with(lambda m, x: m.fc(x.to(next(m.parameters()).dtype)), fc=lambda fc: fc), normal(3, 8),
              gemms=2),
    Situation("input by keyword", "signature", module_with(lambda m, x: m.fc(input=x), fc=lambda fc: fc), normal(3, 8),
              gemms=2),
    Situation("input by its name", "signature", Named, normal(3, 8)),
    Situation("patched forward", "state-lost", patched_forward, normal(3, 8), gemms=2),
    Situation("attribute called scale", "state-lost",
              module_with(lambda m, x: m.fc(x) * m.scale, fc=lambda fc: fc, scale=lambda _: 0.25), normal(3, 8),
              gemms=2),
    Situation("hooks", "hooks", hooked_layer, normal(3, 8), gemms=2),
    Situation("weight norm", "parametrized", with_(parametrizations.weight_norm, linear), normal(3, 8)),
    Situation("weight norm, old", "parametrized", with_(nn.utils.weight_norm, linear), normal(3, 8)),
    Situation("spectral norm", "parametrized", with_(parametrizations.spectral_norm, linear), normal(3, 8)),
    Situation("spectral norm, old", "parametrized", with_(nn.utils.spectral_norm, linear), normal(3, 8)),
    Situation("orthogonal", "parametrized", with_(parametrizations.orthogonal, linear), normal(3, 8)),
    Situation("pruned", "parametrized", with_(lambda fc: prune.l1_unstructured(fc, "weight", 0.5), linear),
              normal(3, 8)),
    Situation("weight norm of a convolution", "parametrized",
              with_(parametrizations.weight_norm, lambda: nn.Conv1d(4, 8, 3)), normal(3, 4, 8)),
    Situation("called twice around a relu", "fx-fusion-bug", Reused, normal(3, 8)),
    Situation("adaptive layer norm", "post-op", Modulated, normals((3, 8), (3, 8)), gemms=2),
    Situation("unreached and dead", "unreached", Unreached, normal(3, 8)),
    Situation("loop over a shape", "trace-fail", Looping, normal(3, 4, 8), {"mask": torch.ones(3, 8)}),
    Situation("linear and batch norm", "fusion", folded_away, normal(3, 8), gemms=2),
    Situation("convolution, batch norm, relu", "fusion", residual, normal(3, 3, 8, 8), gemms=3),
    Situation("qconfig left behind", "config-precedence", configured_module, normal(3, 8), gemms=2),
    Situation("tensor with a history", "deepcopy",
              module_with(lambda m, x: m.fc(x) + m.shift, fc=lambda fc: fc, shift=lambda fc: fc.bias * 2),
              normal(3, 8), gemms=2),
    Situation("wrapped for fx", "fx-leaf", module_with(lambda m, x: leaf(m.fc, x), fc=lambda fc: fc), normal(3, 8),
              gemms=2),
    Situation("decomposed", "decomposed", folded_away, normal(3, 8), gemms=2, decompose=True),
    Situation("decomposed LSTM", "decomposed", lambda: First(nn.LSTM(8, 8, batch_first=True)), normal(3, 5, 8),
              gemms=2, decompose=True),
    Situation("decomposed attention", "decomposed", encoder, normal(3, 5, 16), gemms=8, decompose=True),
    Situation("decomposed convolutions", "decomposed", residual, normal(3, 3, 8, 8), gemms=3, decompose=True),
)  # fmt: skip
