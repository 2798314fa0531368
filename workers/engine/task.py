"""What the engine is asked to do: one file, ``task.json``, in the folder it works in."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fewbit.contract.report import ReportModel
from fewbit.contract.resources import InputSignature, ModelFormat, ModelLayer
from fewbit.contract.spec import JobSpec
from workers.errors import EngineError

FLOAT_PROGRAM = "float.pt2"  # in the folder: the float model as a program, where the upload is none


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
        """Raises ``EngineError('quantization-failed')`` for a spec that is none: the same job would fail again."""
        try:
            return cls.model_validate_json((folder / "task.json").read_bytes())
        except ValidationError as error:
            wrong = next((each for each in error.errors() if each["loc"][:1] == ("spec",)), None)
            if wrong is None:
                raise
            where = "/".join(map(str, wrong["loc"][1:]))
            raise EngineError(
                "quantization-failed", f"The job's spec cannot be used: /{where}: {wrong['msg']}"
            ) from error

    def write(self, folder: Path) -> None:
        (folder / "task.json").write_text(self.model_dump_json())


class Inspection(BaseModel):
    """What one look at an upload tells: its format, its forward arguments, its layer table."""

    model_config = ConfigDict(frozen=True)

    format: ModelFormat
    inputs: tuple[InputSignature, ...]
    layers: tuple[ModelLayer, ...]
