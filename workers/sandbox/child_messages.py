"""What a child sends through its two pipes: JSON messages, one a line, and whatever it prints.

The child has run a stranger's model, so nothing it sends is trusted: lines that are no known message are dropped, texts
are cut, and neither pipe can fill the watcher's memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fewbit.contract.problems import JOB_PROBLEMS, JobProblem

OnMessage = Callable[[str, Any], None]
"""Gets ``"progress", (stage, fraction)`` and ``"log", message``."""

_OUTPUT_TAIL_BYTES = 8192
_LONGEST_MESSAGE = 64 << 20  # an inspection of ten thousand layers is 5 MB


@dataclass
class ChildMessages:
    """Collects the bytes of both pipes. Progress and logs go to ``on_message`` at once; the end is kept."""

    on_message: OnMessage
    result: dict[str, Any] | None = None
    problem: JobProblem | None = None
    _incomplete: bytearray = field(default_factory=bytearray)
    _output: bytearray = field(default_factory=bytearray)

    def add_message_bytes(self, chunk: bytes) -> None:
        self._incomplete += chunk
        if b"\n" in chunk:
            *lines, rest = bytes(self._incomplete).split(b"\n")
            self._incomplete = bytearray(rest)
            for line in lines:
                self._take_message(line)
        if len(self._incomplete) > _LONGEST_MESSAGE:
            self._incomplete.clear()

    def add_output_bytes(self, chunk: bytes) -> None:
        self._output += chunk
        if len(self._output) > 2 * _OUTPUT_TAIL_BYTES:
            del self._output[:-_OUTPUT_TAIL_BYTES]

    @property
    def output_tail(self) -> str:
        return self._output[-_OUTPUT_TAIL_BYTES:].decode(errors="replace")

    def _take_message(self, line: bytes) -> None:
        match _parse_json(line):
            case {"progress": [str(stage), int() | float() as fraction]} if 0 <= fraction <= 1:
                self.on_message("progress", (_cut(stage, 64), float(fraction)))
            case {"log": str(message)}:
                self.on_message("log", _cut(message, 2000))
            case {"problem": [str(slug), str(detail)]} if slug in JOB_PROBLEMS:
                self.problem = JobProblem.of(slug, _cut(detail, 4000))
            case {"done": dict(result)}:
                self.result = result


def _parse_json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _cut(text: str, longest: int) -> str:
    """At most ``longest`` characters, without the lone surrogates that JSON can spell and UTF-8 cannot."""
    return text[:longest].encode(errors="replace").decode()
