"""The runner with one of its two walls taken down, so that the other can be seen to hold alone; or both.

It is the tests' own entry of a fork server: the deployed runner has no such switch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from workers.sandbox import fence, runner

preload = runner.preload


def main(request: dict[str, Any], messages: int) -> None:
    without = request.pop("without", None)
    if without in ("scan", "both"):
        runner.scan = lambda _: request["format"]  # type: ignore[assignment]
        runner.fence = _TrustingFence  # type: ignore[assignment]
    if without in ("fence", "both"):
        runner.fence = _NoFence  # type: ignore[assignment]
    request["folder"] = str(Path(request["folder"]))
    runner.main({name: value for name, value in request.items() if name != "format"}, messages)  # type: ignore[arg-type]


class _TrustingFence:
    """The fence, and torch left to unpickle whatever it likes."""

    denied_path, causes = staticmethod(fence.denied_path), staticmethod(fence.causes)

    @staticmethod
    def enter(*arguments: Any) -> None:
        fence.enter(*arguments)
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"


class _NoFence:
    denied_path, causes = staticmethod(fence.denied_path), staticmethod(fence.causes)

    @staticmethod
    def enter(folder: Path, *_: Any) -> None:
        os.chdir(folder)
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
