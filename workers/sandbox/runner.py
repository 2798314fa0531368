"""What a forked child does: enter the fence, scan the upload, run one stage of the engine, send the result.

It writes to one pipe, one JSON object a line:
``{"progress": [stage, fraction]}``, ``{"log": message}``, ``{"done": {...}}``, ``{"problem": [slug, detail]}``.
Its functions import torch, so the Celery process only names this module and never imports it.
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
Send = Callable[[str, Any], None]

_PROGRESS_EVERY_S = 0.1
_FOLDERS = re.compile(r"(?<![\w./-])/(?:[^\s/'\"<>:]+/)+(?=[^\s/'\"<>:])")  # of absolute paths, not of URLs


class StageRequest(TypedDict):
    """What the supervisor asks of one child."""

    stage: Stage
    folder: str
    threads: int
    limits: dict[str, int]
    sandbox: fence.Sandbox


def preload() -> None:
    """Runs once, in the fork server: import everything heavy, so that children start with it."""
    from workers.engine import preload as engine

    engine.preload()


def main(request: StageRequest, messages: int) -> None:
    """Run one stage in this process. The result or the problem goes to ``messages``; nothing is raised."""
    with os.fdopen(messages, "wb", buffering=0) as pipe:

        def send(kind: str, value: Any) -> None:
            pipe.write(json.dumps({kind: value}).encode() + b"\n")

        try:
            folder = Path(request["folder"])
            fence.enter(folder, Limits(**request["limits"]), request["sandbox"])
            _set_threads(request["threads"])
            send("done", _STAGES[request["stage"]](folder, send))
        except BaseException as error:
            traceback.print_exc()  # for the worker's log; the user gets one sentence
            slug, detail = _problem(error)
            send("problem", (slug, detail if slug == "sandbox-violation" else without_folders(detail)))


def _inspect(folder: Path, send: Send) -> dict[str, Any]:
    send("progress", ("scan", 0.0))
    found = scan(folder / "model")
    from workers.engine import formats

    inspection: dict[str, Any] = formats.inspect_upload(folder / "model", found).model_dump(mode="json")
    return {"inspection": inspection}


def _convert(folder: Path, send: Send) -> dict[str, Any]:
    send("progress", ("scan", 0.0))
    task = Task.read(folder)
    _require(task.model.format, scan(folder / task.model_file))
    from workers.engine import pipeline

    pipeline.convert(folder, _progress(send))
    return {}


def _require(recorded: str, found: str) -> None:
    """The engine opens the upload as the recorded format, so the scan must have checked it as that format."""
    if recorded != found:
        raise EngineError("invalid-model", f"The upload is recorded as {recorded}, but it is {found}. Upload it again.")


def _verify(folder: Path, send: Send) -> dict[str, Any]:
    from workers.engine import pipeline

    pipeline.verify(folder, _progress(send))
    return {}


_STAGES: dict[Stage, Callable[[Path, Send], dict[str, Any]]] = {
    "inspect": _inspect,
    "convert": _convert,
    "verify": _verify,
}


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _progress(send: Send) -> Callable[[str, float], None]:
    """The engine's callback: it sends every new stage, and at most ten fractions a second."""
    last: tuple[str, float] = ("", 0.0)

    def progress(stage: str, fraction: float) -> None:
        nonlocal last
        now = time.monotonic()
        if stage != last[0] or now - last[1] >= _PROGRESS_EVERY_S or fraction >= 1:
            last = (stage, now)
            send("progress", (stage, min(1.0, max(0.0, float(fraction)))))

    return progress


def _problem(error: BaseException) -> tuple[str, str]:
    path = fence.denied_path(error)
    if path is not None:
        return "sandbox-violation", f"The model tried to use {path}, which is outside its own folder."
    if isinstance(error, OSError) and error.errno in (errno.EFBIG, errno.ENOSPC):
        return "sandbox-violation", "The model wrote more to disk than a job may."
    memory_error = next((cause for cause in fence.causes(error) if _is_out_of_memory(cause)), None)
    if memory_error is not None:
        return "out-of-memory", f"The stage ran out of memory: {_one_line(memory_error)}"
    if isinstance(error, EngineError):
        return error.slug, error.detail
    if any(isinstance(cause, RecursionError) for cause in fence.causes(error)):
        return "invalid-model", "The model is nested deeper than the engine can follow."
    return "internal-error", _one_line(error)


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is Python's MemoryError, or a message of torch's allocator."""
    words = ("not enough memory", "can't allocate memory", "Cannot allocate memory", "std::bad_alloc")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def without_folders(text: str) -> str:
    """``text`` with only the last part of every absolute path: users should not see this machine's folders.

    Not for a sandbox violation, whose path is one that the uploader's model named.
    """
    return _FOLDERS.sub("", text)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__


if __name__ == "__main__":
    sys.exit("workers.sandbox.runner is run by the fork server")
