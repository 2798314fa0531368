"""The Python face of ``transition.lua``, the same for the sync and the async side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from store.records import PREFIX, events_key, flat, job_key, now_iso

_SCRIPTS = Path(__file__).parents[1] / "scripts"
DELIVERIES = (_SCRIPTS / "deliveries.lua").read_text()
SCRIPT = DELIVERIES + (_SCRIPTS / "transition.lua").read_text()
TURN = (_SCRIPTS / "turn.lua").read_text()


@dataclass(frozen=True)
class Move:
    """One call of the script. ``moves`` maps the status a job may have to the one it then gets. ``tenant``: who asks,
    if that matters; ``most``: how many jobs of its tenant may be in the new state."""

    job_id: str
    moves: Mapping[str, str]
    token: int | None = None
    lease_s: float | None = None
    expired_before_ms: int | None = None
    event: str = ""
    data: str = ""
    give_attempt_back: bool = False
    tenant: str = ""
    most: int | None = None
    must_exist: Sequence[str] = ()
    fields: Mapping[str, str | bytes] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        return [job_key(self.job_id), events_key(self.job_id), *self.must_exist]

    @property
    def args(self) -> list[str | bytes]:
        return [
            PREFIX,
            self.job_id,
            ",".join(f"{was}>{becomes}" for was, becomes in self.moves.items()),
            "" if self.token is None else str(self.token),
            "" if self.lease_s is None else str(int(self.lease_s * 1000)),
            "" if self.expired_before_ms is None else str(self.expired_before_ms),
            now_iso(),
            self.event,
            self.data,
            "1" if self.give_attempt_back else "",
            self.tenant,
            "" if self.most is None else str(self.most),
            *flat(self.fields),
        ]


@dataclass(frozen=True)
class Outcome:
    """What the script did: ``status`` is the job's now, whether it moved or not (``none``: there is no such job).
    ``artifacts_json``: of a job that is deleted."""

    moved: bool
    status: str
    token: int
    revision: int = 0
    attempts: int = 0
    was: str = ""
    claimed_by: str = ""
    artifacts_json: str = "[]"

    @classmethod
    def of(cls, reply: list[Any]) -> Outcome:
        words = [word.decode() if isinstance(word, bytes) else word for word in reply]
        if words[0] == 0:
            return cls(False, words[1], int(words[2]), claimed_by=words[3])
        moved = cls(True, words[1], int(words[3]), revision=int(words[2]), attempts=int(words[4]), was=words[5])
        return replace(moved, artifacts_json=words[6]) if len(words) > 6 else moved
