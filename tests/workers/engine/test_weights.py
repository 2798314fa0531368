"""int8 weights: the properties any quantization must have, on any weight."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.spec import Weights
from workers.engine.weights import quantize_weight, sqnr_db, weight_stats


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 32))
    scale = 10.0 ** draw(st.integers(-30, 30))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(rows, columns) * scale


@given(weights(), st.sampled_from(["per_channel", "per_tensor"]))
@settings(max_examples=100, deadline=None)
def test_no_weight_is_off_by_more_than_half_a_step(weight: torch.Tensor, granularity: str) -> None:
    quantized = quantize_weight(weight, Weights.model_validate({"granularity": granularity}))
    error = (quantized.dequantize().double() - weight.double()).abs()
    assert bool((error <= quantized.scale.double()[:, None] * 0.5001).all())
    assert int(quantized.values.abs().max()) == 127


def test_weights_of_1e_minus_8_keep_their_precision() -> None:
    weight = torch.randn(16, 64) * 1e-8
    assert sqnr_db(weight, quantize_weight(weight, Weights()).dequantize()) > 35


def test_a_row_of_zeros_stays_zeros() -> None:
    weight = torch.zeros(2, 8)
    assert quantize_weight(weight, Weights()).dequantize().equal(weight)


def test_the_mse_range_beats_minmax_where_there_is_an_outlier() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 4096)
    weight[:, 0] = 12.0
    minmax = quantize_weight(weight, Weights()).dequantize()
    mse = quantize_weight(weight, Weights(range="mse")).dequantize()
    assert sqnr_db(weight, mse) > sqnr_db(weight, minmax)


def test_an_explicit_clip_bounds_what_is_representable() -> None:
    weight = torch.tensor([[0.5, 3.0, -4.0]])
    quantized = quantize_weight(weight, Weights.model_validate({"range": {"clip": [-1, 1]}}))
    assert quantized.dequantize().tolist()[0][1:] == pytest.approx([1.0, -1.0])
    assert weight_stats(weight, quantized).saturated_ratio == pytest.approx(2 / 3)


def test_the_statistics_of_one_outlier_show_it() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 64) * 0.01
    weight[0, 0] = 10.0
    stats = weight_stats(weight, quantize_weight(weight, Weights(granularity="per_tensor")))
    assert stats.zeroed_ratio > 0.9
    assert stats.kurtosis > 1000
    assert stats.sqnr_db["per_channel"] > stats.sqnr_db["per_tensor"]
    assert sum(stats.histogram.counts) == weight.numel()
