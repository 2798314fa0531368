"""What the engine is asked to do: one file, ``task.json``, in the folder it works in."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fewbit.contract.report import ReportModel
from fewbit.contract.resources import InputSignature, ModelFormat, ModelLayer
from fewbit.contract.spec import JobSpec
from workers.errors import EngineError

FLOAT_PROGRAM = "float.pt2"  # in the folder: the float model as a program, if the upload is not one


class Task(BaseModel):
    """One job. File names are relative to the folder; ``model_size`` is in bytes."""

    model_config = ConfigDict(frozen=True)

    job: str
    model: ReportModel
    model_file: str = "model"
    model_size: int
    spec: JobSpec
    calibration: str | None = None
    evaluation: str | None = None
    threads: int

    @property
    def program_file(self) -> str:
        """The float model as a ``.pt2``."""
        return self.model_file if self.model.format == "pt2" else FLOAT_PROGRAM

    @classmethod
    def read(cls, folder: Path) -> Task:
        """Raises ``EngineError('quantization-failed')`` for an invalid spec: the same job would fail again."""
        try:
            return cls.model_validate_json((folder / "task.json").read_bytes())
        except ValidationError as error:
            in_spec = next((detail for detail in error.errors() if detail["loc"][:1] == ("spec",)), None)
            if in_spec is None:
                raise
            where = "/".join(map(str, in_spec["loc"][1:]))
            raise EngineError(
                "quantization-failed", f"The job's spec cannot be used: /{where}: {in_spec['msg']}"
            ) from error

    def write(self, folder: Path) -> None:
        (folder / "task.json").write_text(self.model_dump_json())


class Inspection(BaseModel):
    """What an upload's inspection finds: its format, its forward arguments, its layer table."""

    model_config = ConfigDict(frozen=True)

    format: ModelFormat
    inputs: tuple[InputSignature, ...]
    layers: tuple[ModelLayer, ...]
