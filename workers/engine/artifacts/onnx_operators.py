"""Operators that stand for ONNX's: torch runs them, export keeps them whole, and the exporter is told what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_torch_library: Any = torch.library  # its functions have no types
_library = _torch_library.Library("fewbit", "DEF")
_library.define("quantize_dequantize(Tensor x, float scale, int zero_point) -> Tensor")
_library.define("dequantize(Tensor values, Tensor scale, Tensor? zero, int axis, int group_size) -> Tensor")
_library.define("high_nibbles(Tensor packed) -> Tensor")


def _quantize_dequantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)


def _dequantize(values: Tensor, scale: Tensor, zero: Tensor | None, axis: int, group_size: int) -> Tensor:  # noqa: ARG001
    """``scale``: one for each index of ``axis``, or for each group along it. ``zero``: as many zeros, without which the
    runtime does not find its integer Gemm."""
    if group_size:
        return values.to(torch.float32) * scale.repeat_interleave(group_size, axis)
    return values.to(torch.float32) * scale.view([-1 if other == axis else 1 for other in range(values.dim())])


def _high_nibbles(packed: Tensor) -> Tensor:
    return packed >> 4


def _define(name: str, compute: Callable[..., Tensor], dtype: torch.dtype | None = None) -> None:
    """What the operator gives, and what its result looks like: the first argument, in another ``dtype`` if any."""
    _library.impl(name, compute, "CompositeExplicitAutograd")
    register = _torch_library.register_fake(f"fewbit::{name}", lib=_library)
    register(lambda first, *_: torch.empty_like(first, dtype=dtype))


_define("quantize_dequantize", _quantize_dequantize)
_define("dequantize", _dequantize, torch.float32)
_define("high_nibbles", _high_nibbles)

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
