"""The Lua scripts of this folder, called with named arguments.

A script declares what it needs in the comment at its top:

    -- keys: record, index            passed as KEYS, so that Redis knows what a script touches
    -- arguments: id, most?           one JSON object, ARGV[1]; those with a question mark may be left out
    -- payload: report                bytes, which JSON cannot carry: ARGV[2]
    -- constants: FIELDS              lists that are part of the text, so that they are not sent with every call
    -- uses: clock.lua                files whose functions it calls; they are put in front of it
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import redis
import redis.asyncio

_FOLDER = Path(__file__).parent
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_DECLARATION = re.compile(r"^-- (arguments|uses): (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class _Source:
    text: str
    required: frozenset[str]
    optional: frozenset[str]


class Script:
    """``await Script(client, "jobs/transition")([key, ...], id=..., most=...)``, or without ``await`` for a client that
    blocks. ``constants`` are those the script declares."""

    def __init__(self, client: redis.Redis | redis.asyncio.Redis, name: str, **constants: Sequence[str]) -> None:
        source = _read(name)
        self.text = "".join(_constant(*constant) for constant in constants.items()) + source.text
        self._name = name
        self._required, self._optional = source.required, source.optional
        self._registered = client.register_script(self.text)

    @property
    def sha(self) -> str:
        return str(self._registered.sha)

    def __call__(self, keys: Sequence[str] = (), payload: bytes | None = None, /, **arguments: Any) -> Any:
        """What the script returns, or an awaitable of that. An argument that is ``None`` is left out."""
        encoded = self.encode(arguments)
        return self._registered(keys=keys, args=[encoded] if payload is None else [encoded, payload])

    def encode(self, arguments: Mapping[str, Any]) -> bytes:
        """``ARGV[1]``. Raises ``TypeError`` for arguments that the script does not declare, or misses."""
        given = {name: value for name, value in arguments.items() if value is not None}
        if not (self._required <= given.keys() <= self._required | self._optional):
            declared = ", ".join(sorted(self._required | self._optional))
            raise TypeError(f"{self._name}.lua takes {declared}; given: {', '.join(sorted(given))}")
        return _JSON.encode(given).encode()


@lru_cache
def _read(name: str) -> _Source:
    path = _FOLDER / f"{name}.lua"
    text = path.read_text()
    declared = {kind: names.split(", ") for kind, names in _DECLARATION.findall(text)}
    used = [(path.parent / other).read_text() for other in declared.get("uses", ())]
    names = declared.get("arguments", ())
    optional = frozenset(name.removesuffix("?") for name in names if name.endswith("?"))
    return _Source("".join([*used, text]), frozenset(names) - {f"{name}?" for name in optional}, optional)


def _constant(name: str, values: Sequence[str]) -> str:
    quoted = ", ".join(f"'{value}'" for value in values)
    return f"local {name} = {{{quoted}}}\n"
