"""How much one stage may take: memory, processor time, disk. From the sizes of its inputs, generously.

An honest job of a 1 GiB model takes 1.6 times its weights; a small one takes what torch itself needs. The limits are
there for a model that allocates a terabyte or writes for ever, not to be near.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

_GIB = 1 << 30
_MOST_FILES = 20_000  # in scratch


@dataclass(frozen=True)
class Limits:
    """Of one child. ``memory`` and ``disk`` in bytes, ``cpu`` in seconds of all threads together."""

    memory: int
    disk: int
    cpu: int
    files: int = _MOST_FILES

    @classmethod
    def of(cls, input_bytes: int, threads: int, seconds: float) -> Limits:
        """For inputs of so many bytes. Compressed data may unpack to twenty times its size, which counts half."""
        return cls(
            memory=6 * _GIB + 12 * input_bytes,
            disk=4 * _GIB + 12 * input_bytes,
            cpu=int(seconds * (threads + 1)) + 10,
        )

    def request(self) -> dict[str, int]:
        """As it travels in an order."""
        return asdict(self)
