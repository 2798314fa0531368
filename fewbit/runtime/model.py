"""Loading: the portable program, its record, and the kernels of this machine in place of what the record names.

The record says what the job meant; the machine may want it otherwise. A CPU without VNNI sums pairs of u8*s8 products
in int16, which saturate when activations use all eight bits: such a record is taken to seven, over the same ranges.
"""

from __future__ import annotations

import platform
import warnings
import zipfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from torch.export import ExportedProgram

from fewbit.runtime.calling import TENSOR, Signature, signature_of
from fewbit.runtime.kernels import REDUCED_LEVELS, has_vnni
from fewbit.runtime.program import program_of
from fewbit.runtime.record import FILE, LayerRecord, QuantizedValue, Record
from fewbit.runtime.script import script
from fewbit.runtime.source import NotExpressible
from fewbit.runtime.torch_internals import pytree

SEVEN_BITS = 2 * REDUCED_LEVELS + 1  # the largest step of an activation that never saturates


class Model(nn.Module):
    """An int8 model. It is called with the arguments of the float model's ``forward``, nested and named alike, and
    gives what that gave. ``record`` says which layers are quantized, and how, on this machine; ``script`` is the
    TorchScript module on int8 kernels, None where the reference runs instead; ``signature`` how flat inputs become
    the arguments of ``forward``."""

    def __init__(
        self,
        forward: Callable[..., Any],
        record: Record,
        script: torch.jit.ScriptModule | None,
        signature: Signature,
    ) -> None:
        super().__init__()
        self.record = record
        self.script = script
        self.signature = signature
        self._forward = forward

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        with torch.no_grad():
            return self._forward(*arguments, **keywords)


def load(path: str | PathLike[str]) -> Model:
    """The ``.pt2`` of a Fewbit job, on the int8 kernels that torch has for this machine.

    The file is read by ``torch.export.load``, which can run code that a file contains: load only what you trust. The
    kernels are chosen and their weights packed here, so the same file serves every machine. On x86 without VNNI, layers
    that were quantized for it are run with seven bits of activations instead of eight, over the same ranges.

    Where TorchScript has no form for some operator of the program, a ``RuntimeWarning`` names it and the reference
    runs: the same numbers, in float arithmetic, slower than the float model.

    Raises ``FileNotFoundError``, and ``ValueError`` for a file that is no ``.pt2``, that has no record of quantized
    layers, or whose record this version of Fewbit cannot read.
    """
    path = Path(path)
    record, exported = _read(path)
    record = for_this_machine(record)
    try:
        module = script(program_of(exported), record).module
    except NotExpressible as error:
        message = f"{path.name} runs in float arithmetic, not on int8 kernels: {error}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return Model(exported.module(check_guards=False), record, None, signature_of(exported))
    return Model(_called_like(exported, module), record, module, signature_of(exported))


def for_this_machine(record: Record) -> Record:
    """``record``, in seven bits where eight would saturate here."""
    return record if _sums_in_32_bits() else reduced(record)


def reduced(record: Record) -> Record:
    """The same ranges in half the steps: rows divided by their largest magnitude take any number of levels."""
    return record.model_copy(update={
        "layers": tuple(_reduced_rows(layer) for layer in record.layers),
        "values": tuple(_reduced_value(value) for value in record.values),
    })  # fmt: skip


def _reduced_rows(layer: LayerRecord) -> LayerRecord:
    if layer.per_token is None or layer.per_token.levels <= REDUCED_LEVELS:
        return layer
    rows = layer.per_token.model_copy(update={"levels": REDUCED_LEVELS})
    return layer.model_copy(update={"per_token": rows})


def _reduced_value(value: QuantizedValue) -> QuantizedValue:
    steps = value.qmax - value.qmin
    if value.qmax <= SEVEN_BITS:
        return value
    zero_point = round((value.zero_point - value.qmin) * SEVEN_BITS / steps)
    scale = value.scale * steps / SEVEN_BITS
    return value.model_copy(update={"scale": scale, "zero_point": zero_point, "qmin": 0, "qmax": SEVEN_BITS})


def _sums_in_32_bits() -> bool:
    """ARM's kernels widen before they sum; x86 needs VNNI, which only Linux tells of."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    return Path("/proc/cpuinfo").exists() and has_vnni()


def _read(path: Path) -> tuple[Record, ExportedProgram]:
    if not path.exists():
        raise FileNotFoundError(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path.name} is no .pt2 file")
    extra = {FILE: ""}
    exported = torch.export.load(path, extra_files=extra)
    if not extra[FILE]:
        raise ValueError(
            f"{path.name} says nothing of quantized layers ({FILE} is not in it): it was not made by a Fewbit job, or "
            "saved again since. torch.export.load runs it as it is."
        )
    try:
        return Record.model_validate_json(extra[FILE]), exported
    except ValidationError as error:
        raise ValueError(
            f"{path.name} has a record of quantized layers that this version of Fewbit cannot read; "
            f"update Fewbit. {error.errors()[0]['msg']}"
        ) from error


def _called_like(exported: ExportedProgram, module: torch.jit.ScriptModule) -> Callable[..., Any]:
    """The module takes flat tensors; its callers give what the float model's ``forward`` takes."""
    signature = signature_of(exported)
    in_spec = signature.structure

    def forward(*arguments: Any, **keywords: Any) -> Any:
        named = {name: keywords[name] for name in in_spec.child(1).context if name in keywords}
        leaves, spec = pytree.tree_flatten((arguments, named | keywords))
        if spec != in_spec:
            raise TypeError(f"the model was exported with the arguments {in_spec}, and called with {spec}")
        return module(*(leaf for leaf, kind in zip(leaves, signature.leaves, strict=True) if kind is TENSOR))

    return forward
