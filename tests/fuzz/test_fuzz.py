"""A minute of fuzzing, shared by all parsers. ``python -m tests.fuzz --minutes 30`` goes on for longer."""

from __future__ import annotations

import pytest

from tests.fuzz import Hung, Target, fuzz, targets
from tests.fuzz.bytes_changed import changed

TARGETS = targets()
SHARE_S = 60 / len(TARGETS)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_input_is_read_or_refused(target: Target) -> None:
    assert fuzz(target, SHARE_S) > 10


def _breaks_on_a_newline(data: bytes) -> None:
    if b"\n" in data:
        raise KeyError("unhandled")


def test_a_crashing_parser_is_found() -> None:
    """The search itself can fail: it finds a parser that cannot take one byte of 256."""
    target = Target("broken", changed(lambda: [b"abc" * 20]), _breaks_on_a_newline, (ValueError,))
    with pytest.raises(KeyError, match="unhandled"):
        fuzz(target, 20)


def test_a_hanging_parser_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(data: bytes) -> None:
        while data is not None:
            pass

    monkeypatch.setattr("tests.fuzz._HUNG_S", 0.05)
    with pytest.raises(Hung):
        fuzz(Target("hanging", changed(lambda: [b"abc"], most=0), hangs, ()), 5)
