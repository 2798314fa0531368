"""How many connections a gateway has, and which of them it closes for a new one when there are too many: the one that
has waited longest, but none that has shown a key and is being served. So a thousand silent connections keep no one
out."""

from __future__ import annotations

from typing import Protocol


class Connection(Protocol):
    """One connection."""

    @property
    def is_served(self) -> bool:
        """It has shown a key and is not done."""

    def cut(self) -> None: ...


class ConnectionLimit:
    """Holds ``most`` connections, in the order in which they last began to wait."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._line: dict[Connection, None] = {}

    def admit(self, connection: Connection) -> bool:
        """Whether it may stay. Another connection may be closed for it."""
        has_place = len(self._line) < self._most or self._make_place()
        if has_place:
            self._line[connection] = None
        return has_place

    def move_to_back(self, connection: Connection) -> None:
        if connection in self._line:
            del self._line[connection]
            self._line[connection] = None

    def release(self, connection: Connection) -> None:
        self._line.pop(connection, None)

    def _make_place(self) -> bool:
        for connection in list(self._line):
            if not connection.is_served:
                self.release(connection)
                connection.cut()
                return True
            self.move_to_back(connection)  # so that those who are served are not asked again by the next
        return False
