"""How much memory, processor time and disk one stage may take, by the size of its inputs.

The limits are generous: they stop a model that allocates a terabyte or writes for ever. An honest job of a 1 GiB model
takes 1.6 times its weights; a small one takes what torch itself needs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

_GIB = 1 << 30
_MOST_FILES = 20_000  # in the scratch folder


@dataclass(frozen=True)
class Limits:
    """The limits of one child: ``memory`` and ``disk`` in bytes, ``cpu`` in seconds of all threads together."""

    memory: int
    disk: int
    cpu: int
    files: int = _MOST_FILES

    @classmethod
    def of(cls, input_bytes: int, threads: int, seconds: float) -> Limits:
        """Limits for inputs of ``input_bytes``. Compressed data may grow twentyfold; about half of that is granted."""
        return cls(
            memory=6 * _GIB + 12 * input_bytes,
            disk=4 * _GIB + 12 * input_bytes,
            cpu=int(seconds * (threads + 1)) + 10,
        )

    def request(self) -> dict[str, int]:
        """As part of a child's request."""
        return asdict(self)
