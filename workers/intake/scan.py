"""Checks that an upload is a model and nothing else, without torch and without unpickling anything.

An exported program (``.pt2``) is a zip archive of JSON, raw weights, and ``torch.save`` payloads, which are themselves
zip archives of pickles. ``torch.export.load`` runs what those pickles call, evaluates strings of the JSON and loads
compiled code; ``torch.load`` and ``torch.jit.load`` can run code in other ways. So everything in the file is checked
first, by content and not by name:

    zip_archives            the zip structure: bombs, duplicates, traversal, whatever two readers understand differently
    tar_archives            the same for a tar file
    pickles                 every pickle, opcode by opcode, against an allow-list
    exported_programs       every string of the JSON that torch evaluates, imports, resolves or compiles
    expressions             the grammars of those strings
    stock_modules           the classes a pickled module may be made of
    torchscript_source      the source text of TorchScript
    transformers_folders    a Transformers folder: its config and the headers of its weights

The kind of model is known by the entries that each writer leaves (``_MARKS``).
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from fewbit.contract.resources import ModelFormat
from workers.errors import EngineError
from workers.intake import pickles
from workers.intake.exported_programs import MAX_JSON_BYTES, check_json
from workers.intake.stock_modules import MODULES, STOCK
from workers.intake.tar_archives import is_tar, tar_entries
from workers.intake.torchscript_source import MAX_CODE_BYTES, check_code, forbidden_name
from workers.intake.transformers_folders import is_folder, scan_folder, zip_entries
from workers.intake.zip_archives import Archive, open_archive

_EXPORT = (
    "Export the model with "
    "`torch.export.save(torch.export.export(model.eval(), (example_input,)), 'model.pt2')` (torch 2.13)."
)
_KINDS = {b"\x89HDF": "an HDF5 file (Keras?)", b"GGUF": "a GGUF file", b"PK": "an empty or split zip archive"}
_MAX_NESTING = 3
_MAX_PICKLE_BYTES = 64 << 20
_HEAD = 1 << 20
_LEGACY_OPCODES = frozenset(b"(]}){cIilLFVSTUXJKMNGBC\x8c\x8d\x8e\x8f\x94\x95")
_COMPILED = ("data/aotinductor/", "data/executorch/", "data/mtia", "xl_model_weights/")
_NATIVE = (b"\x7fELF", b"MZ\x90\x00", b"\xcf\xfa\xed\xfe", b"!<arch>\n")
_LIBRARY = re.compile(r"\.(so|so\.\d+|dll|dylib|o|a|cubin)$", re.IGNORECASE)
_LOADED_PICKLE = re.compile(r"data/sample_inputs/|\.(pt|pth|pkl|pickle)$")
_PAYLOADS = ("data/weights/", "data/constants/")
_OBJECTS = ("custom_obj_", "opaque_obj_")  # unpickled even with ``use_pickle`` false
_DOTTED = re.compile(r"[\w.]+")

# The entry that tells the kind of model, the first that is present; torch's readers look for the same ones.
_MARKS: dict[str, ModelFormat] = {"archive_format": "pt2", "constants.pkl": "torchscript", "data.pkl": "module"}
_STORED = re.compile(r"data/\d+|version|byteorder|\.data/serialization_id|\.format_version|\.storage_alignment")
_SCRIPT_PICKLE = re.compile(r"\.(pkl|debug_pkl)$")


def scan(path: Path) -> ModelFormat:
    """The kind of model at ``path``, once it is safe to hand to that kind's reader in ``engine/formats``.

    Raises ``EngineError('unsafe-model')`` for an upload that holds code, and names the code;
    ``EngineError('invalid-model')`` for one that is no model, and says what it is instead.
    """
    with path.open("rb") as file:
        head = file.read(512)
        if is_tar(head):
            scan_folder(tar_entries(path))
            return "transformers"
        if not head.startswith(b"PK\x03\x04"):
            raise _not_an_archive(file, head[:64])
        archive = open_archive(file, "the upload")
        names = [info.filename for info in archive.entries]
        if is_folder(names) and not _is_torch_archive(names):
            scan_folder(zip_entries(archive))
            return "transformers"
        root = _root(archive)
        kind = _model_kind(archive, root)
        _CHECKS[kind](archive, root)
        return kind


def _not_an_archive(file: BinaryIO, head: bytes) -> EngineError:
    if not head:
        return EngineError("invalid-model", "The upload is empty.")
    if pickles.looks_like_pickle(head):
        file.seek(0)
        return _saved_by_torch_save(pickles.walk(file.read(_MAX_PICKLE_BYTES)))
    if head.startswith(_NATIVE):
        return EngineError("unsafe-model", "The upload is a compiled program or library. Nothing was executed.")
    return EngineError("invalid-model", f"The upload is {_file_kind(head)}, not an exported program. {_EXPORT}")


def _file_kind(head: bytes) -> str:
    for magic, kind in _KINDS.items():
        if head.startswith(magic):
            return kind
    if head[8:9] == b"{":
        return "a safetensors file (weights without a program)"
    if all(32 <= byte < 127 or byte in b"\r\n\t" for byte in head):
        return f"text that begins with {head[:40].decode('ascii')!r}"
    return f"binary data that begins with {head[:8].hex(' ')}"


def _saved_by_torch_save(walk: pickles.Walk) -> EngineError:
    """Why a pickle is refused that is not a module made of stock classes."""
    hostile = walk.hostile or walk.computed_call
    if hostile:
        return _calls("The upload", hostile)
    own_class = next((name for name in walk.names if name not in STOCK), None)
    if own_class is not None:
        what = f"a pickle of {own_class}, which is no class of torch.nn and needs your code to be loaded"
    elif MODULES & set(walk.names):
        what = "a torch.save file in torch's old format; save it again with a current torch.save(model, path)"
    else:
        what = "a torch.save pickle of tensors without a model, which needs your code to be loaded"
    return EngineError(
        "invalid-model",
        f"The upload is {what}. Export the model instead:\n"
        "program = torch.export.export(model.eval(), (example_input,))\ntorch.export.save(program, 'model.pt2')",
    )


def _root(archive: Archive) -> str:
    """The one top folder of the archive, with its slash."""
    names = [info.filename for info in archive.entries]
    if not names:
        raise EngineError("invalid-model", "The upload is an empty archive.")
    if "serialized_exported_program.json" in names:
        raise EngineError("invalid-model", f"The upload was exported by torch 2.7 or older. {_EXPORT}")
    roots = {name.split("/", 1)[0] if "/" in name else "" for name in names}
    if len(roots) > 1 or "" in roots:
        raise EngineError("invalid-model", f"The upload is a zip archive, but not one that torch wrote. {_EXPORT}")
    return roots.pop() + "/"


def _is_torch_archive(names: list[str]) -> bool:
    """Whether an entry one folder deep is one that torch's own readers look for."""
    return any(name.count("/") == 1 and name.rpartition("/")[2] in _MARKS for name in names)


def _model_kind(archive: Archive, root: str) -> ModelFormat:
    names = {info.filename[len(root) :]: info for info in archive.entries}
    marker = names.get("archive_format")
    if marker is not None and archive.read(marker, 64).strip() == b"pt2":
        return "pt2"
    for mark, kind in _MARKS.items():
        if mark in names and kind != "pt2":
            return kind
    raise EngineError("invalid-model", f"The upload is a zip archive without an exported program. {_EXPORT}")


def _check_module(archive: Archive, root: str) -> None:
    """``torch.save(model)`` writes one pickle, which may name stock classes only, and raw storages."""
    for info in archive.entries:
        name = info.filename[len(root) :]
        if name == "data.pkl":
            _check_module_pickle(pickles.walk(archive.read(info, _MAX_PICKLE_BYTES), pickles=1))
        elif _STORED.fullmatch(name):
            _check_content(archive, info, loaded=False, nesting=0)
        else:
            raise EngineError("unsafe-model", f"{info.filename} is not an entry that torch.save writes.")


def _check_module_pickle(walk: pickles.Walk) -> None:
    if walk.outside(STOCK) or not MODULES & set(walk.names):
        raise _saved_by_torch_save(walk)
    _check_opcodes(walk, "The upload")


def _check_script(archive: Archive, root: str) -> None:
    """``torch.jit.save`` writes source text, pickles of data and of the archive's own classes, and raw storages."""
    for info in archive.entries:
        name, where = info.filename[len(root) :], f"{info.filename} in {archive.label}"
        if name.startswith("code/") and name.endswith(".py"):
            check_code(archive.read(info, MAX_CODE_BYTES), where)
        elif _SCRIPT_PICKLE.search(name):
            _check_script_pickle(archive.read(info, _MAX_PICKLE_BYTES), where)
        else:
            _check_content(archive, info, loaded=False, nesting=0)


def _check_script_pickle(data: bytes, where: str) -> None:
    walk = pickles.walk(data, pickles=1)
    bad = forbidden_name(walk.names, where) or walk.computed_call
    if bad:
        raise _calls(where, bad)
    _check_opcodes(walk, where)


def _check_entries(archive: Archive, root: str) -> None:
    unpickled: set[str] = set()
    for info in archive.entries:
        name = info.filename[len(root) :]
        if name.startswith(_COMPILED) or _LIBRARY.search(name):
            raise _compiled(info.filename)
        if name.startswith("models/") or (name.startswith("data/") and name.endswith(".json")):
            document = check_json(archive.read(info, MAX_JSON_BYTES), info.filename)
            unpickled |= {root + payload for payload in _unpickled_payloads(document)}
    for info in archive.entries:
        loaded = info.filename in unpickled or bool(_LOADED_PICKLE.search(info.filename))
        _check_content(archive, info, loaded=loaded, nesting=0)


def _unpickled_payloads(document: Any) -> set[str]:
    """The entries that a weights or constants config makes torch unpickle, as paths the way torch builds them."""
    config = document.get("config") if isinstance(document, dict) else None
    payloads = config.values() if isinstance(config, dict) else ()
    names = [payload.get("path_name") for payload in payloads if isinstance(payload, dict) and _is_unpickled(payload)]
    return {posixpath.join(folder, name) for name in names if isinstance(name, str) for folder in _PAYLOADS}


def _is_unpickled(payload: dict[str, Any]) -> bool:
    return payload.get("use_pickle") is not False or str(payload.get("path_name")).startswith(_OBJECTS)


def _check_content(archive: Archive, info: zipfile.ZipInfo, *, loaded: bool, nesting: int) -> None:
    """``loaded``: torch unpickles this entry, so it must be a pickle from the allow-list. No other entry may be a
    harmful pickle, whatever its name; raw weights never parse as one."""
    head = archive.head(info, 64)
    where = f"{info.filename} in {archive.label}"
    if head.startswith(_NATIVE):
        raise _compiled(where)
    if head.startswith(b"PK\x03\x04"):
        _check_payload(open_archive(archive.stream(info), where), nesting + 1)
    elif loaded and head:
        _check_loaded_pickle(archive.read(info, _MAX_PICKLE_BYTES), where)
    elif pickles.looks_like_pickle(head) or (head and head[0] in _LEGACY_OPCODES):
        _check_stray_pickle(archive.head(info, _HEAD), where)


def _check_payload(archive: Archive, nesting: int) -> None:
    """A ``torch.save`` archive: one ``data.pkl`` and raw storages."""
    if nesting > _MAX_NESTING:
        raise EngineError("unsafe-model", f"{archive.label} is nested deeper than {_MAX_NESTING} archives.")
    for info in archive.entries:
        if info.filename.endswith("/constants.pkl") or "/code/" in info.filename:
            raise EngineError("unsafe-model", f"{archive.label} is a TorchScript program inside the model.")
        _check_content(archive, info, loaded=info.filename.endswith(".pkl"), nesting=nesting)


def _check_loaded_pickle(data: bytes, where: str) -> None:
    walk = pickles.walk(data, pickles=1)
    if walk.forbidden:
        raise _calls(where, walk.forbidden)
    _check_opcodes(walk, where)


def _check_opcodes(walk: pickles.Walk, where: str) -> None:
    if walk.strange_opcodes:
        opcode = walk.strange_opcodes[0]
        raise EngineError("invalid-model", f"{where} uses the pickle opcode {opcode}; save with pickle_protocol=2.")
    if not walk.complete:
        raise EngineError("invalid-model", f"{where} should be a pickle, but is damaged.")
    if walk.trailing_bytes:
        raise EngineError("unsafe-model", f"{where} has {walk.trailing_bytes} bytes after the end of its pickle.")


def _check_stray_pickle(head: bytes, where: str) -> None:
    """Text may parse as a pickle of protocol 0 by chance (``cat``, ``dog`` on two lines), so for those only names that
    are callable here count."""
    walk = pickles.walk(head, limit=100_000)
    names = [name for name in walk.names if _DOTTED.fullmatch(name)]
    if pickles.looks_like_pickle(head):
        bad = next((name for name in names if name not in pickles.ALLOWED), None)
    else:
        bad = pickles.Walk(tuple(names), (), complete=False).hostile
    if bad:
        raise _calls(where, bad)


def _calls(where: str, name: str) -> EngineError:
    name = "a name that it computes" if name == "?" else name
    return EngineError("unsafe-model", f"{where} is a pickle that would call {name} when loaded. Nothing was executed.")


def _compiled(where: str) -> EngineError:
    return EngineError("unsafe-model", f"{where} is compiled code (AOTInductor?). {_EXPORT}")


_CHECKS: dict[ModelFormat, Callable[[Archive, str], None]] = {
    "pt2": _check_entries,
    "module": _check_module,
    "torchscript": _check_script,
}
