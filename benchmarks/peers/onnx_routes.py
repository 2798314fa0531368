"""ONNX Runtime: dynamic and static int8 from the ONNX export of the same model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.route import Route
from benchmarks.peers.source import Array, Inputs, Run, Source
from benchmarks.peers.turns import THREADS


def _load(source: Source, path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> Array:
        output: Array = session.run(None, source.named(inputs))[0]
        return output

    return run


def _quantize_dynamic(_source: Source, folder: Path) -> str:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(folder / "float.onnx", folder / DYNAMIC.file, per_channel=True, weight_type=QuantType.QInt8)
    return "per-tensor activations; embeddings too"


def _quantize_static(source: Source, folder: Path) -> str:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = map(source.named, source.calibration_batches())

        def get_next(self) -> dict[str, Array] | None:
            return next(self.batches, None)

    quant_pre_process(folder / "float.onnx", folder / "prepared.onnx", skip_symbolic_shape=True)
    quantize_static(
        folder / "prepared.onnx",
        folder / STATIC.file,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return "min-max"


def _use_export(_source: Source, _folder: Path) -> str:
    """The export is there already."""
    return ""


def _route(name: str, file: str, quantize: Callable[[Source, Path], str]) -> Route:
    return Route(name, file, quantize, lambda source, folder: _load(source, folder / file))


FLOAT = _route("float ONNX Runtime", "float.onnx", _use_export)
DYNAMIC = _route("ONNX Runtime dynamic, per-channel", "dynamic.onnx", _quantize_dynamic)
STATIC = _route("ONNX Runtime static QDQ, per-channel", "static.onnx", _quantize_static)
