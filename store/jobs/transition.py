"""What ``transition.lua`` takes and returns, the same for the sync and the async side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from store.records import PREFIX, events_key, job_key, now_iso

TRANSITION = "jobs/transition"


@dataclass(frozen=True)
class Move:
    """One call of the script, which explains the fields. ``moves`` maps the status a job may have to its next one."""

    job_id: str
    moves: Mapping[str, str]
    token: int | None = None
    lease_s: float | None = None
    expired_before_ms: int | None = None
    event: str | None = None
    data: str | None = None
    give_attempt_back: bool = False
    tenant: str | None = None
    most: int | None = None
    must_exist: Sequence[str] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    report: bytes | None = None

    @property
    def keys(self) -> list[str]:
        return [job_key(self.job_id), events_key(self.job_id), *self.must_exist]

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "prefix": PREFIX,
            "id": self.job_id,
            "moves": self.moves,
            "at": now_iso(),
            "fields": self.fields,
            "token": self.token,
            "lease_ms": None if self.lease_s is None else int(self.lease_s * 1000),
            "expired_before_ms": self.expired_before_ms,
            "event": self.event,
            "data": self.data,
            "give_attempt_back": self.give_attempt_back or None,
            "tenant": self.tenant,
            "most": self.most,
        }


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
