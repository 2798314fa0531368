"""The header of safetensors, inside a folder that is sound."""

from __future__ import annotations

import io
import json
from functools import cache

from hypothesis import strategies as st

from tests.fuzz import Target
from tests.fuzz.bytes_changed import changed
from tests.workers.packed import safetensors
from workers.errors import EngineError
from workers.intake.transformers_folders import scan_folder

_CONFIG = json.dumps({"architectures": ["BertModel"], "model_type": "bert"}).encode()
_LEAF = st.one_of(st.none(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8), st.booleans())
_ANY = st.recursive(_LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
_TENSOR = st.fixed_dictionaries({}, optional={"dtype": _ANY, "shape": _ANY, "data_offsets": _ANY})
_HEADERS = st.dictionaries(st.text(max_size=6), _TENSOR | _ANY, max_size=3) | _ANY


@cache
def _seeds() -> list[bytes]:
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    two = {"dtype": "I8", "shape": [1], "data_offsets": [8, 9]}
    return [safetensors({"a": one, "b": two}, bytes(9)), safetensors({"__metadata__": {"x": "y"}, "a": one}, bytes(8))]


def _scan(data: bytes) -> None:
    files = {"config.json": _CONFIG, "model.safetensors": data}
    scan_folder((name, len(content), io.BytesIO(content)) for name, content in files.items())


TARGET = Target(
    "safetensors", changed(_seeds) | _HEADERS.map(lambda header: safetensors(header, bytes(8))), _scan, (EngineError,)
)
