"""``python -m tests.fuzz --minutes 30``: that long for all parsers together, or for those named with ``--only``."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
import warnings

from tests.fuzz import Target, chosen, fuzz


def main() -> int:
    logging.disable(logging.WARNING)  # multipart's parser says something of every refusal
    warnings.simplefilter("ignore", SyntaxWarning)  # so does Python's, of what expressions are made of
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    arguments.add_argument("--minutes", type=float, default=30)
    arguments.add_argument("--only", action="append", default=[], metavar="PARSER")
    asked = arguments.parse_args()
    targets = chosen(asked.only)
    share = asked.minutes * 60 / len(targets)
    return 1 if [target.name for target in targets if not _held(target, share)] else 0


def _held(target: Target, seconds: float) -> bool:
    try:
        fed = fuzz(target, seconds)
    except Exception:
        traceback.print_exc()
        print(f"{target.name}: FAILED, see above", flush=True)
        return False
    print(f"{target.name}: {fed} inputs in {seconds:.0f} s, each read or refused", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
