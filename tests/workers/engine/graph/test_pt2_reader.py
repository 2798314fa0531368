"""The engine reads a ``.pt2`` as torch does: the same program of every situation, the same error of a damaged file."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from tests.workers.engine.runs import export
from tests.workers.engine.situations import SITUATIONS
from workers.engine.graph.pt2_reader import read_exported
from workers.errors import first_line

pytestmark = [  # torch's and Transformers' own, about the models
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

DAMAGES = 150
OTHER_VALUES: tuple[Any, ...] = (None, [], {}, 7, -1, "s0 * s1", {"as_int": 3}, [{}], True)


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_program_is_read_as_torch_reads_it(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    situation = SITUATIONS[name]
    file = export(
        situation.build().eval(),
        situation.example(),
        tmp_path / "model.pt2",
        situation.dynamic,
        situation.keywords,
        situation.decompose,
    ).read_bytes()
    ours, torchs = read_exported(io.BytesIO(file)), torch.export.load(io.BytesIO(file))
    assert described(ours) == described(torchs)


def test_a_damaged_file_fails_as_it_does_in_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)).eval()
    path = export(module, (torch.randn(2, 3, 8, 8),), tmp_path / "model.pt2")
    chance = random.Random(0)
    seen = [outcomes(path, chance) for _ in range(DAMAGES)]
    assert [ours for ours, _ in seen] == [torchs for _, torchs in seen]
    assert 20 < sum(isinstance(ours, str) for ours, _ in seen) < DAMAGES


def outcomes(path: Path, chance: random.Random) -> tuple[object, object]:
    """What comes of one damage in the description of the program, read by us and by torch: the program, or the error
    that says why there is none."""
    damaged = with_description(path, lambda description: damage(description, chance))
    return outcome_of(read_exported, damaged), outcome_of(torch.export.load, damaged)


def outcome_of(read: Callable[..., ExportedProgram], file: bytes) -> object:
    try:
        return described(read(io.BytesIO(file)))
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"  # below it stands a traceback, which is ours or torch's


def damage(description: Any, chance: random.Random) -> None:
    """One value anywhere in it becomes another, or is gone."""
    holder, key = chance.choice(list(places(description)))
    if isinstance(holder, dict) and chance.random() < 0.3:
        del holder[key]
    else:
        holder[key] = chance.choice(OTHER_VALUES)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from places(item)


def with_description(path: Path, change: Callable[[Any], None]) -> bytes:
    """The file with its ``models/model.json`` changed."""
    written = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("models/model.json"):
                description = json.loads(content)
                change(description)
                content = json.dumps(description).encode()
            new.writestr(name, content)
    return written.getvalue()


def described(program: ExportedProgram) -> list[Any]:
    """All that a program says, in values that compare."""
    nodes = [
        (node.name, node.op, str(node.target), str(node.args), str(node.kwargs),
         [value_described(leaf) for leaf in pytree.tree_leaves(node.meta.get("val"))],
         str(node.meta.get("nn_module_stack")))
        for node in program.graph.nodes
    ]  # fmt: skip
    tensors = {**program.state_dict, **program.constants}
    kept = [(name, value.dtype, tuple(value.shape), value.tolist()) if isinstance(value, Tensor) else (name, str(value))
            for name, value in sorted(tensors.items())]  # fmt: skip
    return [
        nodes, str(program.graph_signature), str(program.range_constraints), str(program.module_call_graph),
        str(program.graph_module), str(kept),
    ]  # fmt: skip


def value_described(value: object) -> object:
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} {value}"
    return (
        type(value), value.dtype, str(value.device), str(tuple(value.shape)), str(value.stride()),
        value.requires_grad, value.layout, isinstance(value, FakeTensor) and value.fake_mode.shape_env is not None,
        value.is_leaf, value.storage_offset(), str(value.untyped_storage().nbytes()), str(value._version),
    )  # fmt: skip
