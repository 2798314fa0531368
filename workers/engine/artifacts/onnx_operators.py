"""Operators that stand for ONNX's: torch runs them, export keeps them whole, and the exporter is told what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_library = torch.library.Library("fewbit", "DEF")  # type: ignore[no-untyped-call]
_library.define("quantize_dequantize(Tensor x, float scale, int zero_point) -> Tensor")  # type: ignore[no-untyped-call]
_library.define("dequantize(Tensor values, Tensor scale, Tensor? zero, int axis, int group_size) -> Tensor")  # type: ignore[no-untyped-call]
_library.define("high_nibbles(Tensor packed) -> Tensor")  # type: ignore[no-untyped-call]


@torch.library.impl(_library, "quantize_dequantize", "CompositeExplicitAutograd")
def _quantize_dequantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)


@torch.library.impl(_library, "dequantize", "CompositeExplicitAutograd")
def _dequantize(values: Tensor, scale: Tensor, zero: Tensor | None, axis: int, group_size: int) -> Tensor:  # noqa: ARG001
    """``scale``: one for each index of ``axis``, or for each group along it. ``zero``: as many zeros, without which the
    runtime does not find its integer Gemm."""
    if group_size:
        return values.to(torch.float32) * scale.repeat_interleave(group_size, axis)
    return values.to(torch.float32) * scale.view([-1 if each == axis else 1 for each in range(values.dim())])


@torch.library.impl(_library, "high_nibbles", "CompositeExplicitAutograd")
def _high_nibbles(packed: Tensor) -> Tensor:
    return packed >> 4


@torch.library.register_fake("fewbit::high_nibbles", lib=_library)  # type: ignore[untyped-decorator]
def _alike(packed: Tensor) -> Tensor:
    return torch.empty_like(packed)


@torch.library.register_fake("fewbit::quantize_dequantize", lib=_library)  # type: ignore[untyped-decorator]
def _like(x: Tensor, scale: float, zero_point: int) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x)


@torch.library.register_fake("fewbit::dequantize", lib=_library)  # type: ignore[untyped-decorator]
def _wide(values: Tensor, scale: Tensor, zero: Tensor | None, axis: int, group_size: int) -> Tensor:  # noqa: ARG001
    return torch.empty_like(values, dtype=torch.float32)


quantize_dequantize = torch.ops.fewbit.quantize_dequantize.default
dequantize = torch.ops.fewbit.dequantize.default
high_nibbles = torch.ops.fewbit.high_nibbles.default


def translations() -> dict[Any, Callable[..., Any]]:
    """What each becomes, for ``torch.onnx.export``."""
    return {
        quantize_dequantize: _onnx_quantize_dequantize(),
        dequantize: _onnx_dequantize(),
        high_nibbles: _onnx_high_nibbles(),
    }


def _opset() -> Any:
    import onnxscript

    return onnxscript.opset21


def _onnx_quantize_dequantize() -> Callable[..., Any]:
    import onnx

    op = _opset()

    def translated(x: Any, scale: float, zero_point: int) -> Any:
        step = op.Constant(value=onnx.numpy_helper.from_array(np.array(scale, np.float32)))
        zero = op.Constant(value=onnx.numpy_helper.from_array(np.array(zero_point, np.uint8)))
        return op.DequantizeLinear(op.QuantizeLinear(x, step, zero), step, zero)

    return translated


def _onnx_dequantize() -> Callable[..., Any]:
    op = _opset()

    def translated(values: Any, scale: Any, zero: Any, axis: int, group_size: int) -> Any:
        return op.DequantizeLinear(values, scale, zero, axis=axis, block_size=group_size)

    return translated


def _onnx_high_nibbles() -> Callable[..., Any]:
    op = _opset()

    def translated(packed: Any) -> Any:
        return op.BitShift(packed, op.CastLike(op.Constant(value_int=4), packed), direction="RIGHT")

    return translated
