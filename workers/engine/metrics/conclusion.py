"""What the numbers mean, in a sentence or two for a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scipy import stats

from fewbit.contract.metrics import is_share
from fewbit.contract.report import SQNR_CAP_DB, ClassAccuracy, Flip, Metric, OutputSimilarity
from workers.engine.metrics.paired import in_words

UNLIKELY = 0.05  # of a class that differs by chance, shared out over all classes (Bonferroni)


def conclusion(
    metrics: Sequence[Metric],
    output: OutputSimilarity,
    flips: Sequence[Flip],
    classes: Sequence[ClassAccuracy],
    samples: int,
    synthetic: bool,
) -> str:
    """With labels of the metrics; without them of the outputs, which are no accuracy."""
    if not metrics:
        return " ".join(_of_outputs(output, samples, synthetic))
    sentences = [_of_metric(each, samples) for each in metrics]
    return " ".join([*sentences, *_of_flips(flips, output), *_of_classes(classes)])


def _of_metric(metric: Metric, samples: int) -> str:
    name, before, after = _named(metric), _value(metric, metric.before), _value(metric, metric.after)
    moved = f"{name} went from {before} to {after}" if metric.delta else f"{name} is {before} before and after"
    if metric.ci95 is None:
        return f"{moved}, on {samples} samples: too few for an interval."
    low, high = metric.ci95
    unit = " points" if is_share(metric.name) else ""
    interval = f"95 % interval {_change(metric, low)} to {_change(metric, high)}{unit}"
    return f"{moved}: {in_words(metric.name, low, high, samples)} ({interval})."


def _of_flips(flips: Sequence[Flip], output: OutputSimilarity) -> Iterator[str]:
    if flips:
        yield f"{len(flips)} {'prediction' if len(flips) == 1 else 'predictions'} changed."
    elif output.top1_agreement == 1:
        yield "No prediction changed."


def _of_classes(classes: Sequence[ClassAccuracy]) -> Iterator[str]:
    """The classes that changed by more than chance explains, were all classes alike."""
    if len(classes) < 2:
        return
    affected = [each for each in classes if _beyond_others(each, classes) < UNLIKELY / len(classes)]
    if affected:
        first = affected[0]
        count = "1 label is" if len(affected) == 1 else f"{len(affected)} labels are"
        shares = f"{_percent(first.before)} to {_percent(first.after)} of its {first.samples}"
        yield f"{count} affected more than the others: label {first.label} went from {shares}."


def _beyond_others(one: ClassAccuracy, classes: Sequence[ClassAccuracy]) -> float:
    """p-value of Fisher's exact test: does this class lose (or gain) more of its samples than the others together?"""
    way = -1 if one.delta < 0 else 1
    moved = max(round(way * one.delta * one.samples), 0)
    others = [each for each in classes if each is not one]
    others_moved = sum(max(round(way * each.delta * each.samples), 0) for each in others)
    others_samples = sum(each.samples for each in others)
    table = [[moved, one.samples - moved], [others_moved, others_samples - others_moved]]
    return float(stats.fisher_exact(table, "greater").pvalue) if moved else 1.0


def _of_outputs(output: OutputSimilarity, samples: int, synthetic: bool) -> Iterator[str]:
    if synthetic:
        yield "The inputs were made up from the model's signature: this is closeness of outputs, and no accuracy."
    else:
        yield "No metric on labels: this is closeness of outputs, and no accuracy."
    if output.sqnr_db >= SQNR_CAP_DB:
        yield f"The int8 output equals the float output on all {samples} samples."
        return
    close = f"The int8 output is {output.sqnr_db:.1f} dB from float (SQNR), cosine {output.cosine:.4f}"
    if output.top1_agreement is not None:
        close += f", and the top class is the same for {_percent(output.top1_agreement)} of {samples} samples"
    yield f"{close}."


def _named(metric: Metric) -> str:
    return "Accuracy" if metric.name == "accuracy" else metric.name


def _value(metric: Metric, value: float) -> str:
    return _percent(value) if is_share(metric.name) else f"{value:.4g}"


def _change(metric: Metric, value: float) -> str:
    return f"{100 * value:+.2f}" if is_share(metric.name) else f"{value:+.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %".replace("100.00 %", "100 %")
