"""Numbers as people write them."""

from __future__ import annotations

import pytest

from fewbit.rendering import numbers


@pytest.mark.parametrize(
    ("share", "written"),
    [
        (0, "0 %"),
        (1.0, "100 %"),
        (0.5, "50 %"),
        (0.031, "3.1 %"),
        (0.00021, "0.021 %"),
        (8e-7, "0.00008 %"),
        (1e-12, "< 0.000001 %"),
    ],
)
def test_a_tiny_share_has_two_digits_and_no_exponent(share: float, written: str) -> None:
    assert numbers.small_share(share) == written


@pytest.mark.parametrize(("value", "written"), [(950, "950"), (49536, "49.5 k"), (2.5e9, "2.5 G")])
def test_counts_are_short(value: float, written: str) -> None:
    assert numbers.count(value) == written


def test_negative_numbers_have_a_true_minus_sign() -> None:
    assert (numbers.decibels(-1.25), numbers.decibels(None), numbers.small(-0.0)) == ("−1.2 dB", "—", "0")
