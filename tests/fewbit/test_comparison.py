"""Jobs side by side: what is best, what differs, what is missing."""

from __future__ import annotations

from fewbit.rendering.comparison import Comparison, compare
from fewbit.rendering.comparison_markdown import comparison_markdown
from fewbit.rendering.html.comparison_page import comparison_page
from tests.fewbit.example import full_report, layer, report


def sides() -> Comparison:
    small = {"before": 100, "after": 20, "ratio": 0.2}
    large = {"before": 100, "after": 40, "ratio": 0.4}
    first = report(job="job_a", size=small, layers=[layer("a"), layer("b"), layer("d")])
    second = report(
        job="job_b",
        size=large,
        accuracy=None,
        layers=[layer("c"), layer("b", quantized=False, scheme=None, error={"output_sqnr_db": 99.0}), layer("d")],
    )
    return compare([first, second])


def numbers(comparison: Comparison) -> dict[str, tuple[tuple[float | None, ...], tuple[int, ...]]]:
    return {number.name: (number.values, number.best) for number in comparison.summary}


def test_the_best_value_of_a_row_is_known_with_its_direction() -> None:
    told = numbers(sides())
    assert told["size.after"] == ((20, 40), (0,))
    assert told["coverage.parameters"] == ((0.9712, 0.9712), ())


def test_an_error_metric_is_better_when_it_is_lower() -> None:
    measured = full_report().accuracy
    assert measured
    metric = measured.metrics[0].model_copy(update={"name": "mean_squared_error", "after": 0.5})
    worse = metric.model_copy(update={"after": 0.7})
    jobs = [
        report(job=f"job_{measure.after}", accuracy=measured.model_copy(update={"metrics": (measure,)}).model_dump())
        for measure in (metric, worse)
    ]
    assert numbers(compare(jobs))["accuracy.mean_squared_error"] == ((0.5, 0.7), (0,))


def test_an_unmeasured_value_is_null_and_not_best() -> None:
    assert numbers(sides())["output.sqnr_db"] == ((31.2, None), ())


def test_layers_are_matched_by_name_and_missing_ones_are_null() -> None:
    layers = {layer.name: layer for layer in sides().layers}
    assert list(layers) == ["a", "b", "d", "c"]
    assert layers["a"].jobs[1] is None
    assert layers["a"].differences == ("missing",)
    assert layers["c"].jobs[0] is None


def test_layers_that_differ_say_how() -> None:
    layers = {layer.name: layer for layer in sides().layers}
    assert layers["b"].differences == ("quantized", "scheme")
    assert layers["b"].best == (1,)
    assert layers["d"].differences == ()


def test_markdown_marks_the_best_and_names_the_missing() -> None:
    written = comparison_markdown(sides())
    assert "| size\\.after ↓ |" in written or "| size.after ↓ | **20 bytes** | 40 bytes |" in written
    assert "| `a` | int8, 38.2 dB | missing |" in written
    assert "3 of 4 layers differ" in written


def test_markdown_of_300_layers_fits_a_comment() -> None:
    fewer = full_report(200, job="job_b")
    assert len(comparison_markdown(compare([full_report(300), fewer])).splitlines()) < 60


def test_the_page_marks_rows_that_differ() -> None:
    page = comparison_page(sides())
    assert page.count('<tr class="differs">') == 3
    assert page.count('<tr class="same">') == 1
    assert ">missing<" in page
