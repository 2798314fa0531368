"""The JSON of an exported program: ``workers/intake/exported_programs.py``."""

from __future__ import annotations

import json
from functools import cache

from hypothesis import strategies as st

from tests.fuzz import Target
from tests.fuzz.bytes_changed import changed
from workers.errors import EngineError
from workers.intake.exported_programs import _CHECKS, check_json

_TELLING = st.sampled_from(["s0", "torch.ops.aten.add.Tensor", "L['x'].size()[0] >= 1", '["a", {"b": 1}]'])
_LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), _TELLING)
_KEYS = st.sampled_from(sorted(_CHECKS)) | st.text(max_size=5)
_DOCUMENTS = st.recursive(_LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4))


@cache
def _seeds() -> list[bytes]:
    graph = {"nodes": [{"target": "torch.ops.aten.add.Tensor", "inputs": [{"name": "self", "arg": {"as_name": "x"}}]}]}
    module = {"graph": graph, "range_constraints": {"s0": {"min_val": 0}}, "guards_code": ["L['x'].size()[0] >= 1"],
              "signature": {"in_spec": '[1, {"type": "builtins.tuple", "context": "null"}]'},
              "expr": {"expr_str": "Symbol('s0', integer=True)"}}  # fmt: skip
    return [json.dumps(module).encode(), json.dumps({"config": {"weight": {"path_name": "weight_0"}}}).encode()]


TARGET = Target(
    "program",
    changed(_seeds) | _DOCUMENTS.map(lambda document: json.dumps(document).encode()),
    lambda data: check_json(data, "models/model.json"),
    (EngineError,),
)
