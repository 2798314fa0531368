"""``make up`` and ``make down``: one stack, running in the background.

    python -m local.up          start it, or print where it already runs
    python -m local.up down     stop it
    python -m local.up serve    what runs in the background

Its state is in ``.run``: ``stack.json`` says where it runs, ``stack.lock`` is held while it runs.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from local.stack import ROOT, Stack, StackError, free_port, make_private

FOLDER = ROOT / ".run"
STATE, LOCK, KEY, LOG = (FOLDER / name for name in ("stack.json", "stack.lock", "key", "stack.log"))
PREFERRED_PORT = 8000


def up() -> int:
    """Start the stack unless it runs, and print its address."""
    serving = None if running() else _serve_in_background()
    while not STATE.exists():
        if (serving and serving.poll() is not None) or not (serving or running()):
            print(f"Fewbit did not start.\n{LOG.read_text()}", file=sys.stderr)
            return 1
        time.sleep(0.1)
    state = json.loads(STATE.read_text())
    print(f"Fewbit runs at {state['url']}  (make down stops it)\n")
    print(f"export FEWBIT_URL={state['url']}\nexport FEWBIT_KEY={state['key']}")
    return 0


def down() -> int:
    if running() and STATE.exists():
        os.kill(json.loads(STATE.read_text())["pid"], signal.SIGTERM)
        while running():
            time.sleep(0.1)
        print("Fewbit is stopped. Models and jobs stay in .run; make clean deletes them.")
    else:
        print("Fewbit was not running.")
    return 0


def serve() -> int:
    """Run the stack until SIGTERM. The key is saved for the next start."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with _lock() as held:
        if not held:
            return 1
        try:
            with Stack(FOLDER, key=_saved_key(), port=free_port(PREFERRED_PORT)) as stack:
                _write_private(STATE, json.dumps({"pid": os.getpid(), "url": stack.url, "key": stack.key}))
                while True:
                    time.sleep(1)
                    _restart_dead_parts(stack)
        except StackError as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            STATE.unlink(missing_ok=True)


def _restart_dead_parts(stack: Stack) -> None:
    """A part that does not start now is tried again: someone may free a full disk, for example."""
    try:
        stack.restart_dead_parts()
    except StackError as error:
        print(error, file=sys.stderr, flush=True)


def _serve_in_background() -> subprocess.Popen[bytes]:
    make_private(FOLDER)
    STATE.unlink(missing_ok=True)
    command = [sys.executable, "-m", "local.up", "serve"]
    with LOG.open("wb") as log:
        return subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def running() -> bool:
    """Whether a process holds the lock, which a crash releases."""
    with _lock() as held:
        return not held


@contextmanager
def _lock() -> Iterator[bool]:
    make_private(FOLDER)
    with LOCK.open("w") as file:
        yield _try_lock(file)


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _saved_key() -> str | None:
    if KEY.exists():
        return KEY.read_text()
    _write_private(KEY, key := Stack(FOLDER).key)
    return key


def _write_private(path: Path, text: str) -> None:
    """Replace the file atomically, readable by its owner only."""
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.replace(path)


COMMANDS = {"up": up, "down": down, "serve": serve}

if __name__ == "__main__":
    os.umask(0o077)  # what lies in .run is for its user alone
    sys.exit(COMMANDS[sys.argv[1] if len(sys.argv) > 1 else "up"]())
