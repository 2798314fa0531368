"""Where in the user's code a node comes from: the stack that torch.export recorded, which a ``.pt2`` keeps.

It is text of the uploader's machine: of a path only the file's name leaves here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import fx

_FRAME = re.compile(r'File "([^"\n]{1,4096})", line (\d{1,9}), in (\S{1,256})\n\s*([^\n]{0,4096})')
_LIBRARY = re.compile(r"-packages/torch/|/torch/(nn|fx|utils|export|_\w+)/|(^|/)workers/engine/formats/|^<")
LONGEST = 160


@dataclass(frozen=True)
class Frame:
    """One call of the stack: ``file`` is the whole path, with forward slashes."""

    file: str
    line: int
    function: str
    code: str

    @property
    def shown(self) -> str:
        """``model.py:12 in forward: return self.head(x)``."""
        text = f"{self.file.rpartition('/')[2]}:{self.line} in {self.function}: {self.code.strip()}"
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def frames(node: fx.Node) -> tuple[Frame, ...]:
    """The stack of this node, outermost call first; empty where none is recorded."""
    found = _FRAME.findall(str(node.meta.get("stack_trace") or ""))
    return tuple(Frame(file.replace("\\", "/"), int(line), function, code) for file, line, function, code in found)


def source_line(node: fx.Node) -> str | None:
    """The innermost line of the user's own code: neither torch's nor this service's."""
    own = [frame for frame in frames(node) if not _LIBRARY.search(frame.file)]
    return own[-1].shown if own else None
