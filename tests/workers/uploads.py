"""Models to upload, honest and hostile, all made here: real ``torch.export.save`` files, and what an attacker does to
one."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim


class Small(torch.nn.Module):
    """A linear layer, a buffer, a constant, and a dynamic batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.scale = torch.ones(3)
        self.register_buffer("shift", torch.randn(8))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = x.shape[0]
        return self.linear(x) + self.shift, torch.zeros(rows // 3 + 1) + self.scale.sum()


class Shapes(torch.nn.Module):
    """Nested inputs, data-dependent sizes, guards and a conditional: all that shape expressions can be."""

    def forward(self, x: torch.Tensor, d: dict[str, torch.Tensor], rest: list[torch.Tensor]) -> tuple[Any, ...]:
        n = d["k"].max().item()
        torch._check(n >= 2)
        torch._check(n < 10)
        return (
            x[:, : x.shape[1] // 2],
            torch.ones(n, x.shape[1]) * 1.5,
            rest[0] + 1,
            torch.nn.functional.interpolate(x[None, None], scale_factor=0.5),
            torch.cat([x, x], 0).reshape(-1, 4),
            torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - 1, (x,)),
            torch.sym_max(x.shape[0], 5),
        )


def small(path: Path) -> Path:
    program = torch.export.export(Small(), (torch.randn(6, 8),), dynamic_shapes={"x": {0: Dim.AUTO}})
    torch.export.save(program, path)
    return path


def shapes(path: Path) -> Path:
    inputs = (torch.randn(4, 8), {"k": torch.tensor([3, 4])}, [torch.randn(3)])
    dynamic = ({0: Dim.AUTO, 1: Dim.AUTO}, {"k": None}, [None])
    torch.export.save(torch.export.export(Shapes(), inputs, dynamic_shapes=dynamic), path)
    return path


def mlp(path: Path) -> Path:
    """Two linear layers."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)).eval()
    torch.export.save(torch.export.export(model, (torch.randn(2, 64),), dynamic_shapes=({0: Dim.AUTO},)), path)
    return path


def quantized_weights(path: Path) -> Path:
    """A model with many small byte tensors, some of which begin with a pickle's magic."""
    model = torch.nn.Module()
    for index in range(64):
        data = torch.randint(0, 255, (256,), dtype=torch.uint8)
        data[:2] = torch.tensor([0x80, 2 + index % 4])
        model.register_buffer(f"b{index}", data)
    model.forward = lambda x: x + model.b0.sum()  # type: ignore[assignment,method-assign]
    torch.export.save(torch.export.export(model, (torch.ones(2),)), path)
    return path


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of an archive with entries changed, or dropped where ``change`` returns ``None``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = change(info.filename.split("/", 1)[1], old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return target


def with_entry(source: Path, target: Path, name: str, data: bytes) -> Path:
    """``name`` (without the root folder) holds ``data``, whether it was there before or not."""
    with zipfile.ZipFile(source) as old:
        root = old.namelist()[0].split("/", 1)[0]
    rewritten(source, target, lambda entry, old_data: None if entry == name else old_data)
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(f"{root}/{name}", data)
    return target


def with_program(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """``models/model.json`` changed in place."""

    def rewrite(name: str, data: bytes) -> bytes:
        if name != "models/model.json":
            return data
        program = json.loads(data)
        change(program)
        return json.dumps(program).encode()

    return rewritten(source, target, rewrite)


class Hostile:
    """Pickles into a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


def torch_saved(value: Any) -> bytes:
    """What ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def zip_of(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def stack_global(module: str, name: str, argument: str) -> bytes:
    """A protocol 4 pickle that calls ``module.name(argument)``."""
    return b"\x80\x04" + b"".join(_short(text) for text in (module, name)) + b"\x93" + _short(argument) + b"\x85R."


def inst(module: str, name: str, argument: str) -> bytes:
    """A protocol 0 pickle that calls ``module.name(argument)`` without REDUCE."""
    return f"(S'{argument}'\ni{module}\n{name}\n.".encode()


def protocol(number: int, value: Any) -> bytes:
    return pickle.dumps(value, protocol=number)


def _short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()
