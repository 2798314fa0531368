"""What a gateway or a worker needs, looked at before it starts: what is missing is named, a line each, and the process
leaves with status 1. Only the standard library is imported here, for what else is there is one of the questions."""

from __future__ import annotations

import importlib
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings

    from store.settings import StoreSettings

    Settings = TypeVar("Settings", bound=BaseSettings)

_ASK_AGAIN_S = 0.5
_ANSWER_S = 3.0
_REDIS_URL = "Set REDIS_URL to its address, with a user, password and database that Redis has: redis://user:password@host:6379/0."


class NotReady(Exception):
    """Something a process needs is missing. ``lines`` say what, where, and what to do."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


@contextmanager
def exit_unless_ready(who: str) -> Iterator[None]:
    """A ``NotReady`` from inside becomes its lines on stderr and exit status 1."""
    try:
        yield
    except NotReady as missing:
        for line in missing.lines:
            print(f"{who} cannot start: {line}", file=sys.stderr)
        raise SystemExit(1) from None


def require_all(checks: Sequence[Callable[[], None]]) -> None:
    """Every check, so that everything that is missing is told at once. Raises ``NotReady``."""
    lines: list[str] = []
    for check in checks:
        try:
            check()
        except NotReady as missing:
            lines += missing.lines
    if lines:
        raise NotReady(*lines)


def require_imports(modules: Sequence[str], lock: str) -> None:
    """Import them. Whatever an import raises is a broken environment. Raises ``NotReady``."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise NotReady(
                f"importing {module} failed in {_place(error)} ({_short(error)}). The environment {sys.prefix} is not "
                f"whole: install what requirements/{lock} names (pip install --no-deps --require-hashes -r), or build "
                "the image anew."
            ) from error


def settings_of(kind: type[Settings]) -> Settings:
    """Read from the environment. Raises ``NotReady``, a line for each variable that is wrong."""
    from pydantic import ValidationError

    try:
        return kind()
    except ValidationError as error:
        raise NotReady(
            *(
                f"{_variable(str(wrong['loc'][0]))} is {wrong['input']!r}: {wrong['msg']}. docs/deployment.md lists "
                "what it may be."
                for wrong in error.errors()
            )
        ) from error


def require_redis(settings: StoreSettings) -> None:
    """Redis answers and lets us in, as store and as broker. One that is away is waited for, ``startup_s`` seconds at
    most. Raises ``NotReady``."""
    from store.outage import is_outage

    where, deadline, told = redacted(settings.redis_url), time.monotonic() + settings.startup_s, False
    while error := _obstacle(settings):
        if not is_outage(error):
            raise NotReady(f"Redis at {where} cannot be used ({_short(error)}). {_REDIS_URL}") from error
        if time.monotonic() >= deadline:
            raise NotReady(
                f"no Redis at {where} within {settings.startup_s:g} s ({_short(error)}). Start it, or set REDIS_URL "
                "to where it is."
            ) from error
        if not told:
            print(f"Waiting for Redis at {where}, {settings.startup_s:g} s at most.", file=sys.stderr, flush=True)
            told = True
        time.sleep(_ASK_AGAIN_S)


def require_blobs(settings: StoreSettings) -> None:
    """Blobs can be written. Raises ``NotReady``."""
    from store.blobs.blob_store import Blobs

    try:
        Blobs.of(settings).try_out()
    except Exception as error:
        raise NotReady(
            f"blobs cannot be written to {redacted(settings.blobs_url)} ({_short(error)}). Make it a folder that user "
            f"{_user()} may write to, or set FEWBIT_BLOBS_URL to another, or to s3://bucket/prefix with the AWS_ "
            "variables for it."
        ) from error


def require_folder(folder: Path, variable: str) -> None:
    """Files can be made in it. Raises ``NotReady``."""
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        raise NotReady(
            f"{folder} cannot be written to ({_short(error)}). Set {variable} to a folder that user {_user()} may "
            "write to."
        ) from error


def redacted(url: str) -> str:
    """The address without user, password and query."""
    return re.sub(r"//.*@", "//", url).partition("?")[0]


def _obstacle(settings: StoreSettings) -> Exception | None:
    """Why Redis cannot be used now."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from store.queue import Queue

    once = Retry(NoBackoff(), 0)
    try:
        with redis.Redis.from_url(
            settings.redis_url, retry=once, socket_connect_timeout=_ANSWER_S, socket_timeout=_ANSWER_S
        ) as client:
            client.ping()
        Queue(settings).reach()
    except ValueError:  # its text may hold a part of the password
        return ValueError("it is no address that Redis' client understands; write : / @ in a password as %3A %2F %40")
    except Exception as error:
        return error
    return None


def _place(error: BaseException) -> str:
    """The file whose line could not be run."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else "an unknown place"


def _short(error: BaseException) -> str:
    """One line, whatever the library made of it."""
    text = " ".join(str(error).split()) or "no further word"
    return f"{type(error).__name__}: {text[:300]}"


def _variable(name: str) -> str:
    return name if name.isupper() else f"FEWBIT_{name.upper()}"


def _user() -> str:
    return str(os.geteuid())
