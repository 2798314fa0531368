"""The safetensors artifact: integers, scales and zero points by layer name, for those who bring their own kernels.

It holds no program. ``__metadata__["fewbit"]`` is a ``Manifest``: which tensors make which weight of which layer, and
the digest of the float weight they stand for, by which a reader can tell that it reads them right. What was not
quantized is there under its own name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fewbit.runtime.program import Program
from fewbit.runtime.record import LayerRecord, WeightRecord
from fewbit.runtime.script import Call
from workers.engine.quantization.reference import Reference

METADATA = "fewbit"


class Described(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredWeight(Described):
    """``weight = (values - zero_point) * scale``, where ``scale`` has as many axes as ``values``, of size 1 where it is
    shared; per group, ``axis`` has one scale for ``group_size`` neighbours. ``values``, ``scale``, ``zero_point`` name
    tensors. ``packed``: uint8 of two int4 values a byte, each plus 8: of the last axis, the first half in the low bits.
    ``transposed``: the model's own parameter is the transpose. ``sha256``: of ``weight`` in ``float_dtype``, row by
    row, little-endian."""

    values: str
    scale: str
    zero_point: str
    dtype: Literal["int8", "int4"]
    granularity: Literal["per_channel", "per_tensor", "per_group"]
    axis: int | None
    group_size: int | None
    packed: bool
    transposed: bool
    shape: tuple[int, ...]
    float_dtype: str
    sha256: str


class StoredLayer(Described):
    """``activations``: how the job multiplied them; null where only the weights are integers."""

    kind: str
    weights: tuple[StoredWeight, ...]
    activations: Literal["dynamic", "static"] | None


class Manifest(Described):
    """``floats``: the tensors that are what they were."""

    version: Literal[1] = 1
    layers: dict[str, StoredLayer]
    floats: tuple[str, ...]


def save_safetensors(reference: Reference, path: Path) -> tuple[Call, ...]:
    """Write ``path``. No program, so no calls."""
    from safetensors.torch import save_file

    held = dict(_held(reference.program))
    tensors: dict[str, Tensor] = {}
    names: dict[str, str] = {}  # of the tensors, by the buffer they come from: tied weights are stored once
    layers = {}
    for layer in reference.record.layers:
        if layer.name not in layers:
            weights = tuple(_store(reference, layer, index, tensors, names) for index in range(len(layer.weights)))
            layers[layer.name] = StoredLayer(kind=layer.kind, weights=weights, activations=_activations(layer))
    records = [weight for layer in reference.record.layers for weight in layer.weights]
    integers = {name for weight in records for name in (weight.values, weight.scale)}
    floats = {name: value.detach().clone().contiguous() for name, value in held.items() if name not in integers}
    manifest = Manifest(layers=layers, floats=tuple(floats))
    save_file(tensors | floats, path, {"format": "pt", METADATA: manifest.model_dump_json()})
    _sort_header(path)
    return ()


def _sort_header(path: Path) -> None:
    """``save_file`` writes the metadata in a random order (safetensors 0.8): the same job gives the same bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(content) <= size, "the data would move"
        file.seek(8)
        file.write(content.ljust(size))


def check_safetensors(path: Path) -> None:
    """Rebuild every weight from the file alone. Raises ``ValueError`` naming the layer whose weight is not the one the
    engine computed."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        manifest = Manifest.model_validate_json(file.metadata()[METADATA])
        for name, layer in manifest.layers.items():
            for stored in layer.weights:
                tensors = map(file.get_tensor, (stored.values, stored.scale, stored.zero_point))
                weight = dequantize(stored, *tensors).to(getattr(torch, stored.float_dtype))
                if tuple(weight.shape) != stored.shape or _digest(weight) != stored.sha256:
                    raise ValueError(f"{name}: {stored.values!r} and {stored.scale!r} do not give the weight computed")
        for name in manifest.floats:
            file.get_slice(name)


def dequantize(stored: StoredWeight, values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The weight in float32, of ``stored.shape``."""
    if stored.packed:
        values = torch.cat([values & 15, values >> 4], dim=-1).to(torch.int8) - 8
    if stored.axis is not None and stored.group_size is not None:
        scale = scale.repeat_interleave(stored.group_size, stored.axis)
        zero_point = zero_point.repeat_interleave(stored.group_size, stored.axis)
    return (values.to(torch.float32) - zero_point.to(torch.float32)) * scale


def _store(
    reference: Reference, layer: LayerRecord, index: int, tensors: dict[str, Tensor], names: dict[str, str]
) -> StoredWeight:
    record, held = layer.weights[index], dict(_held(reference.program))
    values, scale = held[record.values], held[record.scale]
    if record.values not in names:
        name = f"{layer.name}.weight".lstrip(".") if len(layer.weights) == 1 else f"{layer.name}.weight_{index}"
        names[record.values] = name
        tensors |= {name: values, f"{name}.scale": scale, f"{name}.zero_point": torch.zeros_like(scale).to(torch.int8)}
    name = names[record.values]
    stored = StoredWeight(
        values=name,
        scale=f"{name}.scale",
        zero_point=f"{name}.zero_point",
        dtype=record.dtype,
        granularity=record.granularity,
        axis=_group_axis(record, values, scale),
        group_size=record.group_size,
        packed=record.packed,
        transposed=record.transposed,
        shape=_shape(record, values),
        float_dtype="float32",
        sha256="",
    )
    weight = _of_reference(reference.program, record)
    if weight is None:
        weight = dequantize(stored, values, scale, torch.zeros_like(scale))
    float_dtype = str(weight.dtype).removeprefix("torch.")
    return stored.model_copy(update={"float_dtype": float_dtype, "sha256": _digest(weight)})


def _of_reference(program: Program, record: WeightRecord) -> Tensor | None:
    """The operand as the reference computes it; None where it gathers rows and never has the whole."""
    operand = next((node for node in program.graph.nodes if node.name == record.operand), None)
    weight = replace(program, folded={}).constant(operand)  # its own cache: the floats are not kept
    return weight.t() if weight is not None and record.transposed else weight


def _held(program: Program) -> Iterator[tuple[str, Tensor]]:
    held: Mapping[str, Any] = program.exported.constants | program.exported.state_dict
    return ((name, value) for name, value in held.items() if isinstance(value, Tensor))


def _shape(record: WeightRecord, values: Tensor) -> tuple[int, ...]:
    *rest, last = values.shape
    return (*rest, last * 2 if record.packed else last)


def _group_axis(record: WeightRecord, values: Tensor, scale: Tensor) -> int | None:
    if record.group_size is None:
        return None
    sizes = zip(_shape(record, values), scale.shape, strict=True)
    return next(axis for axis, (size, groups) in enumerate(sizes) if groups * record.group_size == size)


def _activations(layer: LayerRecord) -> Literal["dynamic", "static"] | None:
    if layer.compute == "float":
        return None
    return "static" if layer.quantized_input is not None else "dynamic"


def _digest(weight: Tensor) -> str:
    content = weight.detach().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(content.data).hexdigest()
