"""Transformers folders: safetensors headers and configs that lie."""

from __future__ import annotations

import json
import struct
from typing import Any

from tests.hostile.case import INVALID, LATE, STARVED, UNSAFE, Build, Case, cases
from tests.workers import packed

_CONFIG = {"architectures": ["BertModel"], "model_type": "bert"}
_SPAN = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
_WEIGHTS = packed.safetensors({"a": _SPAN}, bytes(4))


def _folder(config: bytes, weights: bytes) -> Build:
    return lambda folder, _: packed.zipped({"config.json": config, "model.safetensors": weights}, folder / "model")


def _config(**changes: Any) -> Build:
    return _folder(json.dumps(_CONFIG | changes).encode(), _WEIGHTS)


def _raw(header: bytes, data: bytes = bytes(4)) -> Build:
    return _folder(json.dumps(_CONFIG).encode(), struct.pack("<Q", len(header)) + header + data)


def _header(data: bytes = bytes(4), **tensors: Any) -> Build:
    return _raw(json.dumps(tensors).encode(), data)


def _many_tensors() -> bytes:
    return ("{" + ",".join(f'"{number}":{json.dumps(_SPAN)}' for number in range(300_000)) + "}").encode()


_HARMLESS = (INVALID,)
FOLDERS = [
    Case("config: a million layers", "transformers", (INVALID,), _config(num_hidden_layers=1_000_000),
         (INVALID, LATE, STARVED), seconds=5),
    *cases("safetensors", "transformers", (INVALID, UNSAFE), {
        "4 GB header": _folder(json.dumps(_CONFIG).encode(), struct.pack("<Q", 4 << 30) + b"{}"),
        "a header of 2^64 bytes": _folder(json.dumps(_CONFIG).encode(), b"\xff" * 8 + b"{}"),
        "no header": _folder(json.dumps(_CONFIG).encode(), b"\x01"),
        "overlap": _header(a=_SPAN, b=_SPAN),
        "part of another": _header(bytes(8), a=_SPAN | {"shape": [2], "data_offsets": [0, 8]}, b=_SPAN),
        "hole": _header(bytes(12), a=_SPAN, b=_SPAN | {"data_offsets": [8, 12]}),
        "hole in front": _header(bytes(8), a=_SPAN | {"data_offsets": [4, 8]}),
        "bytes behind": _header(bytes(8), a=_SPAN),
        "beyond the end": _header(a=_SPAN | {"shape": [1 << 20], "data_offsets": [0, 4 << 20]}),
        "backwards": _header(a=_SPAN | {"data_offsets": [4, 0]}),
        "negative": _header(a=_SPAN | {"data_offsets": [-4, 0]}),
        "offsets that are no numbers": _header(a=_SPAN | {"data_offsets": ["0", "4"]}),
        "offsets of 2^200": _header(a=_SPAN | {"data_offsets": [0, 1 << 200]}),
        "the same name twice": _raw(f'{{"a": {json.dumps(_SPAN)}, "a": {json.dumps(_SPAN)}}}'.encode()),
        "deep": _raw(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
        "NaN as shape": _raw(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}'),
        "a fraction as shape": _header(a=_SPAN | {"shape": [1.5]}),
        "a negative shape": _header(a=_SPAN | {"shape": [-1]}),
        "a shape of 2^64": _header(a=_SPAN | {"shape": [1 << 32, 1 << 32]}),
        "a shape of other size": _header(a=_SPAN | {"shape": [7]}),
        "a hundred thousand dimensions": _header(a=_SPAN | {"shape": [1] * 100_000}),
        "dtype of its own": _header(a=_SPAN | {"dtype": "posix.system"}),
        "bad UTF-8": _raw(b'{"\xff": 1}'),
        "a list": _raw(b"[1, 2]"),
        "a number": _raw(b"12"),
        "300 000 tensors": _raw(_many_tensors()),
        "metadata that is a tensor": _header(a=_SPAN, __metadata__=_SPAN),
    }, _HARMLESS),
    *cases("config", "transformers", (UNSAFE,), {
        "code": _config(auto_map={"AutoModel": "x.y"}),
        "remote code": _config(trust_remote_code=True),
        "another backbone": _config(use_pretrained_backbone=True),
        "a kernel to fetch": _config(attn_implementation="evil/kernel"),
        "code far inside": _config(text_config={"vision": {"auto_map": {"AutoModel": "x.y"}}}),
    }, _HARMLESS),
    *cases("config", "transformers", (INVALID,), {
        "class by path": _config(architectures=["../../x"]),
        "class that is a function": _config(architectures=["AutoModel.from_pretrained"]),
        "type by path": _config(model_type="../../etc"),
        "deep": _folder(b'{"a":' * 50_000 + b"1" + b"}" * 50_000, _WEIGHTS),
        "the same key twice": _folder(b'{"model_type": "bert", ' + json.dumps(_CONFIG).encode()[1:], _WEIGHTS),
        "NaN": _folder(b'{"architectures": ["BertModel"], "model_type": "bert", "hidden_size": NaN}', _WEIGHTS),
    }, _HARMLESS),
]  # fmt: skip
