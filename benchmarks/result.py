"""One line of the table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """``ratio`` is Fewbit over the peer, in the unit given. ``wanted`` is its bound, ``None`` where there is none."""

    measured: str
    ours: str
    against: str
    peer: str
    ratio: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def missed(self) -> bool:
        if self.ratio is None:
            return False
        too_low = self.at_least is not None and self.ratio < self.at_least
        too_high = self.at_most is not None and self.ratio > self.at_most
        return too_low or too_high

    def row(self) -> tuple[str, ...]:
        bound = f">= {self.at_least:g}" if self.at_least is not None else ""
        bound = f"<= {self.at_most:g}" if self.at_most is not None else bound
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        mark = "" if not bound else ("[red]missed[/]" if self.missed else "[green]met[/]")
        return self.measured, self.ours, self.against, self.peer, ratio, bound, mark
