"""Activation ranges, each against what a search through everything would find."""

import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewbit.contract.spec import Activations
from workers.engine.quantization.observers import (
    HistogramObserver,
    Observer,
    QParams,
    entropy_bounds,
    fake_quantize,
    observer_for,
)
from workers.errors import EngineError

RANGES: tuple[Any, ...] = ("minmax", "moving_average", "histogram", "mse", "entropy", {"percentile": 99.9})
ORDERLESS = tuple(range_ for range_ in RANGES if range_ != "moving_average")


def watching(range_: Any, *batches: Tensor) -> Observer:
    observer = observer_for(Activations.model_validate({"range": range_}).range)
    for batch in batches:
        observer.observe(batch)
    return observer


def bounds(q: QParams) -> tuple[float, float]:
    return (q.qmin - q.zero_point) * q.scale, (q.qmax - q.zero_point) * q.scale


def affine(low: float, high: float, steps: int) -> QParams:
    scale = (high - low) / steps
    return QParams(scale, round(-low / scale), 0, steps)


def error(x: Tensor, q: QParams) -> float:
    return float((fake_quantize(x, q).double() - x.double()).square().sum())


def signals() -> dict[str, Tensor]:
    torch.manual_seed(0)
    normal = torch.randn(20_000)
    return {
        "normal": normal,
        "after a ReLU": normal.relu(),
        "after a GELU": torch.nn.functional.gelu(2 * normal),
        "heavy tails": normal**3,
        "one outlier": torch.cat([normal, torch.tensor([40.0])]),
        "far from zero": normal + 10,
        "negative": -normal.abs(),
    }


@given(
    st.lists(st.floats(-(2**100), 2**100, width=32), min_size=1, max_size=50),
    st.sampled_from(RANGES),
    st.sampled_from(["uint8", "int8"]),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_zero_is_exact_and_the_zero_point_is_a_value(values: list[float], range_: Any, dtype: Any, half: bool) -> None:
    q = watching(range_, torch.tensor(values)).qparams(dtype, half)
    assert q.qmin <= q.zero_point <= q.qmax
    assert q.scale > 0
    assert math.isfinite(q.scale)
    assert fake_quantize(torch.zeros(3), q).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("dtype", "half", "limits"),
    [("uint8", False, (0, 255)), ("uint8", True, (0, 127)), ("int8", False, (-128, 127)), ("int8", True, (-64, 63))],
)
def test_the_integers_are_those_of_the_type(dtype: Any, half: bool, limits: tuple[int, int]) -> None:
    q = watching("minmax", torch.tensor([-1.0, 3.0])).qparams(dtype, half)
    assert (q.qmin, q.qmax) == limits
    assert q.scale == pytest.approx(4 / (limits[1] - limits[0]))
    assert bounds(q) == pytest.approx((-1, 3), abs=q.scale / 2)


def test_min_and_max_are_exact() -> None:
    x = torch.randn(300_000)
    q = watching("minmax", x[:1000], x[1000:]).qparams("uint8", False)
    assert q.scale == pytest.approx((float(x.max()) - float(x.min())) / 255, rel=1e-12)


def test_the_moving_average_follows_slowly() -> None:
    q = watching("moving_average", torch.tensor([0.0, 1.0]), torch.tensor([0.0, 101.0])).qparams("uint8", False)
    assert q.scale == pytest.approx(2.0 / 255)


def test_a_clip_is_exactly_what_was_asked_for() -> None:
    q = watching({"clip": [-1, 3]}, torch.randn(100) * 50).qparams("uint8", False)
    assert q.scale == 4 / 255


@pytest.mark.parametrize("reduce_range", [True, False])
@pytest.mark.parametrize("name", signals())
def test_mse_is_within_two_percent_of_the_best_bounds_there_are(name: str, reduce_range: bool) -> None:
    x = signals()[name]
    low, high, steps = min(float(x.min()), 0.0), max(float(x.max()), 0.0), 127 if reduce_range else 255
    shares = [part / 24 for part in range(1, 25)]
    pairs = [(low * a, high * b) for a in (shares if low < 0 else [0]) for b in (shares if high > 0 else [0])]
    least = min(error(x, affine(*pair, steps)) for pair in pairs)
    assert error(x, watching("mse", x).qparams("uint8", reduce_range)) <= least * 1.02


@pytest.mark.parametrize("name", signals())
def test_histogram_is_never_worse_than_minmax(name: str) -> None:
    x = signals()[name]
    found, widest = (error(x, watching(name, x).qparams("uint8", True)) for name in ("histogram", "minmax"))
    assert found <= widest * 1.02


def test_histogram_trims_the_side_that_reaches_farther() -> None:
    torch.manual_seed(0)
    x = torch.cat([-torch.rand(10_000), torch.distributions.Exponential(1.0).sample((10_000,))])
    q = watching("histogram", x).qparams("uint8", True)
    assert bounds(q)[0] == pytest.approx(-1, abs=q.scale)
    assert error(x, q) < 0.97 * error(x, watching("minmax", x).qparams("uint8", True))


@pytest.mark.parametrize("percentile", [60.0, 99.0, 99.9])
@pytest.mark.parametrize("name", signals())
def test_a_percentile_is_the_quantile_of_the_magnitudes(name: str, percentile: float) -> None:
    x = signals()[name]
    observer = watching({"percentile": percentile}, x)
    assert isinstance(observer, HistogramObserver)
    fewest, most = (float(torch.quantile(x.abs(), percentile / 100, interpolation=way)) for way in ("lower", "higher"))
    low, high = bounds(q := observer.qparams("uint8", False))
    slack = q.scale / 2 + observer.histogram.width
    smallest, largest = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    assert max(-most, smallest) - slack <= low <= max(-fewest, smallest) + slack
    assert min(fewest, largest) - slack <= high <= min(most, largest) + slack


def test_the_whole_percentile_is_minmax() -> None:
    x = torch.randn(1000)
    assert watching({"percentile": 100}, x).qparams("uint8", False) == watching("minmax", x).qparams("uint8", False)


def test_entropy_cuts_what_is_rare_and_keeps_what_is_not() -> None:
    torch.manual_seed(0)
    normal = torch.randn(200_000)
    low, high = bounds(watching("entropy", normal, torch.tensor([100.0])).qparams("uint8", False))
    assert -6 < low < -3
    assert 3 < high < 8
    low, high = bounds(watching("entropy", torch.rand(200_000)).qparams("uint8", False))
    assert (low, high) == pytest.approx((0, 1), abs=0.02)


def published_divergence(counts: list[float], size: int) -> float:
    """Migacz 2017, slide 38, word for word; 128 levels."""
    reference = [*counts[: size - 1], sum(counts[size - 1 :])]
    candidate = [0.0] * size
    for level in range(128):
        members = [bin_ for bin_ in range(size) if bin_ * 128 // size == level and reference[bin_]]
        for bin_ in members:
            candidate[bin_] = sum(counts[other] for other in members) / len(members)
    total, kept = sum(reference), sum(candidate)
    pairs = [(p / total, max(q / kept, 1e-12)) for p, q in zip(reference, candidate, strict=True) if p]
    return sum(p * math.log(p / q) for p, q in pairs)


def test_entropy_has_the_least_divergence_as_published() -> None:
    torch.manual_seed(0)
    observer = watching("entropy", torch.randn(100_000).abs() ** 1.5)
    assert isinstance(observer, HistogramObserver)
    counts, width = observer.histogram.magnitudes(2048)
    _, high = entropy_bounds(observer.histogram, 255)
    least = min(published_divergence(counts.tolist(), size) for size in range(128, len(counts) + 1, 40))
    assert published_divergence(counts.tolist(), round(high / width)) <= least * 1.02


@pytest.mark.parametrize("range_", ["entropy", "mse"])
def test_zeros_are_not_mistaken_for_the_signal(range_: Any) -> None:
    torch.manual_seed(0)
    signal = torch.randn(1_000_000).abs()
    observer = watching(range_, torch.tensor([200.0]), *[signal] * 20)  # so many values that the outlier is cut off
    dense = observer.qparams("uint8", True)
    for _ in range(4):
        observer.observe(torch.zeros(10_000_000))
    assert observer.qparams("uint8", True) == dense


@pytest.mark.parametrize("range_", ORDERLESS)
def test_order_and_batches_change_nothing(range_: Any) -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(1000) * 10.0**power for power in range(-12, 4)])
    whole = watching(range_, x).qparams("int8", True)
    assert watching(range_, *x.split(777)).qparams("int8", True) == whole
    assert watching(range_, *reversed(x.split(777))).qparams("int8", True) == whole
    assert watching(range_, *x[torch.randperm(len(x))].split(50)).qparams("int8", True) == whole


def test_every_value_is_in_the_bin_it_belongs_to() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(500) * 10.0**power for power in range(-6, 6)])
    observer = watching("mse", *x.split(100))
    assert isinstance(observer, HistogramObserver)
    histogram = observer.histogram
    truth = torch.bincount((x.double() / histogram.width).floor().long() - histogram.first, minlength=8192)
    assert histogram.counts.equal(truth)
    assert histogram.high - histogram.low > histogram.width * 4095  # bins are no wider than they must be


@pytest.mark.parametrize("range_", RANGES)
def test_signals_of_1e_minus_8_keep_their_bits(range_: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(10_000)
    small, large = watching(range_, x * 1e-8), watching(range_, x)
    assert small.qparams("uint8", False).scale == pytest.approx(large.qparams("uint8", False).scale * 1e-8, rel=0.05)


@pytest.mark.parametrize("range_", RANGES)
def test_nan_and_infinity_are_as_if_they_were_not_there(range_: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(1000)
    broken = torch.cat([x, torch.tensor([math.nan, math.inf, -math.inf])])
    assert watching(range_, broken).qparams("uint8", False) == watching(range_, x).qparams("uint8", False)


@pytest.mark.parametrize("range_", RANGES)
def test_with_nothing_finite_there_is_no_range(range_: Any) -> None:
    observer = watching(range_, torch.empty(0, 5), torch.tensor([math.nan, math.inf]))
    assert not observer.seen
    with pytest.raises(EngineError, match="calibration-failed"):
        observer.qparams("uint8", False)
    observer.observe(torch.zeros(2))
    assert observer.seen
    assert observer.qparams("uint8", False).zero_point == 0


@pytest.mark.parametrize("range_", RANGES)
def test_memory_does_not_grow_with_the_samples(range_: Any) -> None:
    observer = watching(range_, torch.randn(1000))

    def state() -> int:
        held = observer.histogram if isinstance(observer, HistogramObserver) else observer
        return len(pickle.dumps(held))

    before = state()
    for power in range(30):
        observer.observe(torch.randn(1000) * 2.0**power)
    assert state() <= before + 100


def test_a_round_trip_keeps_shape_and_dtype_and_clips() -> None:
    q = QParams(scale=0.5, zero_point=10, qmin=0, qmax=127)
    x = torch.tensor([[-100.0, 0.2, 0.3], [1.0, 58.4, 1000.0]], dtype=torch.bfloat16)
    assert fake_quantize(x, q).dtype == torch.bfloat16
    assert fake_quantize(x, q).tolist() == [[-5.0, 0.0, 0.5], [1.0, 58.5, 58.5]]
