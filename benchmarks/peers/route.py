"""A route: one way from the float model to a file, and from the file to outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.source import Run, Source


@dataclass(frozen=True)
class Route:
    """``quantize`` writes ``file`` into the folder that already holds ``float.pt2`` and ``float.onnx``, and may return
    a remark; ``load`` opens it as its user would. ``file`` is the name of what is delivered."""

    name: str
    file: str
    quantize: Callable[[Source, Path], str]
    load: Callable[[Source, Path], Run]

    def size(self, folder: Path) -> int:
        """Bytes of what is delivered: OpenVINO's weights lie in a second file of the same stem."""
        path = folder / self.file
        parts = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
        return sum(part.stat().st_size for part in parts)
