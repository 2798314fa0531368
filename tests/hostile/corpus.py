"""Hostile uploads, all built by code: those that must not run, and those that do harm by running."""

from __future__ import annotations

from tests.hostile.archives import ARCHIVES
from tests.hostile.folders import FOLDERS
from tests.hostile.pickles import BOMBED, PICKLES
from tests.hostile.programs import PROGRAMS, RUNNING

CASES = [*PICKLES, *BOMBED, *PROGRAMS, *RUNNING, *ARCHIVES, *FOLDERS]
