"""Small programs that are easy to get wrong, by what makes them so."""

from __future__ import annotations

from tests.workers.engine.programs.inputs import INPUTS
from tests.workers.engine.programs.operators import OPERATORS
from tests.workers.engine.programs.program import SmallProgram
from tests.workers.engine.programs.uses import USES
from tests.workers.engine.programs.writes import WRITES

PROGRAMS: dict[str, SmallProgram] = {program.name: program for program in (*WRITES, *USES, *INPUTS, *OPERATORS)}
