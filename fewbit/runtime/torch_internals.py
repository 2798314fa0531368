"""What the runtime needs of torch that torch does not promise to keep, all of it here.

``tests/fewbit/test_torch_internals.py`` says of every one what it has to do: run it first with a new release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch.jit._recursive import wrap_cpp_module
from torch.utils import _pytree as pytree

__all__ = ["OpOverload", "enable_python_dispatcher", "pytree"]


# --- Operators and their schemas ---


@dataclass(frozen=True)
class Parameter:
    """One parameter of an operator. ``type`` as the schema writes it, ``Tensor[]`` or ``Optional[Tensor]``."""

    position: int
    type: str
    keyword_only: bool
    default: Any


def is_operator(target: object) -> TypeGuard[OpOverload]:
    """Whether a node's target is one overload of an operator; others are Python functions and control flow."""
    return isinstance(target, OpOverload)


def base_name(operator: OpOverload) -> str:
    """``conv2d`` of ``aten.conv2d.padding``."""
    return str(operator._opname)


def overload_name(operator: OpOverload) -> str:
    """``padding`` of ``aten.conv2d.padding``."""
    return str(operator._overloadname)


@cache
def parameters(operator: OpOverload) -> Mapping[str, Parameter]:
    """By name, in order."""
    return {
        argument.name: Parameter(position, str(argument.type), argument.kwarg_only, argument.default_value)
        for position, argument in enumerate(operator._schema.arguments)
    }


def writes(operator: OpOverload) -> bool:
    """Whether a call changes one of its arguments."""
    return bool(operator._schema.is_mutable)


def gives_view(operator: OpOverload) -> bool:
    """Whether a result may share memory with an argument that the call does not write to."""
    returns = operator._schema.returns
    return any(result.alias_info is not None and not result.alias_info.is_write for result in returns)


def result_count(operator: OpOverload) -> int:
    return len(operator._schema.returns)


def aliases_first(operator: OpOverload) -> bool:
    """Whether the first argument's memory is written to, or is that of a result."""
    return operator._schema.arguments[0].alias_info is not None


# --- TorchScript from source text ---


def new_module(name: str) -> Any:
    """An empty module, without a Python class behind it. It is filled by ``set_constant`` and ``compile_forward``."""
    module: Any = torch._C.ScriptModule
    return module(f"__torch__.fewbit.{name}", torch._C.CompilationUnit(), False)


def set_constant(module: Any, name: str, value: Any) -> None:
    """A tensor, a packed weight, or a list of those."""
    kind = torch._C.TensorType.get() if isinstance(value, Tensor) else torch._C._jit_try_infer_type(value).type()
    module._register_attribute(name, kind, value)


def compile_forward(module: Any, source: str) -> torch.jit.ScriptModule:
    """Raises ``RuntimeError`` when TorchScript refuses the text."""
    concrete = torch._C.ConcreteModuleType.from_jit_type(module._type())
    module._define(concrete, source, torch._jit_internal.createResolutionCallbackFromFrame(0))
    wrap: Any = wrap_cpp_module
    compiled: torch.jit.ScriptModule = wrap(module)
    return compiled


# --- Quantized tensors ---


def per_channel_tensor(values: Tensor, scales: Tensor, zeros: Tensor, axis: int) -> Tensor:
    """A quantized tensor of int8 ``values`` as they are; ``torch.quantize_per_channel`` would round floats to them."""
    return torch._make_per_channel_quantized_tensor(values, scales, zeros, axis)
