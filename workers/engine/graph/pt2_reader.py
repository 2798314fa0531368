"""Reading a ``.pt2`` as torch does, in a third of the time: for the engine's processes, whose Python has one thread.

Three of torch's functions find a few dozen answers thousands of times over. While a file is read, others stand in their
place that remember: they give what torch's give, and hand over to them whatever they do not know.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

import torch
from torch.export import ExportedProgram

from workers.engine.graph.torch_internals import CPU, Union, fake_tensor, schema, serialize, union_tag

Build = Callable[[Any], Any]

_graphs: Any = serialize.GraphModuleDeserializer
_torchs_class: Any = serialize._resolve_schema_cls
_torchs_build: Any = serialize._dict_to_dataclass
_torchs_size, _torchs_tensor = _graphs.deserialize_sym_int, _graphs.deserialize_tensor_meta


def read_exported(file: IO[bytes]) -> ExportedProgram:
    """``torch.export.load``: raises what it raises."""
    with fast_reading():
        return torch.export.load(file)


def read_exported_file(path: Path) -> ExportedProgram:
    """The same of a file, whatever its name ends in: torch warns of a path that does not end in ``.pt2``."""
    with path.open("rb") as file:
        return read_exported(file)


@contextmanager
def fast_reading() -> Iterator[None]:
    """While this is open, ``torch.export.load`` remembers."""
    with (
        patch.object(serialize, "_dict_to_dataclass", lambda kind, data: _builder(kind)(data)),
        patch.object(_graphs, "deserialize_sym_int", _size),
        patch.object(_graphs, "deserialize_tensor_meta", _tensor),
    ):
        yield


# --- The file's JSON to the dataclasses of its schema ---


@functools.cache
def _builder(kind: Any) -> Build:
    """What makes a ``kind`` of parsed JSON; which it is, is asked once."""
    kind = _torchs_class(kind)
    if typing.get_origin(kind) is typing.Annotated:
        return _builder(kind.__origin__)
    if isinstance(kind, type) and issubclass(kind, Union):
        return functools.partial(_union, kind)
    if dataclasses.is_dataclass(kind):
        return functools.partial(_record, kind)
    if typing.get_origin(kind) is list:
        return functools.partial(_list, kind)
    return functools.partial(_torchs_build, kind)


@functools.cache
def _fields(kind: Any) -> dict[str, Build]:
    """Not asked for while a builder is made: the schema's classes hold one another."""
    hints = typing.get_type_hints(kind, globalns=vars(schema))
    return {field.name: _builder(hints[field.name]) for field in dataclasses.fields(kind)}


def _union(kind: Any, data: Any) -> Any:
    if not isinstance(data, dict) or len(data) != 1:
        return _torchs_build(kind, data)
    name, value = next(iter(data.items()))
    chosen = _fields(kind)[name](value)
    made = kind.__new__(kind)  # as its ``create`` makes it, which first gives every other field its None by name
    made.__dict__.update(dict.fromkeys(_fields(kind)), **{name: chosen})
    made._type = union_tag(name, kind)
    return made


def _record(kind: Any, data: Any) -> Any:
    return kind(**{name: build(data[name]) for name, build in _fields(kind).items() if name in data})


def _list(kind: Any, data: Any) -> Any:
    build = _builder(typing.get_args(kind)[0])
    return [build(item) for item in data] if isinstance(data, list) else _torchs_build(kind, data)


# --- What a value's metadata says of it ---


def _size(reader: Any, size: Any) -> Any:
    """An expression is parsed once: the same text is the same symbol all over the file."""
    value = size.value
    if size.type != "as_expr":
        return _torchs_size(reader, size)
    known: dict[str, Any] = reader.__dict__.setdefault("fewbit_sizes", {})
    text = f"{value.expr_str} {value.hint}"
    if text not in known:
        known[text] = _torchs_size(reader, size)
    return known[text]


def _tensor(reader: Any, meta: Any) -> Any:
    if serialize.deserialize_device(meta.device) != CPU:
        return _torchs_tensor(reader, meta)
    sizes, strides = (tuple(_size(reader, size) for size in given) for given in (meta.sizes, meta.strides))
    dtype = serialize._SERIALIZE_TO_TORCH_DTYPE[meta.dtype]
    return fake_tensor(reader.fake_tensor_mode, sizes, strides, dtype, meta.requires_grad)
