"""``requirements/install_torch.py`` with real pip against indexes on loopback: the CPU build, or a sentence.

The wheels are made up and tiny; which of them pip fetches is what counts.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pip
import pytest

from local.stack import ROOT
from tests.install.indexes import Index, make_wheel, serve, sha256

CPU, CUDA = "torch-2.13.0+cpu-py3-none-any.whl", "torch-2.13.0-py3-none-any.whl"
PYTORCH = "download." + "pytorch.org"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wheels")
    cpu = make_wheel(folder, "torch", "2.13.0+cpu", "filelock")
    cuda = make_wheel(folder, "torch", "2.13.0", "filelock", "nvidia-cudnn-cu13==9.1; platform_system == 'Linux'")
    return {CPU: cpu, CUDA: cuda}


@pytest.fixture
def only_cuda(wheels: dict[str, Path]) -> Iterator[Index]:
    """What PyPI has for Linux."""
    with serve(wheels[CUDA]) as index:
        yield index


@pytest.fixture
def only_cpu(wheels: dict[str, Path]) -> Iterator[Index]:
    """What PyTorch's index of CPU builds has."""
    with serve(wheels[CPU]) as index:
        yield index


class Machine:
    """An empty environment, stock pip, and the installer beside a lock that knows the made-up CPU build."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.python = folder / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        (site,) = folder.glob("venv/lib/python3*/site-packages")
        shutil.copytree(Path(pip.__file__).parent, site / "pip")
        self.script = Path(shutil.copy(ROOT / "requirements" / "install_torch.py", folder))
        lock = (ROOT / "requirements" / "torch.lock").read_text()
        self.lock = folder / "torch.lock"
        self.lock.write_text(re.sub(r"sha256:\w+", f"sha256:{digest}", lock))

    def install(self, index: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run the installer; pip's own configuration names ``index`` and nothing else."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "TORCH_"))}
        ours |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index, "PIP_RETRIES": "0", "NO_PROXY": "127.0.0.1"}
        command = [str(self.python), str(self.script)]
        return subprocess.run(command, env=ours | settings, capture_output=True, text=True, check=False, timeout=120)

    def torch(self) -> str:
        """The version that is installed there; empty without one."""
        command = [str(self.python), "-c", "import torch; print(torch.__version__)"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@pytest.fixture
def machine(tmp_path: Path, wheels: dict[str, Path]) -> Machine:
    return Machine(tmp_path, sha256(wheels[CPU]))


def test_where_pip_has_only_cuda_the_cpu_build_comes_from_the_other_index(
    machine: Machine, only_cuda: Index, only_cpu: Index
) -> None:
    done = machine.install(only_cuda.url, TORCH_INDEX=only_cpu.url)
    assert done.returncode == 0, done.stderr
    assert machine.torch() == "2.13.0+cpu"
    assert only_cuda.asked == ["/simple/torch/"]
    assert only_cpu.downloads() == [CPU]
    assert f"Taking it from {only_cpu.url}" in done.stdout
    assert done.stdout.endswith("torch 2.13.0+cpu is installed. Its hash is the one in requirements/torch.lock.\n")


def test_where_pip_has_the_cpu_build_no_other_index_is_asked(
    machine: Machine, only_cuda: Index, only_cpu: Index
) -> None:
    done = machine.install(only_cpu.url, TORCH_INDEX=only_cuda.url)
    assert done.returncode == 0, done.stderr
    assert machine.torch() == "2.13.0+cpu"
    assert only_cuda.asked == []


def test_pips_own_folders_and_constraints_count(
    machine: Machine, only_cuda: Index, wheels: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "constraints.txt").write_text("torch<3\n")
    (tmp_path / "links").mkdir()
    shutil.copy(wheels[CPU], tmp_path / "links")
    settings = {"PIP_FIND_LINKS": str(tmp_path / "links"), "PIP_CONSTRAINT": str(tmp_path / "constraints.txt")}
    done = machine.install(only_cuda.url, **settings)
    assert done.returncode == 0, done.stderr
    assert machine.torch() == "2.13.0+cpu"
    assert only_cuda.downloads() == []


def test_a_constraint_on_torch_does_not_hide_that_none_is_offered(
    machine: Machine, only_cuda: Index, only_cpu: Index, tmp_path: Path
) -> None:
    (tmp_path / "constraints.txt").write_text("torch<3\n")
    done = machine.install(
        only_cuda.url, TORCH_INDEX=only_cpu.url, PIP_CONSTRAINT=str(tmp_path / "constraints.txt")
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert machine.torch() == "2.13.0+cpu"
    assert only_cuda.downloads() == []


def test_torch_pip_says_more_to_pip(machine: Machine, only_cuda: Index, wheels: dict[str, Path]) -> None:
    done = machine.install(only_cuda.url, TORCH_PIP=f"--no-index --find-links '{wheels[CPU].parent}'")
    assert done.returncode == 0, done.stderr
    assert machine.torch() == "2.13.0+cpu"
    assert only_cuda.asked == []


def test_another_wheel_under_the_same_name_is_refused(machine: Machine, only_cpu: Index) -> None:
    machine.lock.write_text(re.sub(r"sha256:\w+", f"sha256:{'0' * 64}", machine.lock.read_text()))
    done = machine.install(only_cpu.url)
    assert done.returncode == 1
    assert machine.torch() == ""
    last = done.stderr.splitlines()[-1]
    assert "not the one in requirements/torch.lock" in last
    assert "TORCH_INDEX=<address>" in last


def test_a_machine_the_lock_has_no_hash_for_is_told_so(machine: Machine, only_cuda: Index, only_cpu: Index) -> None:
    machine.lock.write_text(re.sub(r"python_version == '3\.\d+'", "python_version == '3.99'", machine.lock.read_text()))
    done = machine.install(only_cuda.url, TORCH_INDEX=only_cpu.url)
    assert done.returncode == 0, done.stderr
    assert machine.torch() == "2.13.0+cpu"
    assert only_cuda.downloads() == []
    assert "NOT CHECKED" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("elsewhere", ["an index without it", "nobody"])
def test_where_nobody_has_it_the_last_line_says_what_to_do(machine: Machine, only_cuda: Index, elsewhere: str) -> None:
    address = only_cuda.url if elsewhere == "an index without it" else "http://127.0.0.1:9/simple"
    done = machine.install(only_cuda.url, TORCH_INDEX=address)
    assert done.returncode == 1
    assert machine.torch() == ""
    assert only_cuda.downloads() == []
    last = done.stderr.splitlines()[-1]
    assert last.startswith("No CPU build of torch 2.13.0 for Python 3.")
    assert address in last
    assert "TORCH_INDEX=<address>" in last


def test_a_cpu_build_that_is_there_stays_and_nothing_is_asked(machine: Machine, only_cpu: Index) -> None:
    assert machine.install(only_cpu.url).returncode == 0
    only_cpu.asked.clear()
    done = machine.install(only_cpu.url)
    assert (done.returncode, done.stdout) == (0, "torch 2.13.0+cpu is installed already.\n")
    assert only_cpu.asked == []


def test_a_cuda_build_that_is_there_is_replaced(
    machine: Machine, wheels: dict[str, Path], only_cuda: Index, only_cpu: Index
) -> None:
    install = [str(machine.python), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheels[CUDA])]
    subprocess.run(install, check=True)
    assert machine.torch() == "2.13.0"
    done = machine.install(only_cuda.url, TORCH_INDEX=only_cpu.url)
    assert done.returncode == 0, done.stderr
    assert machine.torch() == "2.13.0+cpu"


def test_pytorchs_address_stands_in_one_place() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    naming = [name for name in listed if PYTORCH.encode() in (ROOT / name).read_bytes()]
    assert naming == ["requirements/install_torch.py"]
