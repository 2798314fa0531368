"""What the converting process hands to the verifying one: everything it knows, except the model."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fewbit.contract.report import CalibrationReport, Coverage, Finding, LayerReport, Product, SensitivitySummary
from fewbit.contract.resources import InputSignature
from fewbit.runtime.script import Call


class Draft(BaseModel):
    """``rows`` lack only the kernel that ran. ``calls``: by artifact kind, the calls of its layers. ``finite``: whether
    the float output is."""

    model_config = ConfigDict(frozen=True)

    inputs: tuple[InputSignature, ...]
    rows: tuple[LayerReport, ...]
    products: tuple[Product, ...]
    coverage: Coverage
    findings: tuple[Finding, ...]
    finite: bool
    sensitivity: SensitivitySummary | None = None
    calibration: CalibrationReport | None = None
    calls: dict[str, tuple[Call, ...]] = {}
    timings_s: dict[str, float] = {}
    peak_memory_bytes: int = 0

    @property
    def artifacts(self) -> tuple[str, ...]:
        return tuple(self.calls)

    @classmethod
    def read(cls, folder: Path) -> Draft:
        return cls.model_validate_json((folder / "draft.json").read_bytes())

    def write(self, folder: Path) -> None:
        (folder / "draft.json").write_text(self.model_dump_json())
