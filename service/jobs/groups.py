"""Rules of ``layers`` that ask for groups of weights: per_group needs a group_size, and a group_size needs per_group.
What one rule leaves out, the job's ``weights`` or another rule may give, so that it shows at the layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from fewbit.contract.layer_settings import weights_under
from fewbit.contract.problems import FieldError
from fewbit.contract.spec import JobSpec, LayerRule, Weights, WeightsOverride

GROUPS = '{"granularity": "per_group", "group_size": 32}'
Numbered = tuple[int, WeightsOverride, LayerRule]


def group_errors(spec: JobSpec, names: Sequence[str]) -> list[FieldError]:
    """One error at most for each rule: what it asks for whatever the model, then at the layers of these ``names``."""
    rules = [*_about_groups(spec)]
    found = dict(_alone(spec, rules))
    for index, error in _at_layers(spec, rules, names) if rules else ():
        found.setdefault(index, error)
    return [found[index] for index in sorted(found)]


def _about_groups(spec: JobSpec) -> Iterator[Numbered]:
    for index, rule in enumerate(spec.layers):
        if rule.weights is not None and (rule.weights.granularity or rule.weights.group_size):
            yield index, rule.weights, rule


def _alone(spec: JobSpec, rules: Sequence[Numbered]) -> Iterator[tuple[int, FieldError]]:
    """What no layer, of whatever name, could make good."""
    given: list[Weights | WeightsOverride] = [spec.weights, *(weights for _, weights, _ in rules)]
    grouped = any(weights.granularity == "per_group" for weights in given)
    sized = any(weights.group_size for weights in given)
    for index, weights, _ in rules:
        if weights.granularity == "per_group" and not sized:
            yield from _needed(spec, index, "the job gives none")
        elif weights.group_size and weights.granularity not in (None, "per_group"):
            yield _unused(spec, index, f"it goes with granularity per_group, and this rule says {weights.granularity}")
        elif weights.group_size and not grouped:
            yield _unused(spec, index, "the job asks for per_group nowhere")


def _at_layers(spec: JobSpec, rules: Sequence[Numbered], names: Sequence[str]) -> Iterator[tuple[int, FieldError]]:
    idle: dict[int, bool] = {}
    for name in names:
        laid = [rule for rule in rules if rule[2].matches(name)]
        try:
            granularity = weights_under(spec.weights, (rule for _, _, rule in laid)).granularity
        except ValidationError:
            granularity = "per_group"
            index = max(index for index, weights, _ in laid if weights.granularity == "per_group")
            yield from _needed(spec, index, f"layer {name!r} gets none")
        so_far = spec.weights.granularity
        for index, weights, _ in laid:
            so_far = weights.granularity or so_far
            if weights.group_size:  # a later rule may turn to per_group, and one that turns away from it is no mistake
                idle[index] = idle.get(index, True) and "per_group" not in (so_far, granularity)
    for index in (index for index, is_idle in idle.items() if is_idle):
        yield _unused(spec, index, f"no layer that {spec.layers[index].match!r} matches is quantized per_group")


def _needed(spec: JobSpec, index: int, why: str) -> Iterator[tuple[int, FieldError]]:
    """Where the method cannot group at all, ``support`` has said so."""
    if not _integers(spec):
        message = f"granularity per_group needs a group_size, and {why}. Write {GROUPS}, or leave granularity out."
        yield index, _error(index, "group-size-needed", message)


def _unused(spec: JobSpec, index: int, why: str) -> tuple[int, FieldError]:
    remedy = "Leave it out." if _integers(spec) else f"Write {GROUPS}, or leave it out."
    return index, _error(index, "group-size-unused", f"group_size changes nothing: {why}. {remedy}")


def _integers(spec: JobSpec) -> bool:
    return spec.method in ("dynamic", "static")


def _error(index: int, code: str, message: str) -> FieldError:
    where = f"/layers/{index}/weights"
    return FieldError(pointer=where, code=code, message=f"{where}: {message}")
