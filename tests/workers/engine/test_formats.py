"""Uploads that are no .pt2 become programs that compute what the model computed, their layers under their own names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.workers import packed
from workers.engine.formats import inspect_upload, open_module, open_program
from workers.engine.graph.layers import find_layers
from workers.engine.graph.program import Program, signature
from workers.errors import EngineError
from workers.intake.scan import scan


def layer_names(program: Program) -> list[str]:
    return [layer.name for layer in find_layers(program)[0]]


def outputs(program: Program, *inputs: Tensor, **named: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [
            output for output in pytree.tree_leaves(program.exported.module()(*inputs, **named)) if output is not None
        ]


def made_for(program: Program, batch: int, sequence: int) -> dict[str, Tensor]:
    """Inputs of another batch and, where it is free, another length than the example's."""
    made = {}
    for given in signature(program):
        sizes = [batch, *(size if isinstance(size, int) else sequence for size in given.shape[1:])]
        if given.name == "input_values":
            sizes = [batch, 1200]
        integers = torch.ones(sizes, dtype=torch.int64) if given.name.endswith("mask") else torch.randint(3, 90, sizes)
        made[given.name] = integers if given.dtype == "int64" else torch.randn(sizes)
    return made


def dataset(path: Path, **arrays: Any) -> Path:
    np.savez(path, **{name: np.asarray(value) for name, value in arrays.items()})
    return path


# ---- Transformers ----


@pytest.mark.parametrize("architecture", packed.ARCHITECTURES)
def test_a_transformers_folder_becomes_a_program_that_computes_the_same(architecture: str, tmp_path: Path) -> None:
    model = packed.pretrained(architecture)
    upload = packed.zipped(packed.folder(model, tmp_path), tmp_path / "upload")
    assert scan(upload) == "transformers"

    program = open_program(upload, "transformers", None)

    for batch, sequence in ((1, 5), (3, 11)):
        inputs = made_for(program, batch, sequence)
        with torch.no_grad():
            expected = {name: output for name, output in model(**inputs).items() if isinstance(output, Tensor)}
        for got, wanted in zip(outputs(program, **inputs), expected.values(), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    linears = {name for name, child in model.named_modules() if type(child) is nn.Linear and name != "lm_head"}
    assert linears <= set(layer_names(program))


def test_the_folder_may_lie_in_a_tar_and_one_folder_down(tmp_path: Path) -> None:
    files = packed.tiny_folder(tmp_path) | {"README.md": b"# hello", "tokenizer.json": b"{}", ".DS_Store": b"\0"}
    uploads = [
        packed.zipped(files, tmp_path / "zip", "model/"),
        packed.tarred(files, tmp_path / "tar.gz", "model/"),
        packed.tarred(files, tmp_path / "tar", "./", mode="w:"),
    ]
    for upload in uploads:
        assert scan(upload) == "transformers"
        assert inspect_upload(upload, "transformers").inputs[0].name == "input_ids"
    assert not list(tmp_path.glob("folder-*"))  # nothing extracted stays


def test_sharded_weights_are_put_together(tmp_path: Path) -> None:
    model = packed.pretrained("BertModel")
    files = packed.folder(model, tmp_path, max_shard_size="20KB")
    assert "model.safetensors.index.json" in files
    upload = packed.tarred(files, tmp_path / "upload")
    assert scan(upload) == "transformers"
    loaded = open_module(upload, "transformers")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_pickled_weights_beside_the_safetensors_are_passed_over(tmp_path: Path) -> None:
    files = packed.tiny_folder(tmp_path) | {
        "pytorch_model.bin": b"\x80\x04cposix\nsystem\n.",
        "modeling_evil.py": b"1/0",
    }
    upload = packed.zipped(files, tmp_path / "upload")
    assert scan(upload) == "transformers"
    assert isinstance(open_module(upload, "transformers"), nn.Module)


def test_weights_keep_the_dtype_they_were_stored_in(tmp_path: Path) -> None:
    model = packed.pretrained("BertModel").to(torch.bfloat16)
    upload = packed.zipped(packed.folder(model, tmp_path), tmp_path / "upload")
    assert {parameter.dtype for parameter in open_module(upload, "transformers").parameters()} == {torch.bfloat16}


def test_the_inspection_tells_what_a_dataset_must_and_may_give(tmp_path: Path) -> None:
    upload = packed.zipped(packed.tiny_folder(tmp_path), tmp_path / "upload")
    inspection = inspect_upload(upload, "transformers")
    assert {given.name: given.optional for given in inspection.inputs} == {
        **{"input_ids": False, "attention_mask": True, "token_type_ids": True}
    }
    ids = inspection.inputs[0]
    assert ids.dtype == "int64"
    assert [ids.dynamic[str(size)] for size in ids.shape] == [(1, None), (2, 64)]
    assert "encoder.layer.0.attention.self.query" in [layer.name for layer in inspection.layers]


def test_a_picture_may_have_any_size_where_the_config_names_none(tmp_path: Path) -> None:
    upload = packed.zipped(
        packed.folder(packed.pretrained("ResNetForImageClassification"), tmp_path), tmp_path / "upload"
    )
    (pixels,) = inspect_upload(upload, "transformers").inputs
    assert pixels.shape[1:] == (3, "height", "width")
    data = dataset(tmp_path / "data.npz", pixel_values=np.zeros((4, 3, 48, 64), np.float32))
    (pixels,) = signature(open_program(upload, "transformers", data))
    assert pixels.shape[1:] == (3, 48, 64)


def test_the_dataset_decides_which_arguments_are_used(tmp_path: Path) -> None:
    upload = packed.zipped(packed.tiny_folder(tmp_path), tmp_path / "upload")
    ids = np.ones((5, 12), np.int64)
    only = dataset(tmp_path / "only.npz", input_ids=ids, labels=np.zeros(5))
    assert [given.name for given in signature(open_program(upload, "transformers", only))] == ["input_ids"]
    both = dataset(tmp_path / "both.npz", token_type_ids=ids, input_ids=ids)
    program = open_program(upload, "transformers", both)
    assert [given.name for given in signature(program)] == ["input_ids", "token_type_ids"]
    with pytest.raises(EngineError, match=r"has pixels, which forward does not take.*input_ids"):
        open_program(upload, "transformers", dataset(tmp_path / "bad.npz", input_ids=ids, pixels=ids))


def test_every_expert_of_a_mixture_is_a_layer(tmp_path: Path) -> None:
    upload = packed.zipped(packed.folder(packed.pretrained("MixtralForCausalLM"), tmp_path), tmp_path / "upload")
    names = layer_names(open_program(upload, "transformers", None))
    assert len([name for name in names if "layers.0.mlp.experts" in name]) == 2 * 4  # two matrices, four experts


def test_the_program_of_a_folder_loads_without_transformers(tmp_path: Path) -> None:
    upload = packed.zipped(packed.tiny_folder(tmp_path), tmp_path / "upload")
    torch.export.save(open_program(upload, "transformers", None).exported, tmp_path / "model.pt2")
    script = (
        f"import torch, sys; out = torch.export.load({str(tmp_path / 'model.pt2')!r}).module()("
        "input_ids=torch.ones(3, 7, dtype=torch.int64), attention_mask=torch.ones(3, 7, dtype=torch.int64)); "
        "assert 'transformers' not in sys.modules; assert out['last_hidden_state'].shape == (3, 7, 32)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_missing_weights_are_named_and_not_made_up(tmp_path: Path) -> None:
    model = packed.pretrained("BertModel")
    files = packed.folder(model, tmp_path)
    upload = packed.zipped(packed.with_config(files, num_hidden_layers=3), tmp_path / "upload")
    assert_refused(upload, "transformers", "invalid-model", r"encoder\.layer\.2\.")


@pytest.mark.parametrize(
    ("changes", "mention"),
    [
        ({"architectures": ["NoSuchModel"]}, "NoSuchModel"),
        ({"architectures": ["AutoModel"]}, "AutoModel"),
        ({"architectures": ["Trainer"]}, "Trainer"),
        ({"architectures": ["GPT2Model"]}, "not a 'bert' model"),
        ({"vocab_size": 7}, "cannot load"),
    ],
)
def test_a_config_that_fits_no_model_is_named(changes: dict[str, Any], mention: str, tmp_path: Path) -> None:
    upload = packed.zipped(packed.with_config(packed.tiny_folder(tmp_path), **changes), tmp_path / "upload")
    assert_refused(upload, "transformers", "invalid-model", mention)


# ---- modules and TorchScript ----

CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor], list[str]]] = {
    "sequential": (packed.sequential, {"input": torch.randn(4, 8)}, ["0", "2"]),
    "convolutional": (packed.convolutional, {"input": torch.randn(4, 3, 8, 8)}, ["0", "5"]),
    "encoder": (
        packed.encoder,
        {"src": torch.randn(4, 5, 16)},
        [f"layers.{at}.{name}" for at in (0, 1) for name in
         ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")],
    ),
    "recurrent": (packed.recurrent, {"input": torch.randn(4, 5, 8)}, [""]),
    "tokens": (packed.tokens, {"input": torch.randint(0, 10, (4, 6))}, ["0", "1"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_saved_module_of_stock_classes_becomes_a_program(case: str, tmp_path: Path) -> None:
    make, inputs, names = CASES[case]
    module = make()
    upload = packed.saved(module, tmp_path / "upload")
    data = dataset(tmp_path / "data.npz", labels=np.zeros(4), **inputs)
    assert scan(upload) == "module"

    program = open_program(upload, "module", data)

    found = inspect_upload(upload, "module")
    assert layer_names(program) == [layer.name for layer in found.layers] == names
    expected = {layer.name: (layer.type, layer.op, layer.shape, layer.parameters) for layer in find_layers(program)[0]}
    assert {layer.name: (layer.type, layer.op, layer.shape, layer.parameters) for layer in found.layers} == expected
    assert found.inputs == ()
    assert_same(program, module, inputs)


@pytest.mark.parametrize("way", ["script", "trace"])
@pytest.mark.parametrize("case", ["sequential", "convolutional", "encoder", "tokens"])
def test_torchscript_becomes_a_program_with_the_layers_names(case: str, way: str, tmp_path: Path) -> None:
    make, inputs, names = CASES[case]
    module, path = make(), tmp_path / "upload"
    upload = packed.scripted(module, path) if way == "script" else packed.traced(module, path, *inputs.values())
    assert scan(upload) == "torchscript"

    program = open_program(upload, "torchscript", dataset(tmp_path / "data.npz", anything=next(iter(inputs.values()))))

    assert layer_names(program) == [layer.name for layer in inspect_upload(upload, "torchscript").layers] == names
    assert [given.name for given in signature(program)] == list(inputs)
    fixed = (case, way) == ("encoder", "script")  # the converter does not know it: followed on two samples
    assert_same(program, module, {name: value[:2] for name, value in inputs.items()} if fixed else inputs)


def test_arrays_go_to_the_arguments_they_are_named_after(tmp_path: Path) -> None:
    module, inputs = packed.Scaled().eval(), {"x": torch.randn(4, 8), "scale": torch.rand(4, 1)}
    upload = packed.scripted(module, tmp_path / "upload")
    program = open_program(upload, "torchscript", dataset(tmp_path / "data.npz", scale=inputs["scale"], x=inputs["x"]))
    assert [given.name for given in signature(program)] == ["x", "scale"]
    assert_same(program, module, inputs)
    with pytest.raises(EngineError, match=r"lacks scale.*x, scale"):
        open_program(upload, "torchscript", dataset(tmp_path / "less.npz", x=inputs["x"]))


def test_one_sample_is_enough_of_an_example_and_the_batch_stays_free(tmp_path: Path) -> None:
    upload = packed.saved(packed.sequential(), tmp_path / "upload")
    program = open_program(upload, "module", dataset(tmp_path / "data.npz", x=np.ones((1, 8))))
    (given,) = signature(program)
    assert given.dynamic[str(given.shape[0])] == (1, None)
    assert given.dtype == "float32"  # the module's, though the array is float64


def test_a_dataset_as_safetensors_is_an_example_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"input": torch.randn(4, 8)}, tmp_path / "data.safetensors")
    upload = packed.saved(packed.sequential(), tmp_path / "upload")
    assert layer_names(open_program(upload, "module", tmp_path / "data.safetensors")) == ["0", "2"]


@pytest.mark.parametrize("format", ["module", "torchscript"])
def test_without_a_dataset_the_message_says_what_to_send(format: Any, tmp_path: Path) -> None:
    make = packed.saved if format == "module" else packed.scripted
    with pytest.raises(EngineError, match=r"export-failed.*numpy\.savez\('evaluation.npz', input=\.\.\.\)"):
        open_program(make(packed.sequential(), tmp_path / "upload"), format, None)


def test_what_cannot_be_exported_says_why_and_what_to_do(tmp_path: Path) -> None:
    upload = packed.saved(packed.sequential(), tmp_path / "upload")
    with pytest.raises(EngineError, match=r"export-failed.*float32 \[2, 5\].*torch\.export\.save") as caught:
        open_program(upload, "module", dataset(tmp_path / "data.npz", x=np.ones((4, 5), np.float32)))
    assert caught.value.slug == "export-failed"


def test_torchscript_that_loops_over_its_data_is_told_to_export(tmp_path: Path) -> None:
    upload = packed.scripted(packed.Branching(), tmp_path / "upload")
    with pytest.raises(EngineError, match=r"export-failed.*torch\.export\.save"):
        open_program(upload, "torchscript", dataset(tmp_path / "data.npz", x=np.ones((4, 8), np.float32)))


def test_a_branch_over_the_batch_fixes_the_batch(tmp_path: Path) -> None:
    """A program that took the example's branch for every batch would be wrong for most."""
    module = packed.Sized()
    upload = packed.scripted(module, tmp_path / "upload")
    program = open_program(upload, "torchscript", dataset(tmp_path / "data.npz", x=np.ones((4, 8), np.float32)))
    assert [given.shape for given in signature(program)] == [(2, 8)]
    assert_same(program, module, {"x": torch.randn(2, 8)})
    assert layer_names(program) == ["fc"]


def test_only_what_holds_a_module_opens_as_one(tmp_path: Path) -> None:
    module = open_module(packed.saved(packed.encoder().train(), tmp_path / "module"), "module")
    assert not module.training
    with pytest.raises(EngineError, match=r"torchscript upload holds no nn\.Module"):
        open_module(packed.scripted(packed.sequential(), tmp_path / "script"), "torchscript")


def assert_refused(upload: Path, format: Any, slug: str, mention: str) -> None:
    """Scanned well, and refused by the reader."""
    assert scan(upload) == format
    with pytest.raises(EngineError, match=mention) as caught:
        open_program(upload, format, None)
    assert caught.value.slug == slug


def assert_same(program: Program, module: nn.Module, inputs: dict[str, Tensor]) -> None:
    with torch.no_grad():
        expected = [output for output in pytree.tree_leaves(module(**inputs)) if output is not None]
    for got, wanted in zip(outputs(program, *inputs.values()), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
