"""Pickles that call, that grow, and that lie: by what they call, by their opcodes, and by the place they lie in."""

from __future__ import annotations

import builtins
import codecs
import collections
import copyreg
import functools
import importlib
import json
import marshal
import operator
import os
import pickle
import pkgutil
import pydoc
import runpy
import shutil
import subprocess
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch

from tests.hostile.case import INVALID, LATE, READY, STARVED, UNSAFE, VIOLATION, Build, Case, honest, with_entries
from tests.workers import packed, uploads
from tests.workers.uploads import Hostile, torch_saved, with_entry, zip_of


def _touch(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()"


def _shell(canary: Path) -> str:
    return f"touch {canary}"


def _secret(canary: Path) -> str:
    return str(canary.parent / "secret")


ACTS: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda canary: Hostile(os.system, _shell(canary)),
    "eval": lambda canary: Hostile(eval, _touch(canary)),
    "exec": lambda canary: Hostile(exec, _touch(canary)),
    "open": lambda canary: Hostile(open, str(canary), "w"),
    "subprocess": lambda canary: Hostile(subprocess.Popen, ["touch", str(canary)]),
    "mkdir": lambda canary: Hostile(os.mkdir, str(canary)),
    "run_path": lambda canary: Hostile(runpy.run_path, _secret(canary)),
    "timeit": lambda canary: Hostile(timeit.timeit, "0", _touch(canary)),
    "pydoc": lambda canary: Hostile(pydoc.pipepager, "x", f"cat > {canary}"),
    "marshal": lambda canary: Hostile(
        exec, Hostile(marshal.loads, marshal.dumps(compile(_touch(canary), "x", "exec")))
    ),
    "codecs": lambda canary: Hostile(exec, Hostile(codecs.decode, codecs.encode(_touch(canary), "rot13"), "rot13")),
    "pickle in a pickle": lambda canary: Hostile(pickle.loads, pickle.dumps(Hostile(os.system, _shell(canary)))),
    "storage": lambda canary: Hostile(
        torch.storage._load_from_bytes, torch_saved(Hostile(os.system, _shell(canary)))
    ),
    "object array": lambda canary: numpy.array([Hostile(os.system, _shell(canary))], dtype=object),
    "rebuild from type": lambda canary: Hostile(
        torch._tensor._rebuild_from_type_v2, os.system, torch.Tensor, (_shell(canary),), {}
    ),
    "remove": lambda canary: Hostile(os.unlink, _secret(canary)),
    "remove all": lambda canary: Hostile(shutil.rmtree, str(canary.parent)),
    "rename": lambda canary: Hostile(os.rename, _secret(canary), str(canary)),
    "mode": lambda canary: Hostile(os.chmod, _secret(canary), 0o777),
    "times": lambda canary: Hostile(os.utime, _secret(canary), (0, 0)),
    "link": lambda canary: Hostile(os.link, _secret(canary), "stolen"),
    "copy": lambda canary: Hostile(shutil.copy, _secret(canary), "stolen"),
    "print": lambda canary: Hostile(exec, f"print(open({_secret(canary)!r}).read(), flush=True)"),
    "raise": lambda canary: Hostile(exec, f"raise ValueError(open({_secret(canary)!r}).read())"),
}  # fmt: skip
"""What each does shows: a file that is there, another that has changed, or a secret that came out."""

PARTS: dict[str, Callable[[Path], Any]] = {
    "getattr": lambda canary: Hostile(getattr, Hostile(importlib.import_module, "os"), "system"),
    "partial": lambda canary: Hostile(functools.partial, os.system, _shell(canary)),
    "attrgetter": lambda canary: Hostile(operator.attrgetter, "system"),
    "methodcaller": lambda canary: Hostile(operator.methodcaller, "system", _shell(canary)),
    "importlib": lambda canary: Hostile(importlib.import_module, "antigravity"),
    "resolve_name": lambda canary: Hostile(pkgutil.resolve_name, "os:system"),
    "compile": lambda canary: Hostile(builtins.compile, _touch(canary), "x", "exec"),
    "copyreg": lambda canary: Hostile(copyreg._reconstructor, functools.partial, object, None),
    "defaultdict": lambda canary: Hostile(collections.defaultdict, os.getcwd),
    "encode": lambda canary: Hostile(codecs.encode, "flfgrz", "rot13"),
    "torch.load": lambda canary: Hostile(torch.load, str(canary)),
    "torch.hub": lambda canary: Hostile(torch.hub.load, str(canary.parent), "x", "local"),
    "torch.jit.load": lambda canary: Hostile(torch.jit.load, str(canary)),
    "numpy.fromfile": lambda canary: Hostile(numpy.fromfile, _secret(canary)),
    "/etc/passwd": lambda canary: Hostile(numpy.fromfile, "/etc/passwd"),
    "reconstruct": lambda canary: Hostile(numpy.zeros(0).__reduce__()[0], numpy.ndarray, (0,), b"O"),
}
"""What others are made of; alone they do little, and are no part of a model."""

GADGETS = ACTS | PARTS


def _text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def _laughs(depth: int) -> bytes:
    """A list of sixteen times the same list of sixteen times the same list: sixteen to the power of ``depth``."""
    if depth == 0:
        return b"]q\x00"
    return b"]q" + bytes([depth]) + b"(" + _laughs(depth - 1) + (b"h" + bytes([depth - 1])) * 15 + b"e"


def _tuples(depth: int) -> bytes:
    """Nested tuples of themselves, which hashing walks one by one."""
    if depth == 0:
        return b"K\x01q\x00"
    return b"(" + _tuples(depth - 1) + (b"h" + bytes([depth - 1])) * 15 + b"tq" + bytes([depth])


def _inputs(value: bytes) -> bytes:
    """A pickle of the arguments ``((value,), {})``."""
    return b"\x80\x02" + value + b"\x85}\x86."


CALLS: dict[str, Callable[[Path], bytes]] = {
    "STACK_GLOBAL": lambda canary: uploads.stack_global("posix", "system", _shell(canary)),
    "a name with dots": lambda canary: uploads.stack_global("torch.serialization", "os.system", _shell(canary)),
    "INST": lambda canary: uploads.inst("posix", "system", _shell(canary)),
    "OBJ": lambda canary: b"(cposix\nsystem\nV" + _shell(canary).encode() + b"\no.",
    "import and attrgetter": lambda canary: (
        b"coperator\nattrgetter\n(Vsystem\ntR(c__builtin__\n__import__\n(Vos\ntRtR(V"
        + _shell(canary).encode()
        + b"\ntR."
    ),
}
LIES: dict[str, Callable[[Path], bytes]] = {
    "NEWOBJ": lambda _: _inputs(b"csubprocess\nPopen\n)\x81"),
    "state of a partial": lambda canary: (
        b"\x80\x02cfunctools\npartial\n(cbuiltins\nprint\ntR(cposix\nsystem\n" + _text(_shell(canary)) + b"\x85}NtbR."
    ),
    "persistent id": lambda canary: (
        b"\x80\x02(" + _text("storage") + b"cposix\nsystem\n" + _text("0") + _text("cpu") + b"K\x01tQ."
    ),
    "extension": lambda _: b"\x80\x02\x82\x01.",
    "protocol 255": lambda _: b"\x80\xff.",
    "a frame of 2^60 bytes": lambda _: b"\x80\x04\x95" + (1 << 60).to_bytes(8, "little") + b".",
    "a string of 4 GB": lambda _: b"\x80\x02X\xff\xff\xff\xff.",
    "bytes of 2^62": lambda _: b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b".",
    "two ends": lambda canary: _inputs(b"]") + uploads.protocol(2, Hostile(os.system, _shell(canary))),
}
BOMBS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "a billion laughs": (_inputs(_laughs(9)), (LATE, STARVED)),
    "a hash of a billion": (_inputs(b"}" + _tuples(9) + b"Ns"), (LATE,)),
    "a hundred thousand lists deep": (_inputs(b"]" * 100_000 + b"a" * 99_999), (INVALID,)),
    "a memo of 2^31": (_inputs(b"]r\xff\xff\xff\x7f"), (READY, STARVED)),  # a dict, in torch's own unpickler
}
PLACES = (
    "data/sample_inputs/model.pt", "data/sample_inputs/other.pt", "data/constants/opaque_obj_0",
    "data/constants/custom_obj_0", "data/constants/tensor_7", "data/weights/weight_9", "data/weights/weight_0",
    "data/extra/x.pkl", "extra/x", "extra/notes.txt", "models/model.pkl", "data/aotinductor/model/x.pkl",
    "archive_version", "byteorder", ".data/serialization_id", "data.pkl", "constants.pkl", "code/x.py", "anything",
)  # fmt: skip


def _payload(pickled: bytes) -> bytes:
    """A ``torch.save`` archive around a pickle."""
    return zip_of({"archive/data.pkl": pickled, "archive/version": b"3\n", "archive/byteorder": b"little"})


def _in_sample_inputs(payload: Callable[[Path], bytes]) -> Build:
    return with_entries(lambda canary: [(PLACES[0], payload(canary))])


def _opcodes(name: str) -> Build:
    return _in_sample_inputs(lambda canary: _payload((CALLS | LIES)[name](canary)))


def _bomb(name: str) -> Build:
    return _in_sample_inputs(lambda _: _payload(BOMBS[name][0]))


def _claim(name: str) -> Build:
    return _in_sample_inputs(lambda _: _tensor(**CLAIMS[name]))


def _saved(gadget: str) -> Callable[[Path], bytes]:
    return lambda canary: torch_saved(((GADGETS[gadget](canary),), {}))


def _placed(place: str) -> Build:
    return with_entries(lambda canary: [(place, torch_saved(ACTS["os.system"](canary)))])


def _bare(place: str) -> Build:
    return with_entries(lambda canary: [(place, uploads.protocol(4, ACTS["os.system"](canary)))])


def _unpickled_weight(folder: Path, canary: Path) -> Path:
    """A weights config that has torch unpickle the weight."""

    def pickled(name: str, data: bytes) -> bytes:
        if not name.endswith("model_weights_config.json"):
            return data
        config = json.loads(data)
        for payload in config["config"].values():
            payload.update(use_pickle=True, path_name="evil")
        return json.dumps(config).encode()

    path = uploads.rewritten(honest(folder), folder / "pickled", pickled)
    return with_entry(path, folder / "model", "data/weights/evil", torch_saved(ACTS["exec"](canary)))


def _nested(folder: Path, canary: Path) -> Path:
    inner = zip_of({"a/data.pkl": zip_of({"b/data.pkl": torch_saved(ACTS["eval"](canary))})})
    return with_entry(honest(folder), folder / "model", "data/constants/tensor_7", inner)


def _endless(folder: Path, _canary: Path) -> Path:
    data = b"weights"
    for _ in range(50):
        data = zip_of({"archive/data/0": data})
    return with_entry(honest(folder), folder / "model", "data/weights/weight_7", data)


def _module(gadget: str) -> Build:
    def build(folder: Path, canary: Path) -> Path:
        module = torch.nn.Sequential(torch.nn.Linear(4, 4))
        module.hidden = GADGETS[gadget](canary)
        return packed.saved(module, folder / "model")

    return build


def _module_entry(name: str) -> Build:
    """A saved module with a pickle where a storage, or nothing, should be."""

    def build(folder: Path, canary: Path) -> Path:
        path = packed.saved(packed.sequential(), folder / "honest")
        return with_entry(path, folder / "model", name, torch_saved(ACTS["os.system"](canary)))

    return build


def _script_entry(name: str) -> Build:
    def build(folder: Path, canary: Path) -> Path:
        path = packed.scripted(packed.sequential(), folder / "honest")
        return with_entry(path, folder / "model", name, uploads.protocol(2, ACTS["os.system"](canary)))

    return build


def _legacy(folder: Path, canary: Path) -> Path:
    (folder / "model").write_bytes(uploads.protocol(0, ACTS["os.system"](canary)))
    return folder / "model"


def _folder(kind: str) -> Build:
    def build(folder: Path, canary: Path) -> Path:
        config = json.dumps({"architectures": ["BertModel"], "model_type": "bert"}).encode()
        files = {"config.json": config, "pytorch_model.bin": torch_saved(ACTS["os.system"](canary))}
        return (packed.tarred if kind == "tar" else packed.zipped)(files, folder / "model")

    return build


def _tensor(**claims: Any) -> bytes:
    """Sample inputs of one tensor, whose pickle claims what it likes of size, stride and storage."""
    made = {"numel": 4, "offset": 0, "size": (4,), "stride": (1,)} | claims
    number = functools.partial(pickle.dumps, protocol=2)

    def plain(value: Any) -> bytes:
        return number(value)[2:-1].replace(b"q\x00", b"").replace(b"q\x01", b"")

    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + plain(made["numel"])
    arguments = b"(" + storage + b"tQ" + b"".join(plain(made[key]) for key in ("offset", "size", "stride"))
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"\x89ccollections\nOrderedDict\n)RtR"
    return zip_of(
        {"archive/data.pkl": _inputs(rebuilt), "archive/version": b"3\n", "archive/byteorder": b"little",
         "archive/data/0": bytes(16)}
    )  # fmt: skip


CLAIMS: dict[str, dict[str, Any]] = {
    "a tensor of 2^60 numbers": {"size": (1 << 60,)},
    "a storage of 2^40 numbers": {"numel": 1 << 40, "size": (1 << 40,)},
    "a negative size": {"size": (-4,)},
    "a negative stride": {"size": (4,), "stride": (-1,)},
    "an offset beyond its storage": {"offset": 1 << 40},
    "a size that overflows": {"size": (1 << 62, 1 << 62), "stride": (1, 1)},
}
_HELD = (VIOLATION,)
_NOTHING_OF_IT = (INVALID, READY, VIOLATION)  # torch does not look there, or makes of it what it can, and is held
PICKLES = [
    *(Case(f"sample inputs: {name}", "pt2", (UNSAFE,), _in_sample_inputs(_saved(name)), _HELD, True) for name in ACTS),
    *(Case(f"sample inputs: {name}", "pt2", (UNSAFE,), _in_sample_inputs(_saved(name)), _NOTHING_OF_IT, True)
      for name in PARTS),
    *(Case(f"stock module: {name}", "module", (UNSAFE, INVALID), _module(name), _NOTHING_OF_IT, True)
      for name in ACTS),
    *(Case(f"opcodes: {name}", "pt2", (UNSAFE,), _opcodes(name), _HELD, True) for name in CALLS),
    *(Case(f"opcodes: {name}", "pt2", (UNSAFE, INVALID), _opcodes(name), (*_NOTHING_OF_IT, STARVED), True)
      for name in LIES),
    *(Case(f"placed in {place}", "pt2", (UNSAFE, INVALID), _placed(place), _NOTHING_OF_IT, True) for place in PLACES),
    *(Case(f"bare in {place}", "pt2", (UNSAFE, INVALID), _bare(place), _NOTHING_OF_IT, True) for place in PLACES),
    Case("a weight that is unpickled", "pt2", (UNSAFE,), _unpickled_weight, _HELD, True),
    Case("nested archives", "pt2", (UNSAFE,), _nested, _NOTHING_OF_IT, True),
    Case("protocol 0", "module", (UNSAFE, INVALID), _legacy, _NOTHING_OF_IT, True),
    *(Case(f"module: pickle as {name}", "module", (UNSAFE,), _module_entry(name), _NOTHING_OF_IT, True)
      for name in ("data/0", "version", "extra/x")),
    *(Case(f"TorchScript: pickle as {name}", "torchscript", (UNSAFE,), _script_entry(name), _NOTHING_OF_IT, True)
      for name in ("data.pkl", "constants.pkl", "attributes.pkl", "extra/x", "data/0")),
    *(Case(f"folder as {kind}", "transformers", (UNSAFE,), _folder(kind), _NOTHING_OF_IT, True)
      for kind in ("tar", "zip")),
]  # fmt: skip
BOMBED = [
    *(Case(f"pickle: {name}", "pt2", ends, _bomb(name), ends, seconds=5) for name, (_, ends) in BOMBS.items()),
    *(Case(f"pickle: {name}", "pt2", (INVALID,), _claim(name)) for name in CLAIMS),
    Case("archives fifty deep", "pt2", (UNSAFE,), _endless, (READY, INVALID)),
]  # fmt: skip
