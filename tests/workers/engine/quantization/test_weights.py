"""Integer weights: the properties any quantization must have, on any weight in any layout."""

import math
import resource
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.contract.spec import Weights
from workers.engine.quantization import weights as module
from workers.engine.quantization.weight_statistics import weight_stats
from workers.engine.quantization.weights import clip_bound, quantize_weight, sqnr_db
from workers.errors import EngineError

LAYOUTS = {
    "linear": ((24, 32), (1,)),
    "addmm": ((32, 24), (0,)),
    "conv": ((8, 16, 3, 3), (1, 2, 3)),
    "conv_transpose": ((16, 8, 3, 3), (0, 2, 3)),
    "bmm": ((3, 32, 8), (1,)),
    "embedding": ((50, 16), (1,)),
}

GRANULARITIES = ({}, {"granularity": "per_tensor"}, {"granularity": "per_group", "group_size": 8})


def asked(**fields: Any) -> Weights:
    return Weights.model_validate(fields)


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 32))
    scale = 10.0 ** draw(st.integers(-30, 30))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(rows, columns) * scale


@given(weights(), st.sampled_from(["per_channel", "per_tensor"]), st.sampled_from([("int8", 127), ("int4", 7)]))
@settings(max_examples=100, deadline=None)
def test_no_weight_is_off_by_more_than_half_a_step(
    weight: torch.Tensor, granularity: str, dtype: tuple[str, int]
) -> None:
    quantized = quantize_weight(weight, asked(granularity=granularity, dtype=dtype[0]))
    error = (quantized.dequantize().double() - weight.double()).abs()
    assert bool((error <= quantized.scale.double() * 0.5001).all())
    assert int(quantized.values.abs().max()) == dtype[1]
    assert all(math.isfinite(number) for number in weight_stats(weight, quantized).sqnr_db.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_per_channel_keeps_one_scale_for_each_index_of_the_axes_not_summed_over(layout: str) -> None:
    shape, reduce = LAYOUTS[layout]
    weight = torch.randn(shape)
    quantized = quantize_weight(weight, Weights(), reduce)
    assert quantized.scale.equal(weight.abs().amax(reduce, keepdim=True) / 127)
    assert quantized.values.equal((weight / quantized.scale).round().to(torch.int8))
    assert quantized.values.is_contiguous()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_per_group_splits_the_longest_axis_summed_over(layout: str) -> None:
    shape, reduce = LAYOUTS[layout]
    weight = torch.randn(shape)
    quantized = quantize_weight(weight, asked(dtype="int4", granularity="per_group", group_size=8), reduce)
    axis = reduce[0]
    assert (quantized.axis, quantized.group_size) == (axis, 8)
    others = tuple(dim for dim in reduce if dim != axis)
    for group, members in enumerate(weight.split(8, axis)):
        largest = members.abs().amax((axis, *others), keepdim=True)
        assert quantized.scale.narrow(axis, group, 1).equal(largest / 7)
    step = quantized.scale.repeat_interleave(8, axis)
    assert bool(((quantized.dequantize() - weight).abs() <= step * 0.5001).all())


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("range_", ["minmax", "mse", {"percentile": 90.0}])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_change_nothing(
    layout: str, range_: Any, granularity: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, reduce = LAYOUTS[layout]
    weight, settings = torch.randn(shape), asked(range=range_, **granularity)
    whole = quantize_weight(weight, settings, reduce)
    stats = weight_stats(weight, whole, reduce)
    monkeypatch.setattr(module, "BLOCK", 7)  # smaller than a row: every path that streams
    pieces = quantize_weight(weight, settings, reduce)
    assert pieces.scale.allclose(whole.scale, rtol=0.03 if range_ == "mse" else 1e-6)
    if range_ != "mse":  # two clips may tie; their error cannot differ
        assert pieces.values.equal(whole.values)
    assert sqnr_db(weight, pieces.dequantize()) == pytest.approx(sqnr_db(weight, whole.dequantize()), abs=0.01)
    in_pieces = weight_stats(weight, whole, reduce)
    assert in_pieces.histogram.counts == stats.histogram.counts
    assert in_pieces.sqnr_db == pytest.approx(stats.sqnr_db, abs=0.01)
    assert in_pieces.kurtosis == pytest.approx(stats.kurtosis, rel=1e-4)


def test_a_weight_in_any_strides_is_the_same_weight() -> None:
    weight = torch.randn(48, 40)
    turned = quantize_weight(weight.T.contiguous().T, Weights())
    assert turned.values.equal(quantize_weight(weight, Weights()).values)
    half = quantize_weight(weight.to(torch.bfloat16), Weights())
    assert half.values.equal(quantize_weight(weight.to(torch.bfloat16).float(), Weights()).values)


@pytest.mark.parametrize("range_", ["minmax", "mse", {"percentile": 60.0}, {"clip": [-0.1, 0.1]}])
def test_int4_stays_within_seven_steps_whatever_the_range(range_: Any) -> None:
    weight = torch.randn(8, 512)
    quantized = quantize_weight(weight, asked(dtype="int4", range=range_))
    assert int(quantized.values.amax()) == 7
    assert int(quantized.values.amin()) == -7


@pytest.mark.parametrize("magnitude", [1e-8, 1e-38])
def test_the_smallest_weights_keep_their_precision(magnitude: float) -> None:
    weight = torch.randn(16, 64) * magnitude
    assert sqnr_db(weight, quantize_weight(weight, Weights()).dequantize()) > 35
    assert weight_stats(weight, quantize_weight(weight, Weights())).sqnr_db["per_channel"] > 35


def test_a_row_of_zeros_stays_zeros() -> None:
    weight = torch.zeros(2, 8)
    quantized = quantize_weight(weight, Weights())
    assert quantized.dequantize().equal(weight)
    assert weight_stats(weight, quantized).histogram.counts == (16,)


@pytest.mark.parametrize("range_", ["minmax", "mse", {"percentile": 99.0}, {"clip": [-1.0, 1.0]}])
def test_a_row_of_zeros_has_a_scale_that_a_bias_can_be_divided_by(range_: Any) -> None:
    quantized = quantize_weight(torch.stack([torch.zeros(8), torch.randn(8)]), asked(range=range_))
    assert float(quantized.scale[0]) == pytest.approx(1 / 127)


def test_mostly_zeros_survive_a_percentile() -> None:
    weight = torch.zeros(1, 100)
    weight[0, 0] = 0.01
    quantized = quantize_weight(weight, asked(range={"percentile": 90.0}))
    assert quantized.dequantize()[0, 0] == pytest.approx(0.01)


@pytest.mark.parametrize("qmax", [127, 7])
@pytest.mark.parametrize("outlier", [0.0, 12.0, 1000.0])
def test_the_mse_range_finds_the_least_error_there_is(qmax: int, outlier: float) -> None:
    torch.manual_seed(0)
    rows = torch.randn(8, 4096)
    rows[:, 0] += outlier

    def error(bound: torch.Tensor) -> torch.Tensor:
        step = (bound / qmax)[:, None]
        return ((rows / step).round().clamp(-qmax, qmax) * step - rows).square().sum(1)

    largest = rows.abs().amax(1)
    least = torch.stack([error(largest * part / 1000) for part in range(1, 1001)]).amin(0)
    assert bool((error(clip_bound(rows, "mse", qmax)) <= least * 1.03).all())


def test_the_mse_range_leaves_weights_that_are_integers_already() -> None:
    weight = torch.randint(-127, 128, (4, 512)).float()
    weight[:, 0] = 127.0
    assert quantize_weight(weight, Weights(range="mse")).dequantize().equal(weight)


def test_a_percentile_is_a_quantile_of_the_magnitudes() -> None:
    torch.manual_seed(0)
    rows = torch.randn(3, 10_001)
    bound = clip_bound(rows, asked(range={"percentile": 99.0}).range)
    assert bound.tolist() == pytest.approx(torch.quantile(rows.abs(), 0.99, dim=1).tolist(), rel=1e-2)


def test_an_explicit_clip_bounds_what_is_representable() -> None:
    weight = torch.tensor([[0.5, 3.0, -4.0]])
    quantized = quantize_weight(weight, asked(range={"clip": [-1, 1]}))
    assert quantized.dequantize().tolist()[0][1:] == pytest.approx([1.0, -1.0])
    assert weight_stats(weight, quantized).saturated_ratio == pytest.approx(2 / 3)


def test_the_statistics_of_one_outlier_show_it() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 64) * 0.01
    weight[0, 0] = 10.0
    stats = weight_stats(weight, quantize_weight(weight, Weights(granularity="per_tensor")))
    assert stats.zeroed_ratio > 0.9
    assert stats.outlier_ratio == pytest.approx(1 / 4096)
    assert stats.kurtosis > 1000
    assert stats.sqnr_db["per_channel"] > stats.sqnr_db["per_tensor"]
    assert sum(stats.histogram.counts) == weight.numel()


def test_the_statistics_are_those_of_the_definition() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 100) + 0.5
    quantized = quantize_weight(weight, asked(granularity="per_group", group_size=20, dtype="int4"))
    stats = weight_stats(weight, quantized)
    exact = weight.double()
    centred = exact - exact.mean()
    assert (stats.min, stats.max) == (float(weight.min()), float(weight.max()))
    assert stats.std == pytest.approx(float(exact.std(correction=0)), rel=1e-5)
    assert stats.kurtosis == pytest.approx(float(centred.pow(4).mean() / centred.square().mean() ** 2), rel=1e-4)
    assert stats.histogram.counts == pytest.approx(torch.histc(weight, 64).int().tolist(), abs=1)
    assert stats.sqnr_db["per_group"] == pytest.approx(sqnr_db(weight, quantized.dequantize()), abs=0.01)
    channel = quantize_weight(weight, asked(dtype="int4")).dequantize()
    assert stats.sqnr_db["per_channel"] == pytest.approx(sqnr_db(weight, channel), abs=0.01)


def test_a_group_size_that_does_not_divide_says_so() -> None:
    with pytest.raises(EngineError, match=r"quantization-failed.*axis 1 .*groups of 24"):
        quantize_weight(torch.randn(8, 100), asked(granularity="per_group", group_size=24))


@pytest.mark.parametrize("range_", ["minmax", "mse", {"percentile": 60.0}, {"clip": [-1, 1]}])
def test_weights_that_are_not_finite_are_refused(range_: Any) -> None:
    weight = torch.randn(4, 8)
    weight[1, 2] = math.nan
    with pytest.raises(EngineError, match="quantization-failed"):
        quantize_weight(weight, asked(range=range_))


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_a_large_weight_takes_little_more_than_its_int8_copy(granularity: str) -> None:
    weight = torch.randn(8192, 4096)  # 128 MB, and 32 MB of int8
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    quantized = quantize_weight(weight, asked(granularity=granularity))
    weight_stats(weight, quantized)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
