"""The body of ``POST /jobs``, ``service/jobs/spec.py``: JSON of any kind, and specs with something changed."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from service.http.problems import Refusal
from service.jobs.spec import read_spec
from tests.fuzz import Target

_NAMES = st.sampled_from(
    ("model", "method", "weights", "layers", "range", "clip", "dtype", "match", "labels", "seed", "gates")
)
_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("mdl_a")
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES | st.text(max_size=5), inner, max_size=6),
)
_SPECS = st.dictionaries(_NAMES, _VALUES, max_size=8).map(
    lambda fields: json.dumps({"model": "mdl_a"} | fields).encode()
)

TARGET = Target("job spec", st.binary(max_size=200) | _VALUES.map(lambda spec: json.dumps(spec).encode()) | _SPECS,
                read_spec, (Refusal,))  # fmt: skip
