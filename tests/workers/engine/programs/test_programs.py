"""Small programs that are easy to get wrong, by every method: each artifact gives what the module gives, any documented
way it is loaded, and as near as the report says; a kind that has no form for one says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workers.engine.programs import PROGRAMS
from tests.workers.engine.programs.check import require_right, run_program

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
EVERY = [(name, method) for name, program in PROGRAMS.items() for method in program.methods]


@pytest.mark.parametrize(("name", "method"), EVERY)
def test_every_artifact_gives_what_the_module_gives(name: str, method: str, tmp_path: Path) -> None:
    require_right(PROGRAMS[name], run_program(PROGRAMS[name], tmp_path, method=method))
