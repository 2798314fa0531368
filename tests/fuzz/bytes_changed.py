"""Valid bytes, changed: the strategies the parsers' files share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

_TELLING = (b"\x00", b"\xff", b"\x7f", b"\x80", b"PK\x03\x04", b"\xff\xff\xff\xff", b"../", b"/", b"\n", b"\x00" * 8)


@st.composite
def changed(draw: st.DrawFn, seeds: Callable[[], Sequence[bytes]], most: int = 6) -> bytes:
    """One of ``seeds()`` with up to ``most`` changes: a byte replaced, a run cut, doubled or overwritten, a piece of
    another seed put in, the end cut off."""
    data = bytearray(_seed(draw, seeds))
    for _ in range(draw(st.integers(0, most))):
        _change(draw, data, seeds)
    return bytes(data)


def _change(draw: st.DrawFn, data: bytearray, seeds: Callable[[], Sequence[bytes]]) -> None:
    at = _place(draw, len(data))
    until = min(len(data), at + draw(st.integers(1, 64)))
    match draw(st.integers(0, 6)):
        case 0 | 1:
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        case 2:
            del data[at:until]
        case 3:
            data[at:at] = data[at:until]
        case 4:
            piece = draw(st.sampled_from(_TELLING))
            data[at : at + len(piece)] = piece
        case 5:
            other = _seed(draw, seeds)
            start = _place(draw, len(other))
            data[at:at] = other[start : start + 256]
        case _:
            del data[at:]


def _seed(draw: st.DrawFn, seeds: Callable[[], Sequence[bytes]]) -> bytes:
    """By its number: hypothesis describes what it samples from, at length."""
    return seeds()[draw(st.integers(0, len(seeds()) - 1))]


def _place(draw: st.DrawFn, size: int) -> int:
    """Half of the places are near the ends, where headers and directories are."""
    if size and draw(st.booleans()):
        near = draw(st.integers(0, min(size, 512) - 1))
        return near if draw(st.booleans()) else size - 1 - near
    return draw(st.integers(0, max(0, size - 1)))
