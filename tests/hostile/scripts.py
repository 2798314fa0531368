"""TorchScript that acts on being loaded: a class's ``__setstate__`` runs then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.t = torch.zeros(1)
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        return x + self.t

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, str, bool]:
        return (self.t, self.path, self.training)


class Reads(Plain):
    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, str, bool]) -> None:
        self.t = torch.from_file("/etc/passwd", False, 8)
        self.path = state[1]
        self.training = state[2]


class Steals(Plain):
    """Prints the secret that lies beside the canary."""

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, str, bool]) -> None:
        secret = torch.from_file(state[1], False, 63, dtype=torch.uint8)
        text = ""
        for place in range(63):
            text += chr(int(secret[place].item()))
        print(text)
        self.t = secret
        self.path = state[1]
        self.training = state[2]


class Saves(Plain):
    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, str, bool]) -> None:
        self.t = state[0]
        self.path = state[1]
        self.training = state[2]
        torch.save(self.t, self.path)


class Writes(Plain):
    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, str, bool]) -> None:
        self.t = torch.from_file(state[1], True, 8)
        self.path = state[1]
        self.training = state[2]


class Allocates(Plain):
    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, str, bool]) -> None:
        self.t = torch.ones([1 << 38])
        self.path = state[1]
        self.training = state[2]


class Loops(Plain):
    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, str, bool]) -> None:
        self.t = state[0]
        self.path = state[1]
        self.training = state[2]
        while bool(self.t.sum() >= 0.0):
            self.t = self.t + 1.0


class Prints(Plain):
    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, str, bool]) -> None:
        self.t = state[0]
        self.path = state[1]
        self.training = state[2]
        for _ in range(10_000_000):
            print("a line of a hundred characters, more or less, so that ten million of them make a gigabyte of output")


@torch.jit.script
def long_sum(t: Tensor) -> Tensor:
    for _ in range(1000):
        t = t + 1.0
    return t


class Forks(Plain):
    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, str, bool]) -> None:
        waiting = [torch.jit.fork(long_sum, state[0]) for _ in range(50)]
        self.t = state[0]
        for process in waiting:
            self.t = torch.jit.wait(process)
        self.path = state[1]
        self.training = state[2]


class ForksWithoutEnd(Plain):
    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, str, bool]) -> None:
        self.t = state[0]
        self.path = state[1]
        self.training = state[2]
        waiting = [torch.jit.fork(long_sum, self.t)]
        while bool(self.t.sum() >= 0.0):
            waiting.append(torch.jit.fork(long_sum, self.t))


def _of(kind: type[Plain]) -> Callable[[Path], torch.jit.ScriptModule]:
    return lambda canary: torch.jit.script(kind(str(canary)).eval())


SCRIPTS = {
    "read": _of(Reads),
    "steal": lambda canary: _of(Steals)(canary.parent / "secret"),
    "write": _of(Writes),
    "save": _of(Saves),
    "allocate": _of(Allocates),
    "loop": _of(Loops),
    "print": _of(Prints),
    "fork": _of(Forks),
    "fork without end": _of(ForksWithoutEnd),
}
