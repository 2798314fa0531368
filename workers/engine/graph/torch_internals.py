"""What the engine needs of torch that torch does not promise to keep, all of it here.

``tests/workers/engine/graph/test_torch_internals.py`` says of every one what it has to do: run it first with a new
release. What the runtime needs too comes from its own module of this name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._export.serde import schema, serialize
from torch._export.serde.schema import SCHEMA_VERSION
from torch._export.serde.union import _Union as Union
from torch._export.serde.union import _UnionTag
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec

from fewbit.runtime.torch_internals import (
    OpOverload,
    aliases_first,
    base_name,
    enable_python_dispatcher,
    gives_view,
    is_operator,
    overload_name,
    parameters,
    pytree,
    result_count,
    writes,
)

__all__ = [
    "SCHEMA_VERSION",
    "FakeTensorMode",
    "OpOverload",
    "TreeSpec",
    "Union",
    "aliases_first",
    "base_name",
    "enable_python_dispatcher",
    "gives_view",
    "is_operator",
    "make_fx",
    "overload_name",
    "parameters",
    "pytree",
    "result_count",
    "schema",
    "serialize",
    "writes",
]

CPU = torch.device("cpu")


def fake_tensor(
    mode: FakeTensorMode, sizes: Sequence[Any], strides: Sequence[Any], dtype: torch.dtype, requires_grad: bool = False
) -> Tensor:
    """A CPU tensor that says what it is and holds nothing, of these sizes and strides, integers or symbols. What
    ``torch.empty_strided`` gives under ``mode``, made at once: a dispatcher takes eight times as long to find it
    out."""
    bare = torch.empty_strided(sizes, strides, dtype=dtype, device="meta", requires_grad=requires_grad)
    return FakeTensor(mode, bare, CPU)


def fake_mode_of(value: object) -> FakeTensorMode | None:
    mode = getattr(value, "fake_mode", None)
    return mode if isinstance(mode, FakeTensorMode) else None


def union_tag(name: str, kind: type) -> Any:
    """What says which field of a serialized union is set."""
    create: Any = _UnionTag.create
    return create(name, kind)


def torchscript_converter() -> Any:
    """``TS2EPConverter``: TorchScript to an exported program. Importing it takes half a second."""
    from torch._export.converter import TS2EPConverter

    return TS2EPConverter
