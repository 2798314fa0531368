"""What the forked child does: shut itself in, look at the upload, call one stage of the engine, say how it went.

It speaks over one pipe, a JSON object a line:
``{"progress": [stage, fraction]}``, ``{"log": message}``, ``{"done": {...}}``, ``{"problem": [slug, detail]}``.
This module imports torch (in its functions only); the Celery process names it and never imports it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypedDict

from workers.engine.task import Task
from workers.errors import EngineError
from workers.intake.scan import scan
from workers.sandbox import fence
from workers.sandbox.limits import Limits

Stage = Literal["inspect", "convert", "verify"]
Say = Callable[[str, Any], None]

_PROGRESS_EVERY_S = 0.1
_FOLDERS = re.compile(r"(?<![\w./-])/(?:[^\s/'\"<>:]+/)+(?=[^\s/'\"<>:])")  # of an absolute path; neither of an address


class Order(TypedDict):
    """What the supervisor asks of one child."""

    stage: Stage
    folder: str
    threads: int
    limits: dict[str, int]
    sandbox: fence.Sandbox


def preload() -> None:
    """In the fork server, once: everything heavy, so that children start with it."""
    from workers.engine import preload as engine

    engine.preload()


def main(order: Order, messages: int) -> None:
    """Run one stage in this process. Whatever happens is said on ``messages``; nothing is raised."""
    with os.fdopen(messages, "wb", buffering=0) as pipe:

        def say(kind: str, value: Any) -> None:
            pipe.write(json.dumps({kind: value}).encode() + b"\n")

        try:
            folder = Path(order["folder"])
            fence.enter(folder, Limits(**order["limits"]), order["sandbox"])
            _set_threads(order["threads"])
            say("done", _STAGES[order["stage"]](folder, say))
        except BaseException as error:
            traceback.print_exc()  # into the worker's log; the answer gets one sentence
            slug, detail = _problem(error)
            say("problem", (slug, detail if slug == "sandbox-violation" else without_folders(detail)))


def _inspect(folder: Path, say: Say) -> dict[str, Any]:
    say("progress", ("scan", 0.0))
    found = scan(folder / "model")
    from workers.engine import formats

    inspection: dict[str, Any] = formats.inspect_upload(folder / "model", found).model_dump(mode="json")
    return {"inspection": inspection}


def _convert(folder: Path, say: Say) -> dict[str, Any]:
    say("progress", ("scan", 0.0))
    task = Task.read(folder)
    _require(task.model.format, scan(folder / task.model_file))
    from workers.engine import pipeline

    pipeline.convert(folder, _progress(say))
    return {}


def _require(recorded: str, found: str) -> None:
    """The engine opens the upload as what it is recorded to be, so that must be what was scanned."""
    if recorded != found:
        raise EngineError("invalid-model", f"The upload is recorded as {recorded}, but it is {found}. Upload it again.")


def _verify(folder: Path, say: Say) -> dict[str, Any]:
    from workers.engine import pipeline

    pipeline.verify(folder, _progress(say))
    return {}


_STAGES: dict[Stage, Callable[[Path, Say], dict[str, Any]]] = {
    "inspect": _inspect,
    "convert": _convert,
    "verify": _verify,
}


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _progress(say: Say) -> Callable[[str, float], None]:
    """The engine's callback: every new stage, and of one stage's fractions ten a second at most."""
    last: tuple[str, float] = ("", 0.0)

    def progress(stage: str, fraction: float) -> None:
        nonlocal last
        now = time.monotonic()
        if stage != last[0] or now - last[1] >= _PROGRESS_EVERY_S or fraction >= 1:
            last = (stage, now)
            say("progress", (stage, min(1.0, max(0.0, float(fraction)))))

    return progress


def _problem(error: BaseException) -> tuple[str, str]:
    path = fence.denied_path(error)
    if path is not None:
        return "sandbox-violation", f"The model tried to use {path}, which is outside its own folder."
    if isinstance(error, OSError) and error.errno in (errno.EFBIG, errno.ENOSPC):
        return "sandbox-violation", "The model wrote more to disk than a job may."
    starved = next((cause for cause in fence.chain(error) if _is_out_of_memory(cause)), None)
    if starved is not None:
        return "out-of-memory", f"The stage ran out of memory: {_one_line(starved)}"
    if isinstance(error, EngineError):
        return error.slug, error.detail
    if any(isinstance(cause, RecursionError) for cause in fence.chain(error)):
        return "invalid-model", "The model is nested deeper than the engine can follow."
    return "internal-error", _one_line(error)


def _is_out_of_memory(error: BaseException) -> bool:
    """Python's own, or torch's allocator's: also where the engine has wrapped it into what it was doing."""
    words = ("not enough memory", "can't allocate memory", "Cannot allocate memory", "std::bad_alloc")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def without_folders(text: str) -> str:
    """``text`` with the last part only of every absolute path: where things lie on this machine is nobody's business.
    A violation's path is the exception; it is the uploader's own."""
    return _FOLDERS.sub("", text)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__


if __name__ == "__main__":
    sys.exit("workers.sandbox.runner is run by the fork server")
