"""What a hostile job could leave behind, looked for once it has ended: files, bytes of another tenant, processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hostile.case import Case
from tests.workers.stage_requests import stage_request
from workers.sandbox.child import DeadlinePassed, run_child
from workers.sandbox.fork_server import ChildRequest, ForkServer
from workers.sandbox.usage import LimitExceeded
from workers.scratch import scratch_folder
from workers.supervisor import job_problem

SECRET = f"the weights of another tenant, {uuid.uuid4().hex}".encode()
KILLED_WITHIN_S = 3.0  # of its deadline: the watcher looks ten times a second


class RecordingForkServer(ForkServer):
    """Knows which children it had."""

    def __init__(self, entry: str, preload: str) -> None:
        super().__init__(entry, preload)
        self.children: list[int] = []

    def fork(self, request: ChildRequest) -> Any:
        child = super().fork(request)
        self.children.append(child.pid)
        return child

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid


@dataclass(frozen=True)
class Surroundings:
    """Where one job runs: the scratch of its worker, in which another tenant's job lies, and a store."""

    root: Path

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    @property
    def canary(self) -> Path:
        """What the upload would make if it were obeyed, in another tenant's job; nothing else has that name."""
        return self.scratch / "fewbit-job_another" / f"canary-{uuid.uuid5(uuid.NAMESPACE_URL, str(self.root)).hex}"

    @classmethod
    def create(cls, root: Path) -> Surroundings:
        here = cls(root)
        for path in (here.canary.parent / "secret", root / "store" / "blob"):
            path.parent.mkdir(parents=True)
            path.write_bytes(SECRET)
        return here

    def state(self) -> dict[str, tuple[object, ...]]:
        """All there is to know of what lies around the job, but when it was read."""
        return {str(path): file_state(path) for path in sorted(self.root.rglob("*")) if path != self.scratch}

    def marks(self, pid: int) -> list[str]:
        """What is called by the canary's name, or by the process's number, where everybody may write."""
        places = {tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run"}
        entries = [path for place in places if Path(place).is_dir() for path in Path(place).iterdir()]
        return [str(path) for path in entries if self.canary.name in path.name or f"_{pid}_" in path.name]


def file_state(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    told = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_mtime_ns, status.st_ctime_ns)
    attributes = tuple(os.listxattr(path, follow_symlinks=False))
    return (*told, attributes, path.read_bytes() if path.is_file() else None)


@dataclass(frozen=True)
class Ending:
    """How one job ended (``ready`` if it did not fail), and what it left: nothing, if all is well."""

    slug: str
    detail: str
    traces: tuple[str, ...]


def attack(
    forks: RecordingForkServer, here: Surroundings, case: Case, made: Path, without: str | None = None
) -> Ending:
    """The case's stage over its upload, in a scratch folder that is wiped as the worker wipes it."""
    made.mkdir()
    upload = case.build(made, here.canary)
    before = here.state()
    with scratch_folder(here.scratch, "job_1") as folder:
        shutil.copytree(upload, folder, dirs_exist_ok=True) if upload.is_dir() else shutil.copy(
            upload, folder / "model"
        )
        started = time.monotonic()
        slug, detail, said = _ended(forks, folder, case, without)
        late = time.monotonic() - started > case.seconds + KILLED_WITHIN_S
        told = b"".join([said, *_bytes_in(folder)])
    child, after = forks.children[-1], here.state()
    traces = {
        "late": late,
        f"not wiped: {folder}": folder.exists(),
        f"told the secret: {detail}": SECRET in told,
        **{f"not as before: {path}": before.get(path) != after.get(path) for path in before | after},
        **{f"on the machine: {path}": True for path in here.marks(child)},
        **{f"still there: {process}": True for process in remaining_processes(child, forks.pid)},
    }
    return Ending(slug, detail, tuple(trace for trace, found in traces.items() if found))


def _ended(forks: ForkServer, folder: Path, case: Case, without: str | None) -> tuple[str, str, bytes]:
    """Slug, detail, and everything it said and printed."""
    request = stage_request(case.stage, folder, format=case.format, without=without)
    try:
        ended = run_child(forks, request, time.monotonic() + case.seconds)
    except (DeadlinePassed, LimitExceeded) as error:
        problem = job_problem(error, case.seconds)
        return problem.slug, problem.detail, problem.detail.encode()
    said = (json.dumps(ended.result) + ended.output_tail).encode()
    if ended.failure is None:
        return "ready", "", said
    return ended.failure.slug, ended.failure.detail, said + ended.failure.detail.encode()


def _bytes_in(folder: Path) -> Iterator[bytes]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path.read_bytes()


def remaining_processes(child: int, server: int) -> list[str]:
    """Who is of the child's process group or session, or a child of the fork server."""
    return [text for text in _processes() if _belongs_to(text, child, server)]


def _processes() -> Iterator[str]:
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            yield status.read_text()


def _belongs_to(status: str, child: int, server: int) -> bool:
    _, parent, group, session, *_ = status.rpartition(")")[2].split()
    return child in (int(group), int(session)) or server == int(parent)
