"""Mixtures of experts without a loop over data: every expert computes every token, weighted by the router.

A loop over the experts that are hit cannot be exported. A batched product gathers its weights by index, which makes
them activations, and those have no int8 weights. Computed one after the other, each expert's matrices are constants.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NAME = "every_expert"


def compute_all(model: Any) -> None:
    """Let ``model`` compute its experts this way, if it has any that can."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, forward)
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(module, "_apply_gate") and config is not None:
            config._experts_implementation = NAME


def forward(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """[tokens, hidden] -> [tokens, hidden]: the sum over experts of weight times output, as ``eager`` computes it."""
    total = torch.zeros_like(hidden_states)
    for index in range(experts.num_experts):
        weight = torch.where(top_k_index == index, top_k_weights, torch.zeros_like(top_k_weights)).sum(-1, True)
        total = total + (_expert(experts, index, hidden_states) * weight).to(total.dtype)
    return total


def _expert(experts: Any, index: int, x: Tensor) -> Tensor:
    if experts.has_gate:
        x = experts._apply_gate(_linear(experts, "gate_up_proj", index, x))
    else:
        x = experts.act_fn(_linear(experts, "up_proj", index, x))
    x = _linear(experts, "down_proj", index, x)
    return experts.post_expert_norm(x) if experts.has_post_expert_norm else x


def _linear(experts: Any, name: str, index: int, x: Tensor) -> Tensor:
    weight: nn.Parameter = getattr(experts, name)
    bias = getattr(experts, f"{name}_bias")[index] if experts.has_bias else None
    return F.linear(x, weight[index].t() if experts.is_transposed else weight[index], bias)
