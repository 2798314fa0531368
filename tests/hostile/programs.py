"""Programs: sizes that call, names that print, TorchScript that acts, numbers that are none."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch

from tests.hostile.case import (
    INVALID,
    LATE,
    READY,
    STARVED,
    UNSAFE,
    VIOLATION,
    Build,
    Case,
    cases,
    changed_program,
    honest,
    with_entries,
)
from tests.hostile.scripts import SCRIPTS
from tests.workers import uploads

CALL = "__import__('os').system('true')"


def _expression(text: str) -> Build:
    return changed_program(lambda program: program.update(extra={"expr_str": text}))


def _json(data: bytes) -> Build:
    return with_entries(lambda _: [("models/model.json", data)])


def _many_nodes(folder: Path, _canary: Path) -> Path:
    """A million operations, written without being made."""

    def rewrite(name: str, data: bytes) -> bytes:
        if name != "models/model.json":
            return data
        program = json.loads(data)
        node = json.dumps({"target": "torch.ops.aten.relu.default", "inputs": [], "outputs": [], "metadata": {}})
        program["graph_module"]["graph"]["nodes"] = ["HERE"]
        return json.dumps(program).replace('"HERE"', ",".join([node] * 1_000_000)).encode()

    return uploads.rewritten(honest(folder), folder / "model", rewrite)


def named(name: str) -> Build:
    """The honest model, with a layer of this name: that of its weight, and that of its module."""
    return _replaced({b'"0.weight"': json.dumps(f"{name}.weight").encode(), _MODULE: _module(name)})


def named_by_module(name: str) -> Build:
    return _replaced({_MODULE: _module(name)})


_MODULE = b"L__self__0,0,"  # key, path and type, in the nn_module_stack of every node


def _module(name: str) -> bytes:
    return b"L__self__0," + json.dumps(name)[1:-1].encode() + b","


def _replaced(changes: dict[bytes, bytes]) -> Build:
    def rewrite(entry: str, data: bytes) -> bytes:
        for old, new in changes.items():
            data = data.replace(old, new) if entry.endswith(".json") else data
        return data

    return lambda folder, _: uploads.rewritten(honest(folder), folder / "model", rewrite)


def script(name: str) -> Build:
    def build(folder: Path, canary: Path) -> Path:
        buffer = io.BytesIO()
        torch.jit.save(SCRIPTS[name](canary), buffer)
        (folder / "model").write_bytes(buffer.getvalue())
        return folder / "model"

    return build


NAMES = {
    "markup and quotes": '"><img src=x onerror="alert(1)">',
    "an ANSI escape": "\x1b[31mred\x1b]0;title\x07",
    "an ANSI escape in one character": "\x9b31mred",
    "a line break": "a\nb",
    "a carriage return": "a\rb",
    "a null": "a\0b",
    "backwards": "a\u202eb",
    "a line separator": "a\u2028b",
    "a quote": "a'b",
    "a hundred thousand characters": "a" * 100_000,
}
QUOTES = set("\"'")  # which a module's name may hold, where it is not pasted into source
_HARMLESS = (INVALID, READY)
PROGRAMS = [
    *cases("program", "pt2", (UNSAFE,), {
        "size that calls": _expression(CALL),
        "size by attribute": _expression("Symbol('s0').__class__"),
        "size as lambda": _expression("(lambda: 1)()"),
        "size as comprehension": _expression("[x for x in (1,)]"),
        "size as format string": _expression("f'{1}'"),
        "size that assigns": _expression("(x := 1)"),
        "size of ten thousand brackets": _expression("(" * 10_000 + "1" + ")" * 10_000),
        "guard code": changed_program(lambda program: program.update(guards_code=[CALL])),
        "target that resolves": changed_program(lambda program: program.update(target="torch.os.system")),
        "target by attribute": changed_program(lambda program: program.update(target="torch.ops.aten.add.__class__")),
        "operator of files": changed_program(lambda program: program.update(target="torch.ops.aten.from_file.default")),
        "tree that imports": changed_program(
            lambda program: program.update(in_spec=json.dumps([1, {"__enum__": True, "fqn": "os.system", "name": "x"}]))
        ),
        "name as source": changed_program(lambda program: program.update(as_name=f"x = {CALL}\n")),
        "range of code": changed_program(lambda program: program.update(range_constraints={CALL: {}})),
    }, _HARMLESS),
    Case("program: a million operations", "pt2", (INVALID,), _many_nodes, (INVALID, LATE, STARVED), seconds=8),
    *cases("program", "pt2", (INVALID,), {
        "deep JSON": _json(b"[" * 100_000),
        "huge integer": _json(b'{"a": ' + b"9" * 100_000 + b"}"),
        "bad UTF-8": _json(b'{"a": "\xff\xfe"}'),
        "no object": _json(b"[]"),
        "nothing": _json(b""),
        "null": _json(b"null"),
    }, (INVALID, LATE, STARVED)),
    *cases("layer called", "pt2", (UNSAFE,), {name: named(text) for name, text in NAMES.items()},
           _HARMLESS),
    *cases("module called", "pt2", (UNSAFE,), {name: named_by_module(text) for name, text in NAMES.items()
           if not QUOTES & set(text)}, _HARMLESS),
    Case("code with an ANSI escape", "pt2", (UNSAFE,), _replaced({b'"stack_trace": "': b'"stack_trace": "\\u001b[2J'}),
         _HARMLESS),
]  # fmt: skip
_HELD = (VIOLATION,)
RUNNING = [
    Case("TorchScript: read", "torchscript", (UNSAFE,), script("read"), _HELD),
    Case("TorchScript: steal", "torchscript", (UNSAFE,), script("steal"), _HELD),
    Case("TorchScript: write", "torchscript", (UNSAFE,), script("write"), _HELD),
    Case("TorchScript: save", "torchscript", (UNSAFE,), script("save"), (READY,)),  # it does not look
    Case("TorchScript: allocate", "torchscript", (STARVED,), script("allocate"), (STARVED,)),
    Case("TorchScript: loop", "torchscript", (LATE,), script("loop"), (LATE,), seconds=2),
    Case("TorchScript: print", "torchscript", (LATE,), script("print"), (LATE,), seconds=4),
    Case("TorchScript: fork", "torchscript", (READY,), script("fork"), (READY,)),  # a task of a thread, no process
    Case("TorchScript: fork without end", "torchscript", (LATE, STARVED), script("fork without end"), (LATE, STARVED),
         seconds=4),
]  # fmt: skip
