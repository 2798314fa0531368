"""What the engine needs of torch's own parts: after a new release of torch, what fails here says what to change."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import torch
from torch import nn

from tests.workers.engine.runs import export
from workers.engine.graph import torch_internals
from workers.engine.graph.torch_internals import FakeTensorMode, make_fx, schema, serialize

aten = torch.ops.aten


def test_an_exported_file_names_the_schema_that_this_torch_writes(tmp_path: Path) -> None:
    path = export(nn.Linear(3, 2), (torch.ones(4, 3),), tmp_path / "model.pt2")
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/models/model.json"))
        version = json.loads(archive.read(name))["schema_version"]
    assert (version["major"], version["minor"]) == tuple(torch_internals.SCHEMA_VERSION)


def test_a_fake_tensor_is_what_torch_would_make() -> None:
    mode = FakeTensorMode()
    with mode:
        expected = torch.empty_strided((2, 3), (1, 2), dtype=torch.int8)
    made = torch_internals.fake_tensor(mode, (2, 3), (1, 2), torch.int8)
    assert (made.shape, made.stride(), made.dtype, made.device) == (
        expected.shape, expected.stride(), expected.dtype, expected.device
    )  # fmt: skip
    assert torch_internals.fake_mode_of(made) is mode
    assert torch_internals.fake_mode_of(torch.ones(1)) is None


def test_a_trace_before_dispatch_keeps_composite_operators_whole() -> None:
    graph = make_fx(lambda x: x.to(torch.float32).unflatten(1, [-1, 2]), pre_dispatch=True)(
        torch.empty(3, 4, dtype=torch.int8, device="meta")
    ).graph
    calls = [node for node in graph.nodes if node.op == "call_function"]
    assert [node.target for node in calls] == [aten.to.dtype, aten.unflatten.int]
    assert calls[1].args[1:] == (1, [-1, 2])
    assert calls[1].meta["val"].shape == (3, 2, 2)


def test_a_serialized_union_says_which_of_its_fields_is_set() -> None:
    made = schema.SymInt.create(as_int=3)
    assert issubclass(schema.SymInt, torch_internals.Union)
    assert made._type == torch_internals.union_tag("as_int", schema.SymInt)


def test_the_deserializer_has_the_functions_that_the_reader_replaces() -> None:
    for name in ("_resolve_schema_cls", "_dict_to_dataclass", "deserialize_device"):
        assert callable(getattr(serialize, name))
    for name in ("deserialize_sym_int", "deserialize_tensor_meta"):
        assert callable(getattr(serialize.GraphModuleDeserializer, name))
    dtypes = set(serialize._SERIALIZE_TO_TORCH_DTYPE.values())
    assert {torch.float32, torch.bfloat16, torch.int64} <= dtypes


def test_the_converter_takes_torchscript() -> None:
    script = torch.jit.trace(nn.Linear(3, 2), torch.ones(4, 3))
    exported = torch_internals.torchscript_converter()(script, (torch.ones(4, 3),), {}).convert()
    assert isinstance(exported, torch.export.ExportedProgram)


def test_a_tree_spec_can_be_made_of_plain_parts() -> None:
    spec = torch_internals.TreeSpec(dict, ["a"], [torch_internals.pytree.tree_structure(1)])
    assert torch_internals.pytree.tree_unflatten([5], spec) == {"a": 5}
