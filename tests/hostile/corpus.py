"""Hostile uploads, all built here. Each has a name, bytes, and the problems it may end in with both walls up."""

from __future__ import annotations

import builtins
import functools
import importlib
import io
import json
import operator
import os
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from tests.hostile.scripts import SCRIPTS
from tests.workers import packed, uploads
from tests.workers.uploads import Hostile, torch_saved, with_entry, with_program, zip_of

UNSAFE, INVALID = "unsafe-model", "invalid-model"


@dataclass(frozen=True)
class Case:
    """One upload. ``build(folder, canary)`` writes it; were it obeyed, ``canary`` would be there or be read."""

    name: str
    format: str
    slugs: tuple[str, ...]
    build: Callable[[Path, Path], Path]
    is_pickle: bool = False


def _touch(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()"


GADGETS: dict[str, Callable[[Path], Hostile]] = {
    "os.system": lambda canary: Hostile(os.system, f"touch {canary}"),
    "eval": lambda canary: Hostile(eval, _touch(canary)),
    "exec": lambda canary: Hostile(exec, _touch(canary)),
    "open": lambda canary: Hostile(open, str(canary), "w"),
    "getattr": lambda canary: Hostile(getattr, Hostile(importlib.import_module, "os"), "system"),
    "subprocess": lambda canary: Hostile(subprocess.Popen, ["touch", str(canary)]),
    "partial": lambda canary: Hostile(functools.partial(os.system, f"touch {canary}")),
    "torch.load": lambda canary: Hostile(torch.load, str(canary)),
    "torch.hub": lambda canary: Hostile(torch.hub.load, str(canary.parent), "x", "local"),
    "torch.jit.load": lambda canary: Hostile(torch.jit.load, str(canary)),
    "importlib": lambda canary: Hostile(importlib.import_module, "antigravity"),
    "attrgetter": lambda canary: Hostile(operator.attrgetter, "system"),
    "numpy.load": lambda canary: Hostile(numpy.fromfile, "/etc/passwd"),
    "storage": lambda canary: Hostile(
        torch.storage._load_from_bytes, torch_saved(Hostile(os.system, f"touch {canary}"))
    ),
    "compile": lambda canary: Hostile(builtins.compile, _touch(canary), "x", "exec"),
}
PLACES = ("data/sample_inputs/model.pt", "data/constants/opaque_obj_0", "data/weights/weight_9", "data/extra/x.pkl")


def _sample_inputs(gadget: str, folder: Path, canary: Path) -> Path:
    payload = torch_saved(((GADGETS[gadget](canary),), {}))
    return with_entry(uploads.mlp(folder / "honest"), folder / "model", PLACES[0], payload)


def _placed(place: str, folder: Path, canary: Path) -> Path:
    return with_entry(
        uploads.mlp(folder / "honest"), folder / "model", place, torch_saved(GADGETS["os.system"](canary))
    )


def _nested(folder: Path, canary: Path) -> Path:
    inner = zip_of({"a/data.pkl": zip_of({"b/data.pkl": torch_saved(GADGETS["eval"](canary))})})
    return with_entry(uploads.mlp(folder / "honest"), folder / "model", "data/constants/tensor_7", inner)


def _module(gadget: str, folder: Path, canary: Path) -> Path:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4))
    module.hidden = GADGETS[gadget](canary)
    return packed.saved(module, folder / "model")


def _legacy(folder: Path, canary: Path) -> Path:
    return _bytes(uploads.protocol(0, GADGETS["os.system"](canary)), folder)


def _folder(kind: str, folder: Path, canary: Path) -> Path:
    config = json.dumps({"architectures": ["BertModel"], "model_type": "bert"}).encode()
    files = {"config.json": config, "pytorch_model.bin": torch_saved(GADGETS["os.system"](canary))}
    return (packed.tarred if kind == "tar" else packed.zipped)(files, folder / "model")


def _bytes(data: bytes, folder: Path) -> Path:
    (folder / "model").write_bytes(data)
    return folder / "model"


def _program(change: Callable[[dict[str, Any]], None]) -> Callable[[Path, Path], Path]:
    return lambda folder, canary: with_program(uploads.mlp(folder / "honest"), folder / "model", change)


def _expression(text: str) -> Callable[[dict[str, Any]], None]:
    return lambda program: program.update(extra={"expr_str": text})


def _json(data: bytes) -> Callable[[Path, Path], Path]:
    return lambda folder, canary: with_entry(
        uploads.mlp(folder / "honest"), folder / "model", "models/model.json", data
    )


def _entry(name: str, data: bytes = b"x", mode: int = 0) -> Callable[[Path, Path], Path]:
    def build(folder: Path, canary: Path) -> Path:
        path = uploads.rewritten(uploads.mlp(folder / "honest"), folder / "model", lambda _, old: old)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            info = zipfile.ZipInfo(name.replace("ROOT", archive.namelist()[0].split("/")[0]))
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
        return path

    return build


def _changed(change: Callable[[bytearray], Any]) -> Callable[[Path, Path], Path]:
    def build(folder: Path, canary: Path) -> Path:
        data = bytearray(uploads.mlp(folder / "honest").read_bytes())
        change(data)
        return _bytes(bytes(data), folder)

    return build


def _in_directory(offset: int, value: bytes) -> Callable[[bytearray], None]:
    """Change the last entry of the zip directory."""

    def change(data: bytearray) -> None:
        at = data.rindex(b"PK\x01\x02") + offset
        data[at : at + len(value)] = value

    return change


def _tar(kind: bytes, name: str = "config.json", link: str = "/etc/passwd") -> Callable[[Path, Path], Path]:
    return lambda folder, canary: packed.tarred({name: b""}, folder / "model", type=kind, linkname=link)


def _safetensors(data: bytes) -> Callable[[Path, Path], Path]:
    config = json.dumps({"architectures": ["BertModel"], "model_type": "bert"}).encode()
    return lambda folder, canary: packed.zipped({"config.json": config, "model.safetensors": data}, folder / "model")


def _config(**changes: Any) -> Callable[[Path, Path], Path]:
    config = json.dumps({"architectures": ["BertModel"], "model_type": "bert"} | changes).encode()
    weights = packed.safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))
    return lambda folder, canary: packed.zipped({"config.json": config, "model.safetensors": weights}, folder / "model")


def _gzip_bomb(folder: Path, canary: Path) -> Path:
    return packed.tarred({"config.json": bytes(80 << 20)}, folder / "model")


def _many_nodes(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["nodes"] = program["graph_module"]["graph"]["nodes"][:1] * 1_000_000


def _in_front(data: bytes) -> Callable[[Path, Path], Path]:
    return _changed(lambda honest: honest.__setitem__(slice(0, 0), data))


_CALL = "__import__('os').system('true')"
PICKLES = [
    *(Case(f"sample inputs: {name}", "pt2", (UNSAFE,), functools.partial(_sample_inputs, name), True)
      for name in GADGETS),
    *(Case(f"stock module: {name}", "module", (UNSAFE, INVALID), functools.partial(_module, name), True)
      for name in GADGETS),
    *(Case(f"placed in {place}", "pt2", (UNSAFE,), functools.partial(_placed, place), True) for place in PLACES),
    Case("nested archives", "pt2", (UNSAFE,), _nested, True),
    Case("protocol 0", "module", (UNSAFE, INVALID), _legacy, True),
    *(Case(f"folder as {kind}", "transformers", (UNSAFE,), functools.partial(_folder, kind), True)
      for kind in ("tar", "zip")),
]  # fmt: skip
PROGRAMS = [
    Case("size that calls", "pt2", (UNSAFE,), _program(_expression(_CALL))),
    Case("size by attribute", "pt2", (UNSAFE,), _program(_expression("Symbol('s0').__class__"))),
    Case("size as lambda", "pt2", (UNSAFE,), _program(_expression("(lambda: 1)()"))),
    Case("guard code", "pt2", (UNSAFE,), _program(lambda program: program.update(guards_code=[_CALL]))),
    Case("target that resolves", "pt2", (UNSAFE,), _program(lambda program: program.update(target="torch.os.system"))),
    Case("operator of files", "pt2", (UNSAFE,),
         _program(lambda program: program.update(target="torch.ops.aten.from_file.default"))),
    Case("a million operations", "pt2", (INVALID,), _program(_many_nodes)),
    Case("deep JSON", "pt2", (INVALID,), _json(b"[" * 100_000)),
    Case("huge integer", "pt2", (INVALID,), _json(b'{"a": ' + b"9" * 100_000 + b"}")),
    Case("bad UTF-8", "pt2", (INVALID,), _json(b'{"a": "\xff\xfe"}')),
]  # fmt: skip
ARCHIVES = [
    Case("zip bomb", "pt2", (INVALID,), _entry("ROOT/data/weights/bomb", bytes(200 << 20))),
    Case("traversal", "pt2", (UNSAFE,), _entry("ROOT/../../canary")),
    Case("absolute name", "pt2", (UNSAFE,), _entry("/etc/cron.d/x")),
    Case("backslashes", "pt2", (UNSAFE,), _entry("model\\..\\x")),
    Case("symbolic link", "pt2", (UNSAFE,), _entry("ROOT/link", b"/etc/passwd", 0o120777)),
    Case("duplicate name", "pt2", (UNSAFE,), _entry("ROOT/Archive_Format")),
    Case("library", "pt2", (UNSAFE,), _entry("ROOT/data/x.so", b"\x7fELF")),
    Case("truncated", "pt2", (INVALID,), _changed(lambda data: data.__delitem__(slice(len(data) // 2, None)))),
    Case("nothing", "pt2", (INVALID,), lambda folder, canary: _bytes(b"", folder)),
    Case("program in front", "pt2", (UNSAFE, INVALID), _in_front(b"\x7fELF" * 8)),
    Case("script in front", "pt2", (UNSAFE, INVALID), _in_front(b"#!/bin/sh\n")),
    Case("something behind", "pt2", (UNSAFE, INVALID), _changed(lambda data: data.extend(b"MZ behind"))),
    Case("encrypted", "pt2", (INVALID,), _changed(_in_directory(8, b"\x01\x00"))),
    Case("unknown compression", "pt2", (INVALID, UNSAFE), _changed(_in_directory(10, b"\x63\x00"))),
    Case("wrong checksum", "pt2", (INVALID,), _changed(_in_directory(16, b"\x00\x01\x02\x03"))),
    Case("4 GB entry", "pt2", (INVALID, UNSAFE), _changed(_in_directory(24, b"\xfe\xff\xff\xff"))),
    Case("overlap", "pt2", (UNSAFE,), _changed(_in_directory(42, b"\x00\x00\x00\x00"))),
    *(Case(f"tar: {name}", "transformers", (UNSAFE,), _tar(kind))
      for name, kind in (("symbolic link", tarfile.SYMTYPE), ("hard link", tarfile.LNKTYPE),
                         ("device", tarfile.CHRTYPE), ("block device", tarfile.BLKTYPE), ("pipe", tarfile.FIFOTYPE))),
    Case("tar: traversal", "transformers", (UNSAFE,), _tar(tarfile.REGTYPE, "../config.json")),
    Case("tar: absolute", "transformers", (UNSAFE,), _tar(tarfile.REGTYPE, "/config.json")),
    Case("tar: bomb", "transformers", (INVALID,), _gzip_bomb),
    Case("safetensors: 4 GB header", "transformers", (INVALID,), _safetensors(struct.pack("<Q", 4 << 30) + b"{}")),
    Case("safetensors: overlap", "transformers", (UNSAFE,), _safetensors(packed.safetensors(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, bytes(4)))),
    Case("config: code", "transformers", (UNSAFE,), _config(auto_map={"AutoModel": "x.y"})),
    Case("config: a million layers", "transformers", (INVALID,), _config(num_hidden_layers=1_000_000)),
]  # fmt: skip


def _script(name: str) -> Callable[[Path, Path], Path]:
    def build(folder: Path, canary: Path) -> Path:
        buffer = io.BytesIO()
        torch.jit.save(SCRIPTS[name](canary), buffer)
        return _bytes(buffer.getvalue(), folder)

    return build


PROGRAMS += [Case(f"TorchScript: {name}", "torchscript", (UNSAFE,), _script(name)) for name in ("read", "write")]
RUNNING = {name: Case(f"TorchScript: {name}", "torchscript", (), _script(name)) for name in SCRIPTS}
CASES = [*PICKLES, *PROGRAMS, *ARCHIVES]
