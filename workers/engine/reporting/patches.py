"""JSON merge patches for the job spec (RFC 7396): what a finding offers, to be posted back as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fewbit.contract.report import Finding
from fewbit.contract.spec import JobSpec


def rule(spec: JobSpec, *rules: Mapping[str, Any]) -> dict[str, Any]:
    """A merge patch that adds ``rules``: RFC 7396 replaces arrays whole, so those already there go with it."""
    return {"layers": [*(each.model_dump(mode="json", exclude_none=True) for each in spec.layers), *rules]}


def left_float(spec: JobSpec, *names: str) -> dict[str, Any]:
    return rule(spec, *({"match": exact(name), "quantize": False} for name in names))


def exact(name: str) -> str:
    """The pattern that matches this layer alone: ``[`` means a set of characters."""
    return "".join(f"[{each}]" if each in "[*?" else each for each in name) or "*"


def all_in_one(findings: Iterable[Finding], spec: JobSpec) -> dict[str, Any] | None:
    """What the patches of all warnings and errors ask for, in one: rules added to those already there, in order."""
    patches = [each.patch for each in findings if each.patch and each.severity != "info"]
    if not patches:
        return None
    already, merged = len(spec.layers), dict[str, Any]()
    rules: list[Any] = [each.model_dump(mode="json", exclude_none=True) for each in spec.layers]
    for patch in patches:
        rules += [each for each in patch.get("layers", [])[already:] if each not in rules]
        merged |= {key: value for key, value in patch.items() if key != "layers"}
    return merged | ({"layers": rules} if len(rules) > already else {})
