"""What a person reads on a terminal of 100 columns."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from fewbit.contract.report import Metric, Report
from fewbit.rendering import terminal, words
from tests.fewbit.example import full_report, layer
from tests.fewbit.example import report as example_report


def printed(report: Report, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    terminal.print_report(report, console, "transformer.pt2")
    return console.file.getvalue()  # type: ignore[attr-defined]


def metric(delta: float, low: float, high: float) -> Metric:
    return Metric(name="accuracy", before=0.98, after=0.98 + delta, delta=delta, ci95=(low, high), p_value=0.5, note="")


def test_no_line_is_longer_than_the_terminal() -> None:
    assert max(map(len, printed(example_report()).splitlines())) <= 100


def test_the_verdict_comes_first() -> None:
    first = printed(example_report()).strip().splitlines()[0]
    assert first.split()[0] == "PASS"
    assert "transformer.pt2" in first


def test_every_layer_has_a_row_with_its_whole_name() -> None:
    report = example_report()
    flat = "".join(line.split()[0] for line in printed(report).splitlines() if line.split())
    assert all(layer.name in flat for layer in report.layers)


def test_a_float_layer_says_why_and_how_to_change_it() -> None:
    text = printed(example_report())
    assert "excluded-by-user  classifier" in text
    assert "→ Take the pattern out of `layers`." in text
    assert 'spec: {"layers": []}' in text


def test_a_reason_of_plain_quantize_dynamic_appears_once_for_all_its_layers() -> None:
    text = " ".join(printed(example_report()).split())
    assert "encoder.layers.1.self_attn.in_proj and 1 more" in text
    assert text.count("keeps its input projection as a bare Parameter") == 1


def test_findings_come_worst_first() -> None:
    text = printed(example_report())
    assert text.index("weight-outlier") < text.index("fused")


def test_an_unmet_gate_stands_out() -> None:
    assert "FAILS min_speedup: limit 1.2, not measured" in printed(example_report())


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (metric(-0.002, -0.006, 0.002), "−0.20 points: not distinguishable from zero with 512 samples"),
        (metric(-0.05, -0.07, -0.03), "−5.00 points: a real loss, −7.00 to −3.00 (95 %)"),
        (metric(0.05, 0.03, 0.07), "+5.00 points: a real gain, +3.00 to +7.00 (95 %)"),
        (metric(0.0, 0.0, 0.0), "±0.00 points: not distinguishable from zero with 512 samples"),
    ],
)
def test_an_accuracy_difference_is_put_in_words(measured: Metric, said: str) -> None:
    assert words.drop_words(measured, 512) == said


def test_synthetic_numbers_are_never_presented_as_accuracy() -> None:
    measured = example_report().accuracy
    assert measured is not None
    synthetic = measured.model_copy(update={"kind": "synthetic", "labelled": False, "metrics": ()})
    assert words.accuracy_words(synthetic) == ("31.2 dB", "output SQNR\n512 samples\nsynthetic inputs: weak")


def test_a_slower_artifact_is_called_slower() -> None:
    latency = example_report().latency
    assert latency is not None
    slow = latency.model_copy(update={"artifacts": {"pt2": latency.artifacts["pt2"]}})
    assert words.speed_words(slow)[0] == "0.56 × (slower)"


def test_an_analyze_job_is_shown_too() -> None:
    nothing: dict[str, Any] = {"accuracy": None, "latency": None, "artifacts": [], "findings": [], "gates": []}
    report = example_report(**nothing, size={"before": 100, "after": None, "ratio": None})
    assert "not measured" in printed(report)
    assert words.size_words(report) == ("—", "100 bytes before\nthis job made no artifact")


def test_the_root_module_has_a_name() -> None:
    assert "(root)" in printed(example_report(layers=[layer("")]))


def test_markup_in_a_layer_name_is_text() -> None:
    assert "[red]x[/red]" in printed(example_report(layers=[layer("[red]x[/red]")]))


def test_long_names_break_after_dots() -> None:
    assert (
        terminal.break_at_dots("encoder.layer.0.attention.self.query", 28) == "encoder.layer.0.attention.\nself.query"
    )
    assert terminal.break_at_dots("x" * 30, 28) == "x" * 28 + "\nxx"


def test_several_metrics_get_one_line_each_and_only_shares_are_percentages() -> None:
    report = example_report()
    assert report.accuracy is not None
    squared = Metric(
        name="mean_squared_error", before=0.51234, after=0.53, delta=0.01766, ci95=(0.01, 0.02), p_value=0.002,
        note="a loss beyond chance with 512 samples; over all 3 columns",
    )  # fmt: skip
    more = (*report.accuracy.metrics, squared)
    text = printed(report.model_copy(update={"accuracy": report.accuracy.model_copy(update={"metrics": more})}))
    assert "mean_squared_error  0.512 → 0.53  a loss beyond chance with 512 samples" in text
    assert "accuracy  97.27 % → 97.07 %" in text
    assert "a real loss, +0.01 to +0.02" in words.drop_words(squared, 512)


def test_a_terminal_shows_what_was_measured_of_each_layer_and_the_model() -> None:
    text = printed(full_report())
    assert max(map(len, text.splitlines())) <= 100
    assert "(2) 0.21 ms" in text
    assert "Most sensitive layers: what the output loses if only that layer is quantized" in text
    assert "+0.8 dB if it stays float" in text
    assert "128 samples; the ranges had settled after 64." in text
    assert "Input mask never changes." in text


def test_a_layer_that_differs_from_the_spec_is_marked() -> None:
    asked = {"quantized": True, "weights": {"dtype": "int8", "granularity": "per_channel"}, "activations": "dynamic"}
    held = layer("a", quantized=False, scheme=None, requested=asked)
    text = printed(example_report(layers=[held]))
    assert "float ≠" in text
    assert "≠ not what the spec asked for" in text
    assert "≠" not in printed(full_report())


def test_a_regression_metric_is_not_a_percentage() -> None:
    error = Metric(
        name="mean_squared_error", before=0.5, after=0.6, delta=0.1, ci95=(0.05, 0.15), p_value=0.01, note=""
    )
    assert words.drop_words(error, 10) == "+0.1: a real loss, +0.05 to +0.15 (95 %)"
    assert words.metric_value(error, 0.5) == "0.5"
