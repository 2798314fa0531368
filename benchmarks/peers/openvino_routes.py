"""OpenVINO: NNCF's post-training quantization of the same ONNX export, and of the torch model for its time alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.peers.route import Route
from benchmarks.peers.source import Array, Inputs, Run, Source
from benchmarks.peers.turns import THREADS


def quantize_openvino(source: Source, folder: Path) -> str:
    import nncf
    import openvino

    model = openvino.Core().read_model(folder / "float.onnx")
    batches = list(map(source.named, source.calibration_batches()))
    quantized = nncf.quantize(model, nncf.Dataset(batches), **_options(source, len(batches)))
    openvino.save_model(quantized, folder / NNCF.file)
    return f"floats as {_precision(folder)}"


def quantize_torch(source: Source, folder: Path) -> str:
    """NNCF on the torch program exported at one shape, written as a state dict. It runs float kernels between Q/DQ."""
    import nncf

    program = torch.export.load(folder / "fixed.pt2").module()
    batches = list(source.calibration_batches())
    model: nn.Module = nncf.quantize(program, nncf.Dataset(batches), **_options(source, len(batches)))
    torch.save(model.state_dict(), folder / "nncf.state")
    return ""


def _options(source: Source, batches: int) -> dict[str, object]:
    import nncf

    kind = {"model_type": nncf.ModelType.TRANSFORMER} if source.transformer else {}
    return {"subset_size": batches, **kind}


def _compiled(folder: Path) -> Any:
    import openvino

    hints = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}
    return openvino.Core().compile_model(folder / NNCF.file, "CPU", hints)


def _precision(folder: Path) -> str:
    """OpenVINO runs what stayed float in bfloat16 where the CPU has it: its user's default, and so ours here."""
    return str(_compiled(folder).get_property("INFERENCE_PRECISION_HINT").to_string())


def _load(source: Source, folder: Path) -> Run:
    compiled = _compiled(folder)

    def run(inputs: Inputs) -> Array:
        output: Array = compiled(source.named(inputs))[0]
        return output

    return run


NNCF = Route("OpenVINO static, NNCF", "openvino.xml", quantize_openvino, _load)
