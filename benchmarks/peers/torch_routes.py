"""PyTorch's own ways: float eager, torch.ao dynamic and static, torchao."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from benchmarks.peers.route import Route
from benchmarks.peers.source import Array, Inputs, Run, Source


def torch_run(module: nn.Module) -> Run:
    def run(inputs: Inputs) -> Array:
        with torch.no_grad():
            output: Array = module(*inputs).numpy()
        return output

    return run


def _keep_float(source: Source, folder: Path) -> str:
    torch.save(source.module.state_dict(), folder / "float.state")
    return ""


def _load_float(source: Source, _folder: Path) -> Run:
    return torch_run(source.module)


def _ao_dynamic_of(source: Source) -> nn.Module:
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    layers = {nn.Linear: per_channel_dynamic_qconfig}
    module: nn.Module = quantize_dynamic(copy.deepcopy(source.module), layers, torch.qint8)  # type: ignore[no-untyped-call]
    return module


def _save_ao_dynamic(source: Source, folder: Path) -> str:
    torch.save(_ao_dynamic_of(source).state_dict(), folder / AO_DYNAMIC.file)
    return ""


def _load_ao_dynamic(source: Source, folder: Path) -> Run:
    module = _ao_dynamic_of(source)
    module.load_state_dict(torch.load(folder / AO_DYNAMIC.file, weights_only=False))
    return torch_run(module)


def _torchao_of(source: Source) -> nn.Module:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    module = copy.deepcopy(source.module)
    quantize_(module, Int8DynamicActivationInt8WeightConfig())
    return module


def _save_torchao(source: Source, folder: Path) -> str:
    torch.save(_torchao_of(source).state_dict(), folder / TORCHAO.file)
    return "not compiled"


def _load_torchao(source: Source, _folder: Path) -> Run:
    return torch_run(_torchao_of(source))


def _save_ao_static(source: Source, folder: Path) -> str:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    example = next(source.calibration_batches())
    prepared = prepare_fx(copy.deepcopy(source.module), get_default_qconfig_mapping("x86"), example)
    with torch.no_grad():
        for inputs in source.calibration_batches():
            prepared(*inputs)
        traced = torch.jit.trace(convert_fx(prepared), example).eval()  # type: ignore[no-untyped-call]
    torch.jit.freeze(traced).save(folder / AO_STATIC.file)
    return ""


def _load_ao_static(_source: Source, folder: Path) -> Run:
    return torch_run(torch.jit.load(folder / AO_STATIC.file))  # type: ignore[no-untyped-call]


FLOAT = Route("float torch eager", "float.state", _keep_float, _load_float)
AO_DYNAMIC = Route("torch.ao dynamic, per-channel", "ao-dynamic.state", _save_ao_dynamic, _load_ao_dynamic)
AO_STATIC = Route("torch.ao FX static, x86", "ao-static.pt", _save_ao_static, _load_ao_static)
TORCHAO = Route("torchao int8 dynamic", "torchao.state", _save_torchao, _load_torchao)
