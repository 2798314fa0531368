"""Uploads, honest and hostile. Every hostile file would create a canary file; none may."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers import uploads
from tests.workers.intake.refusals import refused
from tests.workers.uploads import Hostile
from workers.intake.scan import scan

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uploads.small(tmp_path_factory.mktemp("honest") / "model.pt2")


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uploads.shapes(tmp_path_factory.mktemp("honest") / "shapes.pt2")


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "upload"
    path.write_bytes(data)
    return path


# ---- what is let through ----


def test_exported_programs_pass(honest: Path, shaped: Path) -> None:
    assert scan(honest) == scan(shaped) == "pt2"


def test_raw_weights_that_begin_like_a_pickle_pass(tmp_path: Path) -> None:
    scan(uploads.quantized_weights(tmp_path / "model.pt2"))


def test_a_recompressed_model_passes(honest: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(honest) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    scan(written(tmp_path, uploads.zip_of(entries, zipfile.ZIP_DEFLATED)))


def test_extra_files_of_text_pass(honest: Path, tmp_path: Path) -> None:
    scan(uploads.with_entry(honest, tmp_path / "upload", "extra/labels.txt", b"cat\ndog\nbird\n"))
    scan(uploads.with_entry(honest, tmp_path / "upload", "extra/card.json", b'{"name": "it\'s a \\"model\\""}'))


def test_scanning_imports_no_torch() -> None:
    script = "import workers.intake.scan, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# ---- what is no archive ----


@pytest.mark.parametrize(
    ("data", "mention"),
    [
        (b"", "empty"),
        (b"#!/bin/sh\necho hello\n", "text that begins with '#!/bin/sh"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (struct.pack("<Q", 20) + b'{"w": {"dtype": 1}}', "safetensors"),
        (bytes(range(128, 200)), "binary data"),
        (b"PK\x05\x06" + bytes(18), "empty"),
    ],
)
def test_other_file_types_are_named(tmp_path: Path, data: bytes, mention: str) -> None:
    assert "torch.export.save" in refused(written(tmp_path, data), "invalid-model", mention) or not data


def test_a_native_library_is_unsafe(tmp_path: Path) -> None:
    refused(written(tmp_path, b"\x7fELF" + bytes(100)), "unsafe-model", "compiled")


def test_a_truncated_upload_is_called_truncated(honest: Path, tmp_path: Path) -> None:
    data = honest.read_bytes()
    for keep in (10, len(data) // 2, len(data) - 1):
        refused(written(tmp_path, data[:keep]), "invalid-model")


def test_a_saved_module_of_a_custom_class_is_named_with_the_lines_to_export_it(tmp_path: Path) -> None:
    path = written(tmp_path, uploads.torch_saved(torch.nn.Sequential(uploads.Small(), torch.nn.ReLU())))
    lines = ("torch.export.export(model.eval()", "torch.export.save(program, 'model.pt2')")
    refused(path, "unsafe-model", "tests.workers.uploads.Small")  # a class of a package that is installed here
    data = zipfile.ZipFile(path).read("archive/data.pkl")
    elsewhere = uploads.zip_of({"archive/data.pkl": data.replace(b"tests.workers.uploads", b"their.package.network")})
    refused(written(tmp_path, elsewhere), "invalid-model", "their.package.network.Small", *lines)


def test_a_saved_state_dict_gets_the_lines_to_export_the_model(tmp_path: Path) -> None:
    path = written(tmp_path, uploads.torch_saved(torch.nn.Linear(2, 2).state_dict()))
    refused(path, "invalid-model", "torch.export.export")


def test_a_legacy_saved_module_gets_the_lines_to_export_it(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), buffer, _use_new_zipfile_serialization=False)
    refused(written(tmp_path, buffer.getvalue()), "invalid-model", "torch.export.export")


def test_a_hostile_saved_module_is_unsafe(tmp_path: Path, hostile: Hostile) -> None:
    refused(written(tmp_path, uploads.torch_saved({"weight": hostile})), "unsafe-model", "posix.system")


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_a_hostile_plain_pickle_is_unsafe(tmp_path: Path, hostile: Hostile, number: int) -> None:
    refused(written(tmp_path, uploads.protocol(number, [1, hostile])), "unsafe-model", "posix.system")


@pytest.mark.parametrize("function", [eval, exec, subprocess.Popen, torch.load, torch.hub.load, pytest.main])
def test_other_calls_are_named(tmp_path: Path, function: Callable[..., Any], canary: Path) -> None:
    path = written(tmp_path, uploads.protocol(4, Hostile(function, f"__import__('os').system('touch {canary}')")))
    refused(path, "unsafe-model", function.__name__)


def test_an_export_of_an_old_torch_is_named_as_such(tmp_path: Path) -> None:
    entries = {"version": b"8.2", "serialized_exported_program.json": b"{}"}
    refused(written(tmp_path, uploads.zip_of(entries)), "invalid-model", "2.7")


def test_a_zip_of_something_else_is_named_as_such(tmp_path: Path) -> None:
    refused(written(tmp_path, uploads.zip_of({"a.txt": b"hello", "b/c.txt": b"hi"})), "invalid-model", "zip archive")


def test_compiled_code_is_unsafe(honest: Path, tmp_path: Path) -> None:
    path = uploads.with_entry(honest, tmp_path / "u", "data/aotinductor/model/model.so", b"\x7fELF")
    refused(path, "unsafe-model", "compiled code")
    refused(uploads.with_entry(honest, tmp_path / "u", "extra/notes.txt", b"\x7fELF....."), "unsafe-model", "compiled")


# ---- hostile pickles ----

PLACES = ["data/sample_inputs/model.pt", "data/constants/tensor_0", "data/weights/weight_0", "extra/x.txt", "anything"]


@pytest.mark.parametrize("place", PLACES)
def test_a_hostile_payload_is_found_anywhere(honest: Path, tmp_path: Path, hostile: Hostile, place: str) -> None:
    path = uploads.with_entry(honest, tmp_path / "upload", place, uploads.torch_saved(((hostile,), {})))
    refused(path, "unsafe-model", "posix.system", place)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5])
def test_a_hostile_pickle_is_found_in_any_protocol(
    honest: Path, tmp_path: Path, hostile: Hostile, place: str, number: int
) -> None:
    path = uploads.with_entry(honest, tmp_path / "upload", place, uploads.protocol(number, hostile))
    refused(path, "unsafe-model", "posix.system")


def test_a_payload_hidden_in_a_payload_is_found(honest: Path, tmp_path: Path, hostile: Hostile) -> None:
    inner = uploads.torch_saved(hostile)
    outer = uploads.zip_of({"archive/data.pkl": b"\x80\x02).", "archive/data/0": inner})
    path = uploads.with_entry(honest, tmp_path / "upload", "data/constants/tensor_0", outer)
    refused(path, "unsafe-model", "posix.system")


def test_deep_nesting_is_refused(honest: Path, tmp_path: Path) -> None:
    data = b"weights"
    for _ in range(8):
        data = uploads.zip_of({"archive/data/0": data})
    refused(uploads.with_entry(honest, tmp_path / "upload", "data/weights/weight_0", data), "unsafe-model", "nested")


@pytest.mark.parametrize("craft", [uploads.stack_global, uploads.inst])
def test_calls_that_avoid_the_usual_opcodes_are_found(
    honest: Path, tmp_path: Path, canary: Path, craft: Callable[[str, str, str], bytes]
) -> None:
    data = uploads.zip_of({"archive/data.pkl": craft("posix", "system", f"touch {canary}")})
    path = uploads.with_entry(honest, tmp_path / "upload", "data/sample_inputs/model.pt", data)
    refused(path, "unsafe-model", "posix.system")


def test_a_harmless_pickle_of_a_newer_protocol_is_told_to_use_protocol_2(honest: Path, tmp_path: Path) -> None:
    data = uploads.zip_of({"archive/data.pkl": uploads.protocol(4, ((), {}))})
    path = uploads.with_entry(honest, tmp_path / "upload", "data/sample_inputs/model.pt", data)
    refused(path, "invalid-model", "pickle_protocol=2")


def test_a_name_swapped_on_the_stack_is_refused(honest: Path, tmp_path: Path) -> None:
    """Two harmless strings are written last and popped again; STACK_GLOBAL takes the two below."""
    pickled = b"\x80\x04\x8c\x05posix\x8c\x06system\x8c\x05torch\x8c\x04Size00\x93\x8c\x02id\x85R."
    data = uploads.zip_of({"archive/data.pkl": pickled})
    path = uploads.with_entry(honest, tmp_path / "upload", "data/sample_inputs/model.pt", data)
    refused(path, "unsafe-model", "computes")


def test_a_computed_name_is_refused(honest: Path, tmp_path: Path) -> None:
    """STACK_GLOBAL takes whatever lies on the stack, here two strings from the memo, out of order."""
    pickled = b"\x80\x04\x8c\x06system\x94\x8c\x05posix\x94h\x01h\x00\x93\x8c\x02id\x85R."
    data = uploads.zip_of({"archive/data.pkl": pickled})
    path = uploads.with_entry(honest, tmp_path / "upload", "data/sample_inputs/model.pt", data)
    refused(path, "unsafe-model", "posix.system")


def test_a_call_before_a_broken_end_is_found(honest: Path, tmp_path: Path, hostile: Hostile) -> None:
    """The unpickler runs what it has read before it notices that the rest is missing."""
    data = uploads.zip_of({"archive/data.pkl": uploads.protocol(2, hostile)[:-1] + b"\xff\xff"})
    path = uploads.with_entry(honest, tmp_path / "upload", "data/sample_inputs/model.pt", data)
    refused(path, "unsafe-model", "posix.system")


@pytest.mark.parametrize(
    ("config", "path_name", "use_pickle", "entry"),
    [
        ("data/weights/model_weights_config.json", "weight_1", True, "data/weights/weight_1"),
        ("data/weights/deep/model_weights_config.json", "weight_1", True, "data/weights/weight_1"),
        ("data/constants/model_constants_config.json", "opaque_obj_1", False, "data/constants/opaque_obj_1"),
        ("data/constants/model_constants_config.json", "opaque_obj_a/b", False, "data/constants/opaque_obj_a/b"),
    ],
)
def test_payloads_that_a_config_marks_as_pickles_are_checked(
    honest: Path, tmp_path: Path, hostile: Hostile, config: str, path_name: str, use_pickle: bool, entry: str
) -> None:
    """A config may point at any entry, pickles of protocol 0 carry no magic, and padding hides the call."""
    payload = {"path_name": path_name, "is_param": False, "use_pickle": use_pickle, "tensor_meta": None}
    padded = b"(" + b"K\x010" * 600_000 + uploads.protocol(0, hostile)
    first = uploads.with_entry(honest, tmp_path / "first", config, json.dumps({"config": {"w": payload}}).encode())
    refused(uploads.with_entry(first, tmp_path / "upload", entry, padded), "unsafe-model", "posix.system", entry)


def test_a_program_in_an_entry_that_looks_like_a_folder_is_read(honest: Path, tmp_path: Path, canary: Path) -> None:
    hostile = attacks(canary)["guard"]
    program = json.loads(zipfile.ZipFile(honest).read("model/models/model.json"))
    hostile(program)
    path = uploads.with_entry(honest, tmp_path / "upload", "models/other/", json.dumps(program).encode())
    refused(path, "unsafe-model", "models/other/")


def test_a_custom_class_in_sample_inputs_is_named(honest: Path, tmp_path: Path) -> None:
    data = uploads.torch_saved(((uploads.Small(),), {}))
    path = uploads.with_entry(honest, tmp_path / "upload", "data/sample_inputs/model.pt", data)
    refused(path, "unsafe-model", "tests.workers.uploads.Small")


# ---- hostile JSON ----


def _nodes(program: dict[str, Any]) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = program["graph_module"]["graph"]["nodes"]
    return nodes


def _expression(text: str) -> Change:
    def change(program: dict[str, Any]) -> None:
        sizes = program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[0] = {"as_expr": {"expr_str": text, "hint": {"as_int": 6}}}

    return change


def _target(text: str, argument: str) -> Change:
    def change(program: dict[str, Any]) -> None:
        node = _nodes(program)[-1]
        node["target"] = text
        node["inputs"] = [{"name": "command", "arg": {"as_string": argument}, "kind": 1}]

    return change


def _placeholder(text: str) -> Change:
    def change(program: dict[str, Any]) -> None:
        document = json.dumps(program).replace('"name": "x"', json.dumps({"name": text})[1:-1])
        document = document.replace('"x": {"dtype"', json.dumps(text) + ': {"dtype"')
        program.clear()
        program.update(json.loads(document))

    return change


def _guard(text: str) -> Change:
    return lambda program: program.update(guards_code=[text])


def _tree_spec(text: str) -> Change:
    def change(program: dict[str, Any]) -> None:
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        signature["in_spec"] = text

    return change


def attacks(canary: Path) -> dict[str, Change]:
    """Each runs a command when torch 2.13 loads the program or runs it, or imports a module of someone's choice."""
    touch = f"touch {canary}"
    call = f"__import__('os').system({touch!r})"
    factory = json.dumps(
        {"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": []},
    )
    return {
        "expression": _expression(call),
        "expression through attributes": _expression(f"Integer(1).__class__.__base__.__subclasses__() or {call}"),
        "operator": _target("torch.os.system", touch),
        "placeholder": _placeholder(f"x={call}"),
        "guard": _guard(f"{call} or True"),
        "tree spec": _tree_spec(
            json.dumps([1, {"type": "collections.defaultdict", "context": factory, "children_spec": []}])
        ),
    }


ATTACKS = list(attacks(Path("canary")))


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_program_is_unsafe(honest: Path, tmp_path: Path, canary: Path, attack: str) -> None:
    refused(uploads.with_program(honest, tmp_path / "upload", attacks(canary)[attack]), "unsafe-model")


LOAD = """
import sys, torch, warnings
warnings.simplefilter("ignore")
try:
    torch.export.load(sys.argv[1]).module()(torch.ones(6, 8))
except BaseException as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("attack", ["pickle", "expression", "guard", "placeholder"])
def test_the_attacks_are_real(honest: Path, tmp_path: Path, attack: str) -> None:
    """The control: torch itself, given the same files, runs their command. Otherwise the tests above prove nothing.
    (A foreign operator is stopped by torch's own verifier, too.)"""
    canary, upload = tmp_path / "control", tmp_path / "upload.pt2"
    if attack == "pickle":
        payload = uploads.torch_saved(((Hostile(os.system, f"touch {canary}"),), {}))
        uploads.with_entry(honest, upload, "data/sample_inputs/model.pt", payload)
    else:
        uploads.with_program(honest, upload, attacks(canary)[attack])
    done = subprocess.run([sys.executable, "-c", LOAD, str(upload)], check=False, capture_output=True, text=True)
    assert canary.exists(), done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.load_library", "torch.ops.aten.from_file.default", "torch.ops.aten.__class__.mro",
        "torch.ops.aten.add.__init__", "torch.hub.load", "torch.load", "_operator.attrgetter", "_operator.methodcaller",
        "math.__loader__.load_module", "#custom:op", "os.system", "torch.ops.higher_order.call_torchbind",
    ],
)  # fmt: skip
def test_only_tensor_operators_may_be_called(honest: Path, tmp_path: Path, target: str) -> None:
    refused(uploads.with_program(honest, tmp_path / "upload", _target(target, "x")), "unsafe-model", target)


def test_a_custom_operator_is_named(honest: Path, tmp_path: Path) -> None:
    change = _target("torch.ops.mylib.fused.default", "x")
    refused(uploads.with_program(honest, tmp_path / "upload", change), "invalid-model", "mylib::fused")


def test_json_that_is_too_deep_or_broken_is_invalid(honest: Path, tmp_path: Path) -> None:
    for data in (b"[" * 100_000 + b"]" * 100_000, b"{", b"\xff\xfe", b"1" * 10_000, b"[" * 500 + b"]" * 500):
        refused(uploads.with_entry(honest, tmp_path / "upload", "models/model.json", data), "invalid-model")


# ---- hostile archives ----


def test_a_zip_bomb_is_refused_at_once(honest: Path, tmp_path: Path) -> None:
    path = uploads.rewritten(honest, tmp_path / "upload", lambda _, data: data)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/weights/weight_9", bytes(200 << 20))
    refused(path, "invalid-model", "zip bomb")


def test_a_bomb_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    data = bytearray(uploads.zip_of({"m/archive_format": b"pt2", "m/w": bytes(10 << 20)}, zipfile.ZIP_DEFLATED))
    true_size = struct.pack("<L", 10 << 20)
    assert data.count(true_size) == 2
    refused(written(tmp_path, bytes(data.replace(true_size, struct.pack("<L", 1000)))), "invalid-model", "inflate")


def _archive(entries: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["m/models/model.json", "m/Models/MODEL.json"])
def test_two_entries_of_one_name_are_refused(tmp_path: Path, second: str) -> None:
    data = _archive([("m/archive_format", b"pt2"), ("m/models/model.json", b"{}"), (second, b"[]")])
    refused(written(tmp_path, data), "unsafe-model", "twice")


@pytest.mark.parametrize("name", ["m/../../etc/passwd", "/etc/passwd", "m/a\\..\\b", "m/a\nb", "C:/x", "m//x", "m/./x"])
def test_names_that_point_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    refused(written(tmp_path, _archive([("m/archive_format", b"pt2"), (name, b"x")])), "unsafe-model")


def test_links_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/archive_format", b"pt2")
        link = zipfile.ZipInfo("m/data/weights/weight_0")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    refused(written(tmp_path, buffer.getvalue()), "unsafe-model", "link")


def test_encrypted_entries_are_refused(tmp_path: Path) -> None:
    data = bytearray(_archive([("m/archive_format", b"pt2")]))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    refused(written(tmp_path, bytes(data)), "invalid-model", "encrypted")


def test_a_local_header_that_disagrees_is_refused(honest: Path, tmp_path: Path) -> None:
    data = honest.read_bytes().replace(b"models/model.json", b"models/other.json", 1)
    refused(written(tmp_path, data), "unsafe-model", "another name in its local header")


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    data = bytearray(_archive([("m/archive_format", b"pt2"), ("m/a", b"A" * 100), ("m/a", b"A" * 100)][:2]))
    central = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    struct.pack_into("<L", data, central + 42, 0)
    refused(written(tmp_path, bytes(data)), "unsafe-model")


def test_data_around_the_archive_is_refused(honest: Path, tmp_path: Path) -> None:
    data = honest.read_bytes()
    refused(written(tmp_path, data + b"appended"), "invalid-model", "appended")
    refused(written(tmp_path, b"PK\x03\x04in front" + data), "unsafe-model", "in front")


def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    data = bytearray(_archive([("m/archive_format", b"pt2")]))
    end = data.index(b"PK\x05\x06")
    zip64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**9, 10**9, 10**6, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    refused(written(tmp_path, bytes(data[:end] + zip64 + locator + data[end:])), "invalid-model", "entries")
