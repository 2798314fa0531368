"""What the converting process hands to the verifying one: everything it knows, except the model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fewbit.contract.report import CalibrationReport, Coverage, Finding, LayerReport, Product, SensitivitySummary
from fewbit.contract.resources import InputSignature
from fewbit.runtime.script import Call


class Draft(BaseModel):
    """``rows`` lack only the kernel that ran. ``calls``: by artifact kind, the calls of its layers. ``finite``: whether
    the float output is; ``random``: the operators that draw numbers, so that two calls differ; ``repaired``: the
    weights that were made finite, so that the float program is not the upload."""

    model_config = ConfigDict(frozen=True)

    inputs: tuple[InputSignature, ...]
    rows: tuple[LayerReport, ...]
    products: tuple[Product, ...]
    coverage: Coverage
    findings: tuple[Finding, ...]
    finite: bool
    random: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    sensitivity: SensitivitySummary | None = None
    calibration: CalibrationReport | None = None
    calls: dict[str, tuple[Call, ...]] = {}
    timings_s: dict[str, float] = {}
    peak_memory_bytes: int = 0

    @property
    def artifacts(self) -> tuple[str, ...]:
        return tuple(self.calls)

    def without_rejected(self, kept: Collection[str], findings: tuple[Finding, ...]) -> Draft:
        """The same without the artifacts that are not among ``kept``, and with what is to say of them."""
        calls = {kind: calls for kind, calls in self.calls.items() if kind in kept}
        return self.model_copy(update={"calls": calls, "findings": (*self.findings, *findings)})

    @classmethod
    def read(cls, folder: Path) -> Draft:
        return cls.model_validate_json((folder / "draft.json").read_bytes())

    def write(self, folder: Path) -> None:
        (folder / "draft.json").write_text(self.model_dump_json())
