"""JSON merge patches for the job spec (RFC 7396), which a finding offers to be posted back unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fewbit.contract.report import Finding
from fewbit.contract.spec import JobSpec


def add_rules(spec: JobSpec, *rules: Mapping[str, Any]) -> dict[str, Any]:
    """A patch that adds ``rules``. RFC 7396 replaces whole arrays, so the spec's own rules are repeated in it."""
    return {"layers": [*_own_rules(spec), *rules]}


def leave_float(spec: JobSpec, *names: str) -> dict[str, Any]:
    """A patch that excludes the layers of these names."""
    return add_rules(spec, *({"match": exact_pattern(name), "quantize": False} for name in names))


def exact_pattern(name: str) -> str:
    """The pattern that matches this layer alone: in patterns ``[`` opens a set of characters."""
    return "".join(f"[{character}]" if character in "[*?" else character for character in name) or "*"


def merge_patches(findings: Iterable[Finding], spec: JobSpec) -> dict[str, Any] | None:
    """One patch with what all warnings and errors ask for, rules in order; None when they ask for nothing."""
    patches = [finding.patch for finding in findings if finding.patch and finding.severity != "info"]
    if not patches:
        return None
    already, merged = len(spec.layers), dict[str, Any]()
    rules: list[Any] = _own_rules(spec)
    for patch in patches:
        rules += [rule for rule in patch.get("layers", [])[already:] if rule not in rules]
        merged |= {key: value for key, value in patch.items() if key != "layers"}
    return merged | ({"layers": rules} if len(rules) > already else {})


def _own_rules(spec: JobSpec) -> list[dict[str, Any]]:
    return [rule.model_dump(mode="json", exclude_none=True) for rule in spec.layers]
