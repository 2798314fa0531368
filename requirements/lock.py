"""Write ``requirements/*.lock`` from pyproject.toml: every distribution by its hashes, for every Python and platform.

    python requirements/lock.py             # what pyproject.toml asks for now; nothing else moves
    python requirements/lock.py --upgrade   # the newest versions that pyproject.toml allows

uv resolves once for all environments named in pyproject.toml (``tool.uv``), and fails where one of them has no wheel.
torch is not written: ``torch.lock`` has its CPU builds. It needs the network and pip, and installs uv in a folder of
its own.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).parent
UV = "uv==0.13.9"
LOCKS = {  # the extras of each; dev comes first, and its versions bind the others
    "dev": ("dev",),
    "bench": ("dev", "bench"),
    "gateway": ("service",),
    "worker": ("workers",),
    "client": (),
    "runtime": ("torch",),
}
OPTIONS = (
    *("--quiet", "--universal", "--python-version", "3.11", "--fork-strategy", "fewest", "--generate-hashes"),
    *("--no-annotate", "--no-header", "--no-emit-package", "torch", "--no-emit-package", "fewbit"),
)
# What uv writes behind a distribution that every supported environment needs. Written out it would only make pip
# install nothing, without a word, where Fewbit is not supported.
EVERYWHERE = re.compile(r" ; python_full_version < '3\.15' and \(\(platform_machine == [^\n]*?\)\)(?= \\$)", re.M)
ALWAYS = re.compile(r" and \(\(platform_machine == [^\n]*?\)\)(?= \\$)", re.M)


def without_the_obvious(text: str) -> str:
    """The lock without the markers that hold in every supported environment."""
    return ALWAYS.sub("", EVERYWHERE.sub("", text))


def compile_lock(uv: Path, name: str, *options: str) -> None:
    """Resolve the extras of one lock and write it. Raises ``subprocess.CalledProcessError`` where uv finds no way."""
    print(f"requirements/{name}.lock ...", flush=True)
    lock = HERE / f"{name}.lock"
    extras = [word for extra in LOCKS[name] for word in ("--extra", extra)]
    command = [str(uv), "pip", "compile", *OPTIONS, *options, *extras, "--output-file", str(lock), "pyproject.toml"]
    subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.DEVNULL)
    lock.write_text(without_the_obvious(lock.read_text()))


def main() -> int:
    parser = argparse.ArgumentParser(description="Write requirements/*.lock from pyproject.toml.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that pyproject.toml allows")
    chosen = ["--upgrade"] if parser.parse_args().upgrade else []
    with tempfile.TemporaryDirectory(prefix="fewbit-lock-") as folder:
        venv.create(folder, with_pip=True)
        binaries = Path(folder) / "bin"
        subprocess.run([binaries / "python", "-m", "pip", "install", "-qq", "--no-deps", UV], check=True)
        compile_lock(binaries / "uv", "dev", *chosen)
        for name in list(LOCKS)[1:]:
            compile_lock(binaries / "uv", name, "--constraint", str(HERE / "dev.lock"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
