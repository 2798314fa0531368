"""The lines around an integer product: rows scaled before it, scale and bias put on after it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fewbit.runtime.kernels import TINY
from fewbit.runtime.program import dtype_of, rank
from fewbit.runtime.record import LayerRecord, PerToken
from fewbit.runtime.source import Source

WIDE = 8_000_000  # float32 values: just below glibc's largest threshold, 32 MB


@dataclass(frozen=True)
class Layer:
    """A layer call with the nodes its record names."""

    record: LayerRecord
    node: fx.Node
    input: fx.Node
    bias: fx.Node | None


def prepared(layer: Layer, x: str) -> str:
    if dtype_of(layer.input) is not torch.float32:
        x = f"{x}.to(torch.float32)"
    if layer.record.left:
        x = f"{x}.transpose(-1, -2)"
    return f"{x}.unsqueeze(0)" if rank(layer.input) == 1 else x


def normalized(source: Source, layer: Layer, scheme: PerToken) -> tuple[str, str]:
    """The rows, and what they were divided by; layers that share an input (q, k, v) share this too. Largest and
    smallest are two passes but no temporary: abs() would take another block of the input's size from the system."""

    def write(name: str) -> None:
        source.line(f"{name} = {prepared(layer, source.name(layer.input))}")
        low, high = f"torch.amin({name}, [-1], True)", f"torch.amax({name}, [-1], True)"
        if scheme.range == "affine":
            source.line(f"{name}_low = {low}")
        extent = {
            "symmetric": f"torch.maximum({high}, torch.neg({low}))",
            "nonnegative": high,
            "affine": f"torch.sub({high}, {name}_low)",
        }[scheme.range]
        source.line(f"{name}_scale = torch.clamp_min({extent}, {TINY!r})")
        source.once("heap", lambda heap: _widen_heap(source, heap, f"{name}_scale"), "rows")
        if scheme.range == "affine":
            source.line(f"{name} = torch.addcdiv(torch.neg({name}_low / {name}_scale), {name}, {name}_scale)")
        else:
            source.line(f"{name} = torch.div({name}, {name}_scale)")

    name = source.once((layer.input, layer.record.left, scheme), write, "rows")
    return name, f"{name}_scale"


def _widen_heap(source: Source, heap: str, scale: str) -> None:
    """Keep a copy of ``scale`` in a block of 32 MB, most of which is never touched.

    glibc takes blocks beyond a threshold from the system, page by page, each time; freeing a large one raises the
    threshold, to 32 MB at most. Without this, a 6 x 384 BERT alone in its process spent 24 ms instead of 13 on a batch
    of 8 x 64, and 217 instead of 137 on 32 x 128: 80,000 page faults a call.
    """
    source.line(f"{heap} = torch.empty([{WIDE} + {scale}.numel()])")
    source.line(f"{scale} = {heap}[:{scale}.numel()].view({scale}.size()).copy_({scale})")


def finish(source: Source, layer: Layer, name: str, product: str, scale: str | None) -> None:
    """``name = scale * product (+ bias)`` in the layer's own dtype, in the product's own memory where it is of its own:
    a second block of its size costs more than the arithmetic."""
    record, bias = layer.record, layer.bias
    source.line(f"{name} = {product}")
    plain = record.alpha == 1 and record.beta == 1 and not record.left
    if scale and bias is not None and plain and _is_vector(bias):
        source.line(f"{name} = torch.addcmul({source.name(bias)}, {name}, {scale}, out={name})")
    elif scale:
        source.line(f"{name} = {name}.mul_({scale})")
    if record.left:
        source.line(f"{name} = {name}.transpose(-1, -2)")
    if record.alpha != 1:
        source.line(f"{name} = {name}.mul_({record.alpha!r})")
    if bias is not None and not (scale and plain and _is_vector(bias)):
        source.line(f"{name} = torch.add({name}, {source.name(bias)}, alpha={record.beta!r})")
    if dtype_of(layer.node) is not torch.float32:
        source.line(f"{name} = {name}.to({dtype_of(layer.node)})")


def _is_vector(bias: fx.Node) -> bool:
    return rank(bias) == 1 and dtype_of(bias) is torch.float32
