"""Is this upload a model, and only a model? Answered without torch and without unpickling anything.

An exported program (``.pt2``) is a zip archive of JSON, raw weights, and ``torch.save`` payloads that are zip archives
of pickles themselves. ``torch.export.load`` runs what those pickles call, evaluates strings of the JSON and loads
compiled code; so everything in the file is looked at first, by content and not by name:

    archives.py     the zip structure: bombs, duplicates, traversal, anything two readers would understand differently
    pickles.py      every pickle, opcode by opcode, against an allow-list
    programs.py     every string of the JSON that torch evaluates, imports, resolves or compiles
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from workers import pickles
from workers.archives import Archive, open_archive
from workers.engine.errors import EngineError
from workers.programs import MAX_JSON_BYTES, check_json

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
_OBJECTS = ("custom_obj_", "opaque_obj_")  # unpickled whatever ``use_pickle`` says
_DOTTED = re.compile(r"[\w.]+")


def scan(path: Path) -> None:
    """Return if the upload at ``path`` may be given to ``torch.export.load``.

    Raises ``EngineError('unsafe-model')`` for one that holds code, naming it, and ``EngineError('invalid-model')`` for
    what is no exported program, saying what it is instead.
    """
    with path.open("rb") as file:
        head = file.read(64)
        if not head.startswith(b"PK\x03\x04"):
            raise _not_an_archive(file, head)
        archive = open_archive(file, "the upload")
        root = _root(archive)
        _check_format(archive, root)
        _check_entries(archive, root)


def _not_an_archive(file: BinaryIO, head: bytes) -> EngineError:
    if not head:
        return EngineError("invalid-model", "The upload is empty.")
    if pickles.looks_like_pickle(head):
        file.seek(0)
        return _saved_by_torch_save(pickles.walk(file.read(_MAX_PICKLE_BYTES)))
    if head.startswith(_NATIVE):
        return EngineError("unsafe-model", "The upload is a compiled program or library. Nothing was executed.")
    return EngineError("invalid-model", f"The upload is {_kind(head)}, not an exported program. {_EXPORT}")


def _kind(head: bytes) -> str:
    for magic, kind in _KINDS.items():
        if head.startswith(magic):
            return kind
    if head[8:9] == b"{":
        return "a safetensors file (weights without a program)"
    if all(32 <= byte < 127 or byte in b"\r\n\t" for byte in head):
        return f"text that begins with {head[:40].decode('ascii')!r}"
    return f"binary data that begins with {head[:8].hex(' ')}"


def _saved_by_torch_save(walk: pickles.Walk) -> EngineError:
    hostile = walk.hostile
    if hostile:
        return _calls("The upload", hostile)
    return EngineError(
        "invalid-model",
        "The upload is a torch.save pickle, which needs your code to be loaded. Export the model instead:\n"
        "program = torch.export.export(model.eval(), (example_input,))\ntorch.export.save(program, 'model.pt2')",
    )


def _root(archive: Archive) -> str:
    """The one folder everything lies in."""
    names = [info.filename for info in archive.entries]
    if not names:
        raise EngineError("invalid-model", "The upload is an archive with nothing in it.")
    if "serialized_exported_program.json" in names:
        raise EngineError("invalid-model", f"The upload was exported by torch 2.7 or older. {_EXPORT}")
    roots = {name.split("/", 1)[0] if "/" in name else "" for name in names}
    if len(roots) > 1 or "" in roots:
        raise EngineError("invalid-model", f"The upload is a zip archive, but not one that torch wrote. {_EXPORT}")
    return roots.pop() + "/"


def _check_format(archive: Archive, root: str) -> None:
    names = {info.filename[len(root) :]: info for info in archive.entries}
    marker = names.get("archive_format")
    if marker is not None and archive.read(marker, 64).strip() == b"pt2":
        return
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise EngineError("invalid-model", f"The upload is a TorchScript archive (torch.jit.save). {_EXPORT}")
    if "data.pkl" in names:
        raise _saved_by_torch_save(pickles.walk(archive.read(names["data.pkl"], _MAX_PICKLE_BYTES)))
    raise EngineError("invalid-model", f"The upload is a zip archive without an exported program. {_EXPORT}")


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
    """The entries a weights or constants config has torch unpickle, by the paths torch makes of their names."""
    config = document.get("config") if isinstance(document, dict) else None
    payloads = config.values() if isinstance(config, dict) else ()
    names = [payload.get("path_name") for payload in payloads if isinstance(payload, dict) and _is_unpickled(payload)]
    return {posixpath.join(folder, name) for name in names if isinstance(name, str) for folder in _PAYLOADS}


def _is_unpickled(payload: dict[str, Any]) -> bool:
    return payload.get("use_pickle") is not False or str(payload.get("path_name")).startswith(_OBJECTS)


def _check_content(archive: Archive, info: zipfile.ZipInfo, *, loaded: bool, nesting: int) -> None:
    """``loaded``: torch unpickles this entry, so it has to be a pickle we can vouch for. Any other must not be a
    pickle that does harm, whatever it is called: raw weights never parse as one."""
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
    if walk.strange_opcodes:
        opcode = walk.strange_opcodes[0]
        raise EngineError("invalid-model", f"{where} uses the pickle opcode {opcode}; save with pickle_protocol=2.")
    if not walk.complete:
        raise EngineError("invalid-model", f"{where} should be a pickle, but it is damaged.")


def _check_stray_pickle(head: bytes, where: str) -> None:
    """Text may parse as a pickle of protocol 0 by chance (``cat``, ``dog`` on two lines), so there only what is
    callable here counts."""
    walk = pickles.walk(head, limit=100_000)
    names = [name for name in walk.names if _DOTTED.fullmatch(name)]
    if pickles.looks_like_pickle(head):
        bad = next((name for name in names if name not in pickles.ALLOWED), None)
    else:
        bad = pickles.Walk(tuple(names), (), complete=False).hostile
    if bad:
        raise _calls(where, bad)


def _calls(where: str, name: str) -> EngineError:
    name = "whatever name it computes" if name == "?" else name
    return EngineError("unsafe-model", f"{where} is a pickle that would call {name} when loaded. Nothing was executed.")


def _compiled(where: str) -> EngineError:
    return EngineError("unsafe-model", f"{where} is compiled code (AOTInductor?). {_EXPORT}")
