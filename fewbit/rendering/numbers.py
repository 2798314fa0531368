"""Numbers and counts, as people write them."""

from __future__ import annotations

import math


def counted(number: int, noun: str) -> str:
    """The number and its noun, in the plural where it needs one."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def points(share: float) -> str:
    """A difference of shares in percentage points, with a true minus sign."""
    return minus(f"{100 * share:+.2f}") if round(100 * share, 2) else "±0.00"


def minus(number: str) -> str:
    """The number with a true minus sign, which is as wide as a plus."""
    return number.replace("-", "−")


def kilobytes(size: int) -> str:
    """Decimal units, as disks and downloads are labelled."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def milliseconds(value: float) -> str:
    return f"{value:.3g} ms"


def decibels(value: float | None) -> str:
    return "—" if value is None else minus(f"{value:.1f} dB")


def count(value: float) -> str:
    """A count in about four characters: 393216 is 393 k."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:g}"


def small(value: float) -> str:
    """A real number of any size, with three digits."""
    return minus(f"{value + 0.0:.3g}")


def small_share(share: float) -> str:
    """A share that may be tiny, in percent: two digits, no exponent."""
    if 0 < share < 1e-8:
        return "< 0.000001 %"
    digits = max(0, 1 - math.floor(math.log10(100 * share))) if share else 0
    return f"{100 * share:.{min(digits, 7)}f}".rstrip("0").rstrip(".") + " %" if digits else f"{100 * share:.0f} %"


def shape(sizes: tuple[int, ...]) -> str:
    return " × ".join(map(str, sizes)) or "scalar"
