"""How many connections a gateway has, and who goes when there are too many: whoever has been waiting the longest, but
nobody who is being served and has shown a key. So a thousand connections that say nothing keep no one out."""

from __future__ import annotations

from typing import Protocol


class Visitor(Protocol):
    """One connection."""

    @property
    def is_served(self) -> bool:
        """It has shown a key and is not done."""

    def cut(self) -> None: ...


class Room:
    """For ``most`` connections, in the order in which they last began to wait."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._line: dict[Visitor, None] = {}

    def enter(self, visitor: Visitor) -> bool:
        """Whether there is a place, perhaps that of another."""
        has_place = len(self._line) < self._most or self._make_place()
        if has_place:
            self._line[visitor] = None
        return has_place

    def wait_again(self, visitor: Visitor) -> None:
        if visitor in self._line:
            del self._line[visitor]
            self._line[visitor] = None

    def leave(self, visitor: Visitor) -> None:
        self._line.pop(visitor, None)

    def _make_place(self) -> bool:
        for visitor in list(self._line):
            if not visitor.is_served:
                self.leave(visitor)
                visitor.cut()
                return True
            self.wait_again(visitor)  # so that those who are served are not asked again by the next
        return False
