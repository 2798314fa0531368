"""Stand-ins for the two base images, for a machine that reaches no registry of images.

One Debian 12 by debootstrap, with Python and Redis from Debian, takes the place of both: of ``python:3.11-slim`` and of
Valkey, whose names its programs get. It is kept under a name of its own, and has the true ones only while ``make
images`` runs. Such a machine seldom reaches PyPI in the ordinary way either, so pip inside a build gets the
configuration it has outside, with the folders and certificates that names.

What is shown with a stand-in holds for our layers, our locks and ``docker-compose.yml``, not for the real base images.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local.images.engine import Engine, EngineError, output
from local.stack import ROOT

IMAGE, LABEL = "localhost/fewbit-stand-in", "fewbit.stand-in"
RELEASE = "bookworm"
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates,redis-server"
BESIDE = {  # where the real images have it: what Debian calls it
    "/usr/local/bin/python": "/usr/bin/python3",
    "/usr/local/bin/valkey-server": "/usr/bin/redis-server",
    "/usr/local/bin/valkey-cli": "/usr/bin/redis-cli",
}


def base_images() -> tuple[str, str]:
    """What the Dockerfile starts from, and what ``docker-compose.yml`` runs as it is."""
    (python,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.M)
    (redis,) = re.findall(r"^    image: (\S+/\S+)$", (ROOT / "docker-compose.yml").read_text(), re.M)
    return python, redis


@contextmanager
def provided(engine: Engine) -> Iterator[list[str]]:
    """Have the base images at hand; yields the names of those that are stood in for. Raises ``EngineError``."""
    stood_in = [name for name in base_images() if not (_is_real(engine, name) or engine.pull(name))]
    try:
        if stood_in:
            make(engine)
        for name in stood_in:
            engine("tag", IMAGE, name)
        yield stood_in
    finally:
        for name in stood_in:
            engine.attempt("untag", IMAGE, name)


def _is_real(engine: Engine, name: str) -> bool:
    """Whether it is there, and not from a run of ours that was killed."""
    template = f'{{{{index .Config.Labels "{LABEL}"}}}}'
    found = engine.attempt("image", "inspect", "--format", template, name)
    return found.returncode == 0 and not found.stdout.strip().startswith("debian")


def make(engine: Engine) -> None:
    """The image that stands in for both, unless an earlier run made it. Raises ``EngineError``."""
    if engine.has(IMAGE):
        return
    if engine.name != "podman" or os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise EngineError(
            f"The registry of {' and '.join(base_images())} cannot be reached, and they are stood in for only by root, "
            "with Podman and debootstrap installed. Pull them, or name a mirror in the engine's own configuration."
        )
    with tempfile.TemporaryDirectory(prefix="fewbit-stand-in-") as name:
        root, tar = Path(name) / "root", Path(name) / "root.tar"
        bootstrap(root)
        output(["tar", "--directory", str(root), "--create", "--file", str(tar), "."], os.environ, 300)
        engine("import", "--change", f"LABEL {LABEL}=debian-{RELEASE}", "--change", "WORKDIR /data", str(tar), IMAGE)


def bootstrap(root: Path) -> None:
    """Debian with Python and Redis, a user ``valkey``, and the names that the real images have for things."""
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", RELEASE, str(root)]
    output(command, os.environ, 900)
    for there, here in BESIDE.items():
        (root / there.removeprefix("/")).symlink_to(here)
    within = ["chroot", str(root)]
    output([*within, "useradd", "--system", "--no-create-home", "valkey"], os.environ, 60)
    output([*within, "install", "-d", "-o", "valkey", "-g", "valkey", "/data"], os.environ, 60)
    shutil.rmtree(root / "var/cache/apt")
    shutil.rmtree(root / "var/lib/apt/lists")


def pip_options(folder: Path) -> list[str]:
    """Options of ``podman build`` that lend it pip's configuration, written to a file in ``folder``."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    order = re.findall(r"^(?:global|install)\.([\w-]+)='(.*)'$", listed, re.M)
    order += re.findall(r"^:env:\.([\w-]+)='(.*)'$", listed, re.M)  # which pip too lets win
    settings = dict(order)
    written = folder / "pip.conf"
    written.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    mounts = {str(path): str(path) for value in settings.values() for path in named_paths(value)}
    mounts[str(written)] = "/etc/pip.conf"
    return [word for here, there in mounts.items() for word in ("--volume", f"{here}:{there}:ro")]


def named_paths(value: str) -> Iterator[Path]:
    """What pip has to read on this machine. An index's files lie beside it, so its parent is taken."""
    for word in value.split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            yield path.parent if word.startswith("file://") else path
