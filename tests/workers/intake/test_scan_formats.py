"""Uploads besides .pt2, honest and hostile. What would run something creates a canary file; none may."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fewbit.contract.report import ReportModel
from fewbit.contract.spec import JobSpec
from tests.workers import packed, uploads
from tests.workers.intake.refusals import refused
from tests.workers.packed import Files
from tests.workers.stage_requests import stage_request
from tests.workers.uploads import Hostile
from workers.engine.formats import inspect_upload
from workers.engine.formats.stock import open_stock
from workers.engine.task import Inspection, Task
from workers.errors import EngineError
from workers.intake.scan import scan
from workers.intake.stock_modules import ACTIVATIONS, MODULES
from workers.sandbox.child import run_child
from workers.sandbox.fork_server import ForkServer


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A tiny BERT's folder."""
    return packed.tiny_folder(tmp_path_factory.mktemp("honest"))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return packed.scripted(packed.sequential(), tmp_path / "honest.ts")


# ---- which kind it is ----


def test_the_format_is_detected_by_content_not_by_name(files: Files, tmp_path: Path) -> None:
    assert scan(packed.zipped(files, tmp_path / "model.pt2")) == "transformers"
    assert scan(packed.tarred(files, tmp_path / "model.zip")) == "transformers"
    assert scan(packed.saved(packed.sequential(), tmp_path / "model.json")) == "module"
    assert scan(packed.scripted(packed.sequential(), tmp_path / "model.safetensors")) == "torchscript"
    assert scan(uploads.mlp(tmp_path / "model.tar")) == "pt2"


def test_an_exported_program_with_a_config_beside_it_is_scanned_as_one(
    tmp_path: Path, files: Files, hostile: Hostile
) -> None:
    """What decides is what torch's reader goes by; another kind's entries do not lead the scan away."""
    honest = uploads.small(tmp_path / "honest")
    assert scan(uploads.with_entry(honest, tmp_path / "upload", "config.json", files["config.json"])) == "pt2"
    payload = uploads.torch_saved(((hostile,), {}))
    evil = uploads.with_entry(honest, tmp_path / "evil", "data/sample_inputs/model.pt", payload)
    refused(
        uploads.with_entry(evil, tmp_path / "u", "config.json", files["config.json"]), "unsafe-model", "posix.system"
    )


# ---- Transformers folders ----


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("key", "value", "slug"),
    [
        ("auto_map", {"AutoModel": "modeling_evil.Evil"}, "unsafe-model"),
        ("trust_remote_code", True, "unsafe-model"),
        ("custom_pipelines", {"x": {"impl": "evil.Evil"}}, "unsafe-model"),
        ("use_pretrained_backbone", True, "unsafe-model"),
        ("transformers_weights", "../../secret.safetensors", "unsafe-model"),
        ("_attn_implementation", "someone/kernels", "unsafe-model"),
        ("quantization_config", {"quant_method": "gptq"}, "invalid-model"),
        ("dtype", "__builtins__", "invalid-model"),
        ("torch_dtype", "os", "invalid-model"),
    ],
)
def test_a_config_that_fetches_or_runs_something_is_refused(
    files: Files, tmp_path: Path, key: str, value: Any, slug: str, nested: bool
) -> None:
    changed = packed.with_config(files, **({"text_config": {key: value}} if nested else {key: value}))
    refused(packed.zipped(changed, tmp_path / "upload"), slug, key)


@pytest.mark.parametrize(
    ("change", "mention"),
    [
        ({"architectures": None}, "architectures"),
        ({"architectures": ["os.system"]}, "architectures"),
        ({"architectures": ["a" * 1000]}, "architectures"),
        ({"model_type": "../x"}, "model_type"),
    ],
)
def test_a_config_must_name_a_class(files: Files, tmp_path: Path, change: dict[str, Any], mention: str) -> None:
    refused(packed.zipped(packed.with_config(files, **change), tmp_path / "upload"), "invalid-model", mention)


def test_a_deeply_nested_config_is_refused(files: Files, tmp_path: Path) -> None:
    deep = b'{"a":' * 60 + b"1" + b"}" * 60
    refused(packed.zipped(files | {"config.json": deep}, tmp_path / "a"), "invalid-model", "nested")
    deeper = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    refused(packed.zipped(files | {"config.json": deeper}, tmp_path / "b"), "invalid-model")


def test_a_folder_with_pickled_weights_only_is_refused(files: Files, tmp_path: Path) -> None:
    only = {"config.json": files["config.json"], "pytorch_model.bin": b"\x80\x02}."}
    refused(packed.zipped(only, tmp_path / "upload"), "unsafe-model", "pytorch_model.bin", "safe_serialization=True")
    refused(packed.tarred(only, tmp_path / "upload"), "unsafe-model", "pytorch_model.bin")
    bare = {"config.json": files["config.json"]}
    refused(packed.zipped(bare, tmp_path / "upload"), "invalid-model", "no model.safetensors")


def test_two_model_folders_are_refused(files: Files, tmp_path: Path) -> None:
    twice = {f"{name}/{file}": data for name in ("a", "b") for file, data in files.items()}
    refused(packed.tarred(twice, tmp_path / "upload"), "invalid-model", "2 config.json files")
    refused(packed.tarred({"a.txt": b"hello"}, tmp_path / "upload"), "invalid-model", "no config.json")


@pytest.mark.parametrize(
    ("header", "data", "slug"),
    [
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(7), "invalid-model"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(9), "invalid-model"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12), "unsafe-model"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, -8]}}, bytes(8), "unsafe-model"),
        ({"w": {"dtype": "F32", "shape": [2]}}, bytes(8), "invalid-model"),
        ({"w": 3}, bytes(8), "invalid-model"),
        ([], b"", "invalid-model"),
    ],
)
def test_a_safetensors_header_that_does_not_match_the_file_is_refused(
    files: Files, tmp_path: Path, header: Any, data: bytes, slug: str
) -> None:
    changed = files | {"model.safetensors": packed.safetensors(header, data)}
    refused(packed.zipped(changed, tmp_path / "upload"), slug, "model.safetensors")


@pytest.mark.parametrize("start", [b"", b"\x01", bytes(8), b"\xff" * 8])
def test_a_header_of_absurd_length_is_refused(files: Files, tmp_path: Path, start: bytes) -> None:
    refused(packed.zipped(files | {"model.safetensors": start + b"{}"}, tmp_path / "upload"), "invalid-model")


def test_an_index_that_points_elsewhere_is_refused(files: Files, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"w": "../../etc/passwd"}}).encode()
    changed = files | {"model.safetensors.index.json": index}
    refused(packed.zipped(changed, tmp_path / "upload"), "unsafe-model", "index.json")


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "a\\b", "a//b", "a/./b", "a\nb"])
def test_names_that_lead_out_of_the_archive_are_refused(files: Files, tmp_path: Path, name: str) -> None:
    refused(packed.tarred(files | {name: b"x"}, tmp_path / "a"), "unsafe-model", "place in the archive")
    refused(packed.tarred(files | {name: b"x"}, tmp_path / "b", mode="w:"), "unsafe-model")
    if "\n" not in name:  # zipfile stops writing there
        refused(packed.zipped(files | {name: b"x"}, tmp_path / "c"), "unsafe-model")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(files: Files, tmp_path: Path, kind: bytes) -> None:
    path = packed.tarred(files, tmp_path / "upload", mode="w:")
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("model-00001-of-00001.safetensors")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    refused(path, "unsafe-model", "link or a device")


def test_links_in_a_zip_are_refused(files: Files, tmp_path: Path) -> None:
    path = packed.zipped(files, tmp_path / "upload")
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("model-00001-of-00001.safetensors")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    refused(path, "unsafe-model", "link or a device")


def test_a_duplicate_entry_is_refused(files: Files, tmp_path: Path) -> None:
    path = packed.tarred(files, tmp_path / "upload", mode="w:")
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("CONFIG.json"))
    refused(path, "unsafe-model", "twice")


def test_a_tar_bomb_ends_early(tmp_path: Path) -> None:
    header = tarfile.TarInfo("model.safetensors")
    header.size = 4 << 30
    path = tmp_path / "upload"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(header.tobuf())
        for _ in range(80):
            stream.write(bytes(1 << 20))
    refused(path, "invalid-model")


def test_an_oversized_extended_header_is_refused(files: Files, tmp_path: Path) -> None:
    """tarfile would read it into memory whole."""
    path = packed.tarred(files, tmp_path / "upload", mode="w:", pax_headers={"comment": "x" * (1 << 20)})
    refused(path, "invalid-model", "extended header")


@pytest.mark.parametrize("pack", [packed.zipped, packed.tarred])
def test_an_archive_cut_off_anywhere_is_called_damaged(files: Files, tmp_path: Path, pack: Callable[..., Path]) -> None:
    data = pack(files, tmp_path / "whole").read_bytes()
    for keep in (100, len(data) // 2, len(data) - 30):
        path = tmp_path / "upload"
        path.write_bytes(data[:keep])
        refused(path, "invalid-model")


def test_changed_bytes_are_noticed(files: Files, tmp_path: Path) -> None:
    path = packed.zipped(files, tmp_path / "upload")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    data = bytearray(path.read_bytes())
    data[data.index(b"BertModel")] ^= 1
    path.write_bytes(data)
    refused(path, "invalid-model", "damaged", "config.json")


def test_long_names_and_other_folders_of_a_tar_pass(files: Files, tmp_path: Path) -> None:
    more = files | {"x" * 200 + ".txt": b"a", "onnx/config.json.bak": b"b", "sub/deep/config.json": b"{}"}
    assert scan(packed.tarred(more, tmp_path / "upload", "model/")) == "transformers"
    gnu = tmp_path / "gnu"
    with tarfile.open(gnu, "w:gz", format=tarfile.GNU_FORMAT) as archive:
        for name, data in more.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert scan(gnu) == "transformers"


def test_only_needed_files_are_extracted(files: Files, tmp_path: Path) -> None:
    from workers.intake.transformers_folders import extract

    more = files | {"modeling_evil.py": b"1/0", "adapter_config.json": b"{}", "sub/model.safetensors": b"x"}
    target = tmp_path / "target"
    target.mkdir()
    folder = extract(packed.zipped(more, tmp_path / "upload"), target)
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"config.json", "model.safetensors"}
    assert not list(target.rglob("*.py"))


# ---- saved modules ----


def test_every_allowed_name_is_a_class_or_a_function_of_torch() -> None:
    for name in MODULES:
        module, _, kind = name.rpartition(".")
        assert issubclass(getattr(__import__(module, fromlist=["x"]), kind), nn.Module), name
    for name in ACTIVATIONS:
        module, _, function = name.rpartition(".")
        found = getattr(__import__(module, fromlist=["x"]), function)
        assert f"{found.__module__}.{found.__qualname__}" == name


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_activation_a_transformer_keeps_is_allowed(activation: str, tmp_path: Path) -> None:
    path = packed.saved(packed.encoder(activation), tmp_path / "upload")
    assert scan(path) == "module"
    assert open_stock(path) is not None


def test_a_hostile_attribute_of_a_stock_module_is_named(tmp_path: Path, hostile: Hostile) -> None:
    module = packed.sequential()
    module.note = hostile  # type: ignore[assignment]
    refused(packed.saved(module, tmp_path / "upload"), "unsafe-model", "posix.system")


def test_a_function_looked_up_by_getattr_is_refused(tmp_path: Path) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, activation=torch.relu)
    refused(packed.saved(layer, tmp_path / "upload"), "unsafe-model", "getattr")


def test_an_extra_entry_in_a_saved_module_is_refused(tmp_path: Path, hostile: Hostile) -> None:
    path = packed.saved(packed.sequential(), tmp_path / "saved")
    more = uploads.with_entry(path, tmp_path / "upload", "more.pkl", uploads.protocol(2, hostile))
    refused(more, "unsafe-model", "more.pkl")
    storage = uploads.with_entry(path, tmp_path / "upload", "data/0", uploads.torch_saved(hostile))
    refused(storage, "unsafe-model", "posix.system")


def test_a_module_of_a_newer_pickle_protocol_is_told_to_use_protocol_2(tmp_path: Path) -> None:
    torch.save(packed.sequential(), tmp_path / "upload", pickle_protocol=4)
    refused(tmp_path / "upload", "invalid-model", "pickle_protocol=2")


def test_a_module_with_source_text_as_parameter_names_is_refused(tmp_path: Path, canary: Path) -> None:
    module = packed.sequential()
    module._modules[f"a')\nimport os; os.system('touch {canary}')#"] = nn.Linear(2, 2)
    path = packed.saved(module, tmp_path / "upload")
    assert scan(path) == "module"
    with pytest.raises(EngineError, match="unsafe-model: a submodule"):
        inspect_upload(path, "module")


def test_a_module_that_contains_itself_is_invalid(tmp_path: Path) -> None:
    module = packed.sequential()
    module._modules["again"] = module
    with pytest.raises(EngineError, match="invalid-model"):
        inspect_upload(packed.saved(module, tmp_path / "upload"), "module")


# ---- TorchScript ----


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        ('torch.from_file("/etc/passwd", False, 10)', "from_file"),
        ('torch . from_file("/etc/passwd")', "from_file"),
        ('ops.aten.from_file("/etc/passwd")', "from_file"),
        ('("/etc/passwd").from_file()', "from_file"),
        ('getattr("/etc/passwd", "from_file")()', "from_file"),
        ('getattr("/etc/passwd", "from\\x5ffile")()', "getattr"),
        ('getattr("/etc/passwd", name)()', "getattr"),
        ('torch.save(x, "/tmp/x")', "save"),
        ('x.save("/tmp/x")', "save"),
        ('rpc_async("other", f, (x, ))', "rpc_async"),
        ("__torch__.torch.classes.dist_rpc.RpcAgent()", "torch.classes"),
        ("__torch__.torch .\n classes.dist_rpc.RpcAgent()", "torch.classes"),
        ("(ops).aten.relu(x)", "ops"),
        ("ops . aten.relu(x)", "ops"),
    ],
)
def test_source_that_calls_files_or_other_machines_is_refused(
    script: Path, tmp_path: Path, text: str, mention: str
) -> None:
    path = packed.with_code(script, tmp_path / "upload", lambda code: f"{code}\ndef f(x):\n  return {text}\n")
    refused(path, "unsafe-model", mention)


def test_the_file_operators_are_real(script: Path, tmp_path: Path) -> None:
    """Were the scan not there, a script could read any file: what it refuses is no theory."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"\x01" * 64)

    def read(code: str) -> str:
        end = "return torch.linear(input, weight, bias)"
        return code.replace(end, f'return torch.from_file("{secret}", False, 4, dtype=6)')

    path = packed.with_code(script, tmp_path / "upload", read)
    refused(path, "unsafe-model", "from_file")
    stolen = torch.jit.load(path)(torch.ones(1, 8))
    assert stolen.numel() == 4
    assert float(stolen[0]) != 0


def test_an_attribute_whose_name_is_source_text_is_refused(script: Path, tmp_path: Path) -> None:
    path = packed.with_code(script, tmp_path / "upload", lambda code: code.replace('["0"]', '["a\'] + x"]'))
    refused(path, "unsafe-model", "attribute")


def test_custom_operators_are_named(script: Path, tmp_path: Path) -> None:
    path = packed.with_code(script, tmp_path / "upload", lambda code: f"{code}\ndef f(x):\n  return ops.my.op(x)\n")
    refused(path, "invalid-model", "my::op")


def test_a_hostile_pickle_in_torchscript_is_named(script: Path, tmp_path: Path, hostile: Hostile) -> None:
    for entry in ("data.pkl", "constants.pkl", "traced_inputs.pkl", "code/__torch__.py.debug_pkl"):
        path = uploads.with_entry(script, tmp_path / "upload", entry, uploads.protocol(2, hostile))
        refused(path, "unsafe-model", "posix.system", entry)
    path = uploads.with_entry(script, tmp_path / "upload", "extra/notes.txt", uploads.protocol(2, hostile))
    refused(path, "unsafe-model", "posix.system")
    path = uploads.with_entry(script, tmp_path / "upload", "extra/lib.so", b"\x7fELF....")
    refused(path, "unsafe-model", "compiled code")


def test_quantized_torchscript_is_named_as_such(tmp_path: Path) -> None:
    float_values = torch.randn(4, 4)

    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.quantize_per_tensor(float_values, 0.1, 0, torch.qint8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.dequantize()

    refused(packed.scripted(Quantized(), tmp_path / "upload"), "invalid-model", "quantized weights already")


def test_scripted_models_pass(tmp_path: Path) -> None:
    for index, module in enumerate((packed.Scaled(), packed.Branching(), packed.encoder(), packed.convolutional())):
        assert scan(packed.scripted(module, tmp_path / f"{index}")) == "torchscript"
    frozen = torch.jit.freeze(torch.jit.script(packed.sequential()))
    torch.jit.save(frozen, tmp_path / "frozen")
    assert scan(tmp_path / "frozen") == "torchscript"


# ---- in the worker ----


def test_every_kind_is_inspected_in_the_forked_child(engine: ForkServer, files: Files, tmp_path: Path) -> None:
    makers: dict[str, Callable[[Path], Path]] = {
        "pt2": uploads.mlp,
        "transformers": lambda path: packed.zipped(files, path),
        "module": lambda path: packed.saved(packed.sequential(), path),
        "torchscript": lambda path: packed.scripted(packed.sequential(), path),
    }
    for kind, make in makers.items():
        folder = tmp_path / kind
        folder.mkdir()
        make(folder / "model")
        request = stage_request("inspect", folder)
        end = run_child(engine, request, time.monotonic() + 60)
        assert end.result is not None, end.output_tail
        found = Inspection.model_validate(end.result["inspection"])
        assert found.format == kind
        assert found.layers
        assert [path.name for path in folder.iterdir()] == ["model"]


def test_a_job_recorded_with_another_format_than_its_bytes_is_refused(engine: ForkServer, tmp_path: Path) -> None:
    """The engine opens what the record says, so the scan must have vouched for just that."""
    packed.saved(packed.sequential(), tmp_path / "model")
    model = ReportModel(id="mdl_1", sha256="0" * 64, format="torchscript")
    Task(job="job_1", model=model, model_size=1, spec=JobSpec(model="mdl_1"), threads=1).write(tmp_path)
    request = stage_request("convert", tmp_path)
    end = run_child(engine, request, time.monotonic() + 60)
    assert end.failure is not None
    assert (end.failure.slug, "recorded as torchscript, but it is module" in end.failure.detail) == (
        "invalid-model",
        True,
    )
