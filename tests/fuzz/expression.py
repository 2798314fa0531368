"""The grammars of symbolic sizes and guards: they answer yes or no, whatever the text."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.fuzz import Target
from workers.intake.expressions import is_guard, is_shape_expression

_PIECES = st.sampled_from(
    ["Symbol('s0', integer=True)", "Add(", "Mul(", "Pow(", ")", ",", "2", "1e9", "(", "[", "]", ".", "__", "lambda",
     ":", "L['x'].size()[0]", "//", "**", ">=", "and", "not", "math.", "f'{", "}'", "*", "-" * 200, "(" * 100,
     " ", "\n", "\\"]
)  # fmt: skip


def _answer(text: str) -> None:
    assert is_shape_expression(text) in (True, False)
    assert is_guard(text) in (True, False)


TARGET = Target("expression", st.lists(_PIECES | st.text(max_size=4), max_size=20).map("".join), _answer, ())
