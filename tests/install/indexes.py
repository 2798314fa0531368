"""A package index on loopback that remembers what it was asked for, and wheels small enough to make up."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Index:
    """``wheels`` are what it serves, by file name; ``asked`` is every path that was requested, in order."""

    wheels: dict[str, Path]
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str) -> bytes | None:
        """PEP 503: ``/simple/PROJECT/`` lists its files, which lie under ``/files/``."""
        path = unquote(path)
        self.asked.append(path)
        kind, _, name = path.strip("/").partition("/")
        if kind == "files" and name in self.wheels:
            return self.wheels[name].read_bytes()
        links = [self._link(file) for file in self.wheels if file.split("-")[0] == name]
        return "\n".join(links).encode() if kind == "simple" and links else None

    def downloads(self) -> list[str]:
        return [path.removeprefix("/files/") for path in self.asked if path.startswith("/files/")]

    def _link(self, file: str) -> str:
        return f'<a href="/files/{file}#sha256={sha256(self.wheels[file])}">{file}</a>'


@contextmanager
def serve(*wheels: Path) -> Iterator[Index]:
    """An index that has these wheels and nothing else."""
    index = Index({wheel.name: wheel for wheel in wheels})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = index.answer(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Type", "text/html" if "/simple/" in self.path else "application/octet-stream")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:
            """``asked`` has it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        index.url = f"http://127.0.0.1:{server.server_port}/simple"
        yield index
        server.shutdown()


def make_wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    """A wheel for any platform whose one module says its version."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel, about = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(f"{name}/__init__.py", f"__version__ = {version!r}\n")
        file.writestr(f"{about}/METADATA", "\n".join(metadata) + "\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", f"{name}/__init__.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n")
    return wheel


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
