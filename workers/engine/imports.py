"""What the engine imports only when a job asks for it: tried when the worker starts, so that no job is the first to
find that something is missing."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LATER = (
    "ml_dtypes",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "onnxscript.optimizer",
    "safetensors",
    "safetensors.numpy",
    "safetensors.torch",
    "scipy.special",
    "torch._export.converter",
    "torchmetrics.functional",
    "torchmetrics.functional.classification",
    "torchmetrics.functional.regression",
    "transformers.integrations.moe",
)
_LONGEST = 500


@contextmanager
def later_imports_tried(modules: tuple[str, ...] = LATER) -> Iterator[None]:
    """Import them in a child while the block runs: they start threads, and a process with threads must not be forked.
    Raises ``ImportError`` at the end of the block."""
    told, telling = os.pipe()
    pid = os.fork()
    if pid == 0:
        _try(modules, telling)
    os.close(telling)
    try:
        yield
    finally:
        with os.fdopen(told, "rb") as pipe:
            words = pipe.read().decode(errors="replace")
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        raise ImportError(words or f"a process that imports {', '.join(modules)} ended with status {status}")


def _try(modules: tuple[str, ...], telling: int) -> None:
    """In the child, which never returns."""
    module = ""
    try:
        for module in modules:
            importlib.import_module(module)
        os._exit(0)
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os.write(telling, f"importing {module} failed: {type(error).__name__}: {error}".encode()[:_LONGEST])
        os._exit(1)
