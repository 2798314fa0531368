"""The settings of one layer: the job's settings, overridden by the matching rules of ``layers``, in order.

The gateway and the engine share this code, so that the engine can use whatever the gateway accepts.
"""

from __future__ import annotations

from collections.abc import Iterable

from fewbit.contract.spec import Activations, JobSpec, LayerRule, Weights


def weights_for(name: str, spec: JobSpec) -> Weights:
    """The weight settings of the layer of this name. Raises ``pydantic.ValidationError`` as ``weights_under`` does."""
    return weights_under(spec.weights, (rule for rule in spec.layers if rule.matches(name)))


def weights_under(weights: Weights, rules: Iterable[LayerRule]) -> Weights:
    """``weights`` overridden by ``rules``; a group_size is dropped with the granularity it belongs to.

    Raises ``pydantic.ValidationError`` for per_group without a group_size.
    """
    values = weights.model_dump()
    for rule in rules:
        if rule.weights is not None:
            values.update(rule.weights.model_dump(exclude_none=True))
    if values["granularity"] != "per_group":
        values["group_size"] = None
    return Weights.model_validate(values)


def activations_for(name: str, spec: JobSpec) -> Activations:
    """The activation settings of the layer of this name."""
    values = spec.activations.model_dump()
    for rule in spec.layers:
        if rule.activations is not None and rule.matches(name):
            values.update(rule.activations.model_dump(exclude_none=True))
    return Activations.model_validate(values)
