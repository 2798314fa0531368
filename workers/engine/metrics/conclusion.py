"""What the numbers mean, in a sentence or two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scipy import stats

from fewbit.contract.metrics import is_share
from fewbit.contract.report import SQNR_CAP_DB, ClassAccuracy, Flip, Metric, OutputSimilarity
from workers.engine.metrics.paired import describe_interval

UNLIKELY = 0.05  # probability that any class differs by chance, divided among all classes (Bonferroni)


def conclusion(
    metrics: Sequence[Metric],
    output: OutputSimilarity,
    flips: Sequence[Flip],
    classes: Sequence[ClassAccuracy],
    samples: int,
    synthetic: bool,
) -> str:
    """About the metrics if there are labels, else about the outputs, which do not show accuracy."""
    if not metrics:
        return " ".join(_output_sentences(output, samples, synthetic))
    sentences = [_metric_sentence(metric, samples) for metric in metrics]
    return " ".join([*sentences, *_flip_sentences(flips, output), *_class_sentences(classes)])


def _metric_sentence(metric: Metric, samples: int) -> str:
    name, before, after = _title(metric), _value(metric, metric.before), _value(metric, metric.after)
    moved = f"{name} went from {before} to {after}" if metric.delta else f"{name} is {before} before and after"
    if metric.ci95 is None:
        return f"{moved}, on {_count(samples)}: too few for an interval."
    low, high = metric.ci95
    unit = " points" if is_share(metric.name) else ""
    interval = f"95 % interval {_change(metric, low)} to {_change(metric, high)}{unit}"
    return f"{moved}: {describe_interval(metric.name, low, high, samples)} ({interval})."


def _flip_sentences(flips: Sequence[Flip], output: OutputSimilarity) -> Iterator[str]:
    if flips:
        yield f"{len(flips)} {'prediction' if len(flips) == 1 else 'predictions'} changed."
    elif output.top1_agreement == 1:
        yield "No prediction changed."


def _class_sentences(classes: Sequence[ClassAccuracy]) -> Iterator[str]:
    """The classes that changed by more than chance explains, assuming that all classes are alike."""
    if len(classes) < 2:
        return
    affected = [label for label in classes if _p_value(label, classes) < UNLIKELY / len(classes)]
    if affected:
        first = affected[0]
        count = "1 label is" if len(affected) == 1 else f"{len(affected)} labels are"
        shares = f"{_percent(first.before)} to {_percent(first.after)} of its {first.samples}"
        yield f"{count} affected more than the others: label {first.label} went from {shares}."


def _p_value(label: ClassAccuracy, classes: Sequence[ClassAccuracy]) -> float:
    """Of Fisher's exact test: does this class lose (or gain) more of its samples than all others together?"""
    sign = -1 if label.delta < 0 else 1
    moved = max(round(sign * label.delta * label.samples), 0)
    others = [other for other in classes if other is not label]
    others_moved = sum(max(round(sign * other.delta * other.samples), 0) for other in others)
    others_samples = sum(other.samples for other in others)
    table = [[moved, label.samples - moved], [others_moved, others_samples - others_moved]]
    return float(stats.fisher_exact(table, "greater").pvalue) if moved else 1.0


def _output_sentences(output: OutputSimilarity, samples: int, synthetic: bool) -> Iterator[str]:
    if synthetic:
        yield "The inputs were made up from the model's signature: this is closeness of outputs, not accuracy."
    else:
        yield "No metric on labels: this is closeness of outputs, not accuracy."
    if output.sqnr_db >= SQNR_CAP_DB:
        on = "the only sample" if samples == 1 else f"all {samples} samples"
        yield f"The int8 output equals the float output on {on}."
        return
    close = f"The int8 output is {output.sqnr_db:.1f} dB from float (SQNR), cosine {output.cosine:.4f}"
    if output.top1_agreement is not None:
        close += f", and the top class is the same for {_percent(output.top1_agreement)} of {_count(samples)}"
    yield f"{close}."


def _title(metric: Metric) -> str:
    return "Accuracy" if metric.name == "accuracy" else metric.name


def _value(metric: Metric, value: float) -> str:
    return _percent(value) if is_share(metric.name) else f"{value:.4g}"


def _change(metric: Metric, value: float) -> str:
    return f"{100 * value:+.2f}" if is_share(metric.name) else f"{value:+.3g}"


def _count(samples: int) -> str:
    return "1 sample" if samples == 1 else f"{samples} samples"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %".replace("100.00 %", "100 %")
