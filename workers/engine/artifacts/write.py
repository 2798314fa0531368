"""Writing the artifacts a job asks for, each from the same reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewbit.contract.report import Finding
from fewbit.contract.spec import JobSpec
from fewbit.runtime.script import Call
from fewbit.runtime.source import NotExpressible
from workers.engine.artifacts.kinds import KINDS
from workers.engine.quantization.reference import Reference
from workers.errors import EngineError


@dataclass(frozen=True)
class Written:
    """``calls``: by the kind of each artifact written, those its layers make."""

    calls: dict[str, tuple[Call, ...]]
    findings: tuple[Finding, ...]


def write_artifacts(reference: Reference, spec: JobSpec, folder: Path) -> Written:
    """Write every kind to ``out/``. A kind that has no form for this program is left out, with a finding.

    Raises ``EngineError('quantization-failed')`` when none of them has.
    """
    (folder / "out").mkdir()
    calls, findings = dict[str, tuple[Call, ...]](), list[Finding]()
    for name in () if spec.method == "analyze" else dict.fromkeys(spec.artifacts):
        kind = KINDS[name]
        try:
            calls[name] = kind.save(reference, folder / "out" / kind.file)
        except NotExpressible as error:
            findings.append(not_written_finding(kind.file, str(error)))
    if findings and not calls:
        raise EngineError("quantization-failed", f"{findings[0].message} {findings[0].remedy}")
    return Written(calls, tuple(findings))


def not_written_finding(file: str, why: str) -> Finding:
    return Finding(
        severity="warning",
        code="artifact-not-written",
        message=f"{file} was not written: {why.rstrip('.')}.",
        remedy="The pt2 artifact has no such limit: ask for `artifacts: ['pt2']`.",
    )
