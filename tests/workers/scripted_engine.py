"""An engine that does as it is told, for what the real one does too rarely: hang, die, lie.

It is the entry of a real fork server, so everything around it is real. The job's label ``deed`` says what to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from fewbit.contract.report import Coverage, LayerCount, Provenance, Report, ReportArtifact, Size
from workers.engine.task import Task
from workers.sandbox.runner import StageRequest

ARTIFACT = b"an artifact of eight layers"


def preload() -> None:
    pass


def main(request: StageRequest, messages: int) -> None:
    """One stage: ``deed`` is ``what`` or ``stage:what``."""
    folder = Path(request["folder"])
    if request["stage"] == "inspect":
        _inspect(folder, messages)
        return
    task = Task.read(folder)
    stage, _, deed = task.spec.labels.get("deed", "").rpartition(":")
    if deed and stage in ("", request["stage"]):
        _DEEDS[deed](folder, messages)
    if request["stage"] == "convert":
        _say(messages, progress=["convert", 0.5], log="converting")
        (folder / "out").mkdir()
        (folder / "out" / "model.ts.pt").write_bytes(ARTIFACT)
    else:
        _say(messages, progress=["verify", 1.0])
        _write_report(task, folder, task.spec.labels.get("lie"))
    _say(messages, done={})


def _inspect(folder: Path, messages: int) -> None:
    content = (folder / "model").read_bytes()
    if content.startswith(b"hang"):
        time.sleep(600)
    if content.startswith(b"die"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if content.startswith(b"bad"):
        _say(messages, problem=["unsafe-model", "it would call os.system"])
        return
    _say(messages, done={"inspection": {"format": "pt2", "inputs": [], "layers": []}})


def _write_report(task: Task, folder: Path, lie: str | None) -> None:
    name, sha256 = "model.ts.pt", hashlib.sha256(ARTIFACT).hexdigest()
    if lie == "digest":
        sha256 = "0" * 64
    if lie == "path":
        name = "../model"
    if lie == "artifact link":
        (folder / "out" / name).unlink()
        (folder / "out" / name).symlink_to("/etc/passwd")
    artifact = ReportArtifact(
        name=name, kind="torchscript", size=len(ARTIFACT), sha256=sha256, verified=True, output=None
    )
    body = _report(task, artifact).model_dump_json()
    if lie == "report link":
        (folder / "elsewhere").write_text(body)
        (folder / "report.json").symlink_to(folder / "elsewhere")
    elif lie == "no report":
        return
    else:
        (folder / "report.json").write_text("{}" if lie == "report" else body)


def _report(task: Task, artifact: ReportArtifact) -> Report:
    return Report(
        job=task.job,
        model=task.model,
        spec=task.spec,
        verdict="pass",
        gates=(),
        coverage=Coverage(
            layers=LayerCount(quantized=0, total=0), parameters=0, bytes=0, macs=0, time=0, reasons={}
        ),
        size=Size(before=task.model_size, after=artifact.size, ratio=0.5),
        accuracy=None,
        latency=None,
        layers=(),
        products=(),
        findings=(),
        artifacts=(artifact,),
        provenance=Provenance(
            fewbit="0", torch="0", torchao=None, numpy="0", python="3", cpu="", isa="", threads=1, seed=0,
            timings_s={}, peak_memory_bytes=1,
        ),
    )  # fmt: skip


def _say(messages: int, **said: object) -> None:
    for kind, value in said.items():
        os.write(messages, json.dumps({kind: value}).encode() + b"\n")


def _sleep(_folder: Path, messages: int) -> None:
    _say(messages, progress=["asleep", 0.0])
    time.sleep(600)


def _nap(folder: Path, messages: int) -> None:
    """Long enough for a restart of Redis."""
    _say(messages, progress=["napping", 0.1])
    time.sleep(float((folder.parent / "nap").read_text()))
    _say(messages, progress=["napping", 0.9])


def _die(number: signal.Signals) -> Callable[[Path, int], None]:
    return lambda _folder, _messages: os.kill(os.getpid(), number)


def _fail(_folder: Path, messages: int) -> None:
    _say(messages, problem=["calibration-failed", "batch 3 does not fit"])
    os._exit(0)


def _say_nothing(_folder: Path, _messages: int) -> None:
    os._exit(0)


def _flood(_folder: Path, messages: int) -> None:
    for step in range(20_000):
        _say(messages, progress=["flood", step / 20_000])


def _babble(_folder: Path, messages: int) -> None:
    """What is no message at all, and messages with nonsense in them."""
    for line in (
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"progress": ["x", 1e999]}',
        b'{"progress": "x"}',
        b'{"problem": ["no", "x"]}',
    ):
        os.write(messages, line + b"\n")
    os.write(messages, b'{"log": "\\ud800 lone"}\n')


def _lock_folder(folder: Path, _messages: int) -> None:
    (folder / "locked").mkdir()
    (folder / "locked" / "file").write_text("x")
    (folder / "locked").chmod(0)


_DEEDS: dict[str, Callable[[Path, int], None]] = {
    "sleep": _sleep,
    "nap": _nap,
    "killed": _die(signal.SIGKILL),
    "crash": _die(signal.SIGSEGV),
    "fail": _fail,
    "nothing": _say_nothing,
    "flood": _flood,
    "babble": _babble,
    "lock": _lock_folder,
}
