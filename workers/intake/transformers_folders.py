"""A Transformers folder in a zip or tar archive: checks it, and extracts the few files that are needed.

    config.json                      names the architecture; values that make a loader fetch or run code are refused
    model*.safetensors               raw numbers behind a JSON header, which is checked against the file
    model.safetensors.index.json     which shard holds which tensor

Everything else, such as tokenizers and the readme, is skipped and never written to disk. The folder may be the top of
the archive or one folder below it.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from workers.errors import EngineError
from workers.intake.tar_archives import is_tar, tar_entries
from workers.intake.zip_archives import Archive, open_archive

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_PICKLES = re.compile(r"\.(bin|pt|pth|pkl|pickle|ckpt)$", re.IGNORECASE)
_MAX_CONFIG, _MAX_INDEX, _MAX_HEADER = 1 << 20, 64 << 20, 16 << 20  # a hundred bytes a tensor is usual
_MAX_DEPTH = 50
_LAYERS, _MOST_LAYERS = re.compile(r"(^|_)(n_)?(layers?|depth)$"), 5000
_CHUNK = 1 << 20
_MOST_DIMENSIONS = 64  # torch's own limit
_BITS = {  # the dtypes of safetensors 0.8 that take whole bytes
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z]\w{0,200}")
_MODEL_TYPE = re.compile(r"[A-Za-z0-9][\w.-]{0,100}")
_SAVE = "Save it with model.save_pretrained('folder', safe_serialization=True) and pack that folder."

# Keys of a config that make a loader run or fetch something.
_CODE = frozenset({"auto_map", "custom_pipelines", "trust_remote_code", "custom_object_module"})
_FETCHED = frozenset({"use_pretrained_backbone", "transformers_weights", "adapter_kwargs", "gguf_file"})
_QUANTIZED = frozenset({"quantization_config", "compression_config"})
_DTYPES = frozenset({"float32", "float16", "bfloat16", "float64"})


class Content(Protocol):
    """An entry's content, read forward."""

    def read(self, size: int, /) -> bytes: ...


Entry = tuple[str, int, Content]


@dataclass
class FolderContents:
    """What one pass over an archive found. Configs and weights are keyed by their folder: ``""`` or ``"name/"``."""

    names: list[str] = field(default_factory=list)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, list[str]] = field(default_factory=dict)


def scan_folder(entries: Iterable[Entry]) -> None:
    """Check that these entries of an archive are a Transformers folder that may be extracted and loaded.

    Raises ``EngineError('unsafe-model')`` for one that holds code, ``'invalid-model'`` for one that lacks something.
    """
    contents = FolderContents()
    with _damage_as_error():
        for name, size, content in entries:
            _record(contents, name, size, content)
    root = _root(contents)
    _check_config(contents.configs[root])
    if not contents.weights.get(root):
        raise _without_weights(contents)


def extract(path: Path, target: Path) -> Path:
    """Write the needed files of a scanned archive to ``target``, and no others. Returns the folder they are in."""
    with _damage_as_error(), path.open("rb") as file:
        entries = tar_entries(path) if is_tar(file.read(512)) else zip_entries(open_archive(file, "the upload"))
        for name, _, content in entries:
            folder, _, plain = name.rpartition("/")
            if "/" not in folder and _is_needed(plain):
                _write(target / folder / plain, content)
    return next(path.parent for path in (target / CONFIG, *target.glob(f"*/{CONFIG}")) if path.exists())


def is_folder(names: list[str]) -> bool:
    """Whether these entries of an archive look like a Transformers folder."""
    return any(name.rpartition("/")[2] == CONFIG and name.count("/") < 2 for name in names)


def zip_entries(archive: Archive) -> Iterator[Entry]:
    """Like ``tar_entries``, for a zip archive whose structure has been checked."""
    for info in archive.entries:
        with archive.zip.open(info) as content:
            yield info.filename, info.file_size, content


@contextmanager
def _damage_as_error() -> Iterator[None]:
    """``zipfile`` compares a checksum when the entry's last byte is read."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise EngineError("invalid-model", f"The upload is a damaged zip archive: {error}.") from error


def _is_needed(name: str) -> bool:
    return name in (CONFIG, INDEX) or WEIGHTS.fullmatch(name) is not None


def _record(contents: FolderContents, name: str, size: int, content: Content) -> None:
    contents.names.append(name)
    folder, slash, file = name.rpartition("/")
    root = folder + slash
    if root.count("/") > 1 or not _is_needed(file):
        return
    if file == CONFIG:
        contents.configs[root] = _json(name, content, size, _MAX_CONFIG)
    elif file == INDEX:
        _check_index(name, _json(name, content, size, _MAX_INDEX))
    else:
        _check_safetensors(name, size, content)
        contents.weights.setdefault(root, []).append(file)


def _root(contents: FolderContents) -> str:
    if len(contents.configs) != 1:
        found = "no config.json" if not contents.configs else f"{len(contents.configs)} config.json files"
        raise EngineError("invalid-model", f"The upload is an archive with {found}, not a Transformers folder. {_SAVE}")
    return next(iter(contents.configs))


def _without_weights(contents: FolderContents) -> EngineError:
    pickle = next((name for name in contents.names if _PICKLES.search(name)), None)
    if pickle is not None:
        return EngineError(
            "unsafe-model",
            f"The folder's weights are a pickle, {pickle}, which can run code when loaded. {_SAVE}",
        )
    return EngineError("invalid-model", f"The folder has a config.json but no model.safetensors. {_SAVE}")


# --- config.json ------------------------------------------------------------------------------------------------------


def _json(name: str, content: Content, size: int, limit: int) -> dict[str, Any]:
    if size > limit:
        raise EngineError("invalid-model", f"{name} has {size} bytes; at most {limit} are read.")
    try:
        document = json.loads(_exactly(content, size), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise EngineError("invalid-model", f"{name} is not readable JSON: {error}.") from error
    if not isinstance(document, dict):
        raise EngineError("invalid-model", f"{name} is not a JSON object.")
    return document


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers disagree on which of two equal keys counts."""
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key is there twice")
    return document


def _check_config(config: dict[str, Any]) -> None:
    for key, value in _fields(config, 0):
        _check_field(key, value)
    architectures, model_type = config.get("architectures"), config.get("model_type")
    if not isinstance(architectures, list) or not architectures or not _matches(_NAME, architectures[0]):
        raise EngineError(
            "invalid-model",
            'config.json does not name the class of the model: "architectures": ["BertModel"]. ' + _SAVE,
        )
    if not _matches(_MODEL_TYPE, model_type):
        raise EngineError("invalid-model", f"config.json has no model_type. {_SAVE}")


def _check_field(key: str, value: Any) -> None:
    if _LAYERS.search(key) and isinstance(value, int) and value > _MOST_LAYERS:
        raise EngineError("invalid-model", f"config.json has {key} {value}; at most {_MOST_LAYERS} are taken.")
    if key in _CODE and value:
        raise EngineError(
            "unsafe-model",
            f"config.json has {key}: the model needs code from the upload, which is never run. Export it where that "
            "code is: torch.export.save(torch.export.export(model.eval(), (example_input,)), 'model.pt2').",
        )
    if key in _FETCHED and value:
        raise EngineError("unsafe-model", f"config.json has {key}, which fetches weights that are not in the upload.")
    if key in _QUANTIZED and value:
        raise EngineError(
            "invalid-model", f"config.json has {key}: the model is quantized already. Upload the float one."
        )
    if key in ("dtype", "torch_dtype") and value is not None and value not in _DTYPES:
        raise EngineError(
            "invalid-model", f"config.json has {key} {str(value)[:40]!r}; take {', '.join(sorted(_DTYPES))}."
        )
    if "attn_implementation" in key and isinstance(value, str) and "/" in value:
        raise EngineError("unsafe-model", f"config.json has {key} {value[:100]!r}, which fetches a kernel.")


def _fields(value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Every key and value at any depth."""
    if depth > _MAX_DEPTH:
        raise EngineError("invalid-model", f"config.json is nested deeper than {_MAX_DEPTH} levels.")
    if isinstance(value, dict):
        yield from value.items()
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _fields(child, depth + 1)


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _check_index(name: str, index: dict[str, Any]) -> None:
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not all(_matches(WEIGHTS, shard) for shard in shards.values()):
        raise EngineError(
            "unsafe-model", f"{name} does not map tensors to files like model-00001-of-00002.safetensors."
        )


# --- safetensors ------------------------------------------------------------------------------------------------------


def _check_safetensors(name: str, size: int, content: Content) -> None:
    """Eight bytes say how long the JSON header is; its tensors fill the rest of the file without a gap."""
    head = content.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= length <= min(_MAX_HEADER, size - 8):
        raise EngineError("invalid-model", f"{name} is no safetensors file: its header would have {length} bytes.")
    header = _json(name, content, length, _MAX_HEADER)
    header.pop("__metadata__", None)
    end = 0
    for start, stop in sorted(_span(name, tensor, value) for tensor, value in header.items()):
        if start != end:
            raise EngineError("unsafe-model", f"{name} has tensors that overlap or leave gaps.")
        end = stop
    if 8 + length + end != size:
        raise EngineError("invalid-model", f"{name} has {size} bytes; its header tells of {8 + length + end}.")


def _span(file: str, tensor: str, value: Any) -> tuple[int, int]:
    """Where a tensor begins and ends, which has to be as long as its shape and dtype say."""
    try:
        (start, end), shape, bits = value["data_offsets"], value["shape"], _BITS[value["dtype"]]
        numbers = [start, end, *shape]
    except (KeyError, TypeError, ValueError) as error:
        what = f"{file}: {tensor[:200]!r} has no data_offsets, shape and known dtype."
        raise EngineError("invalid-model", what) from error
    if len(shape) > _MOST_DIMENSIONS or not all(type(number) is int and abs(number) < 1 << 63 for number in numbers):
        raise EngineError("invalid-model", f"{file}: {tensor[:200]!r} has a shape or an offset that is none.")
    if min(numbers) < 0 or end < start:
        raise EngineError("unsafe-model", f"{file}: {tensor[:200]!r} has a negative shape, offset or length.")
    if 8 * (end - start) != bits * math.prod(shape):
        raise EngineError(
            "invalid-model", f"{file}: {tensor[:200]!r} is {end - start} bytes long, but its shape is not."
        )
    return start, end


def _exactly(content: Content, size: int) -> bytes:
    parts: list[bytes] = []
    while size and (data := content.read(min(size, _CHUNK))):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _write(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        while data := content.read(_CHUNK):
            file.write(data)
