"""``make demo``: train three small models, quantize them through the service, and check the claims of the reports.

The check runs every artifact in an interpreter that has only torch, and compares its predictions one by one: they must
equal the float model's except for the samples that the report lists as flips. Exit code 0 means that everything held.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.rule import Rule
from rich.table import Table
from torch import nn

from fewbit.client import Client
from fewbit.client.progress import follow
from fewbit.contract.report import Accuracy, Report, ReportArtifact
from fewbit.contract.spec import Evaluation, JobSpec
from fewbit.errors import FewbitError
from fewbit.rendering import terminal
from fewbit.rendering.numbers import kilobytes
from local import digits
from local.alone import predictions
from local.stack import Stack, StackError

console = terminal.standard_output()


@dataclass(frozen=True)
class Trained:
    """A model of the demo: the module, and the ``.pt2`` a user would upload."""

    name: str
    module: nn.Module
    path: Path


@dataclass(frozen=True)
class Check:
    """What the report claims about an artifact, and what was found."""

    model: str
    artifact: str
    claim: str
    found: str

    @property
    def holds(self) -> bool:
        return self.claim == self.found


def main() -> int:
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="fewbit-demo-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        failures = demo(folder)
    except (FewbitError, StackError, RuntimeError) as error:
        failures = [str(error)]
    except KeyboardInterrupt:
        failures = ["interrupted"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    console.print(Rule(style="dim"))
    for failure in failures:
        console.print(f"FAILED: {failure}", style="bold red", markup=False, highlight=False)
    if not failures:
        console.print("Everything the reports claim is true.", style="bold green")
    console.print(f"{time.monotonic() - began:.0f} s. Nothing is left running.", style="dim", highlight=False)
    return 1 if failures else 0


def demo(folder: Path) -> list[str]:
    """The claims that did not hold, in words."""
    console.print("Training three models on scikit-learn's handwritten digits.", style="bold")
    trained = [train(name, folder) for name in digits.TRAININGS]
    test = digits.save_test_npz(folder / "test.npz")
    console.print("\nStarting Redis, gateway and workers on this machine.", style="bold")
    failures = []
    with Stack(folder / "stack") as stack, stack.client() as client:
        console.print(f"Fewbit runs at {stack.url}.\n", highlight=False)
        dataset = client.upload_dataset(test).id
        reports = [quantize(client, model, dataset) for model in trained]
        checks = []
        for model, report in zip(trained, reports, strict=True):
            failures += [f"{model.name}: the verdict is fail"] if report.verdict == "fail" else []
            checks += check(client, model, report, folder / model.name)
    console.print(Rule("the artifacts, run with torch alone", style="dim"))
    print_checks(checks)
    differing = [
        f"{done.model}, {done.artifact}: {done.found}, reported: {done.claim}" for done in checks if not done.holds
    ]
    return failures + differing


def train(name: str, folder: Path) -> Trained:
    """Raises ``RuntimeError`` below 95 %, where the demo would prove nothing."""
    began = time.monotonic()
    module, example = digits.TRAININGS[name]()
    accuracy = digits.accuracy(module)
    path = digits.export_pt2(module, example, folder / f"{name}.pt2")
    seconds = time.monotonic() - began
    size = kilobytes(path.stat().st_size)
    console.print(f"  {name:<12} {accuracy:.2%} on held-out images   {size:>8}   {seconds:4.1f} s", highlight=False)
    if accuracy < 0.95:
        raise RuntimeError(f"{name} learned too little: {accuracy:.2%}")
    return Trained(name, module, path)


def quantize(client: Client, trained: Trained, dataset: str) -> Report:
    """What a pipeline does: upload, post, wait, read the report."""
    model = client.upload_model(trained.path)
    job = client.create_job(JobSpec(model=model.id, evaluation=Evaluation(dataset=dataset)))
    follow(client, job, console, trained.name)
    report = client.report(job)
    terminal.print_report(report, console, trained.path.name)
    console.print()
    return report


def check(client: Client, trained: Trained, report: Report, folder: Path) -> list[Check]:
    """Download and run the artifacts. Raises ``RuntimeError`` if one that the spec asks for is missing."""
    folder.mkdir()
    missing = set(report.spec.artifacts) - {artifact.kind for artifact in report.artifacts}
    if missing or report.accuracy is None:
        raise RuntimeError(f"{trained.name}: the report lacks {', '.join(missing) or 'accuracy'}")
    checks: list[Check] = []
    for artifact in report.artifacts:
        path = client.download(report.job, artifact.name, folder / artifact.name)
        checks += check_artifact(trained, artifact, path, report.accuracy, report.provenance.threads)
    return checks


def check_artifact(
    trained: Trained, artifact: ReportArtifact, path: Path, accuracy: Accuracy, threads: int
) -> Iterator[Check]:
    """Check accuracy and flips for the artifact they were measured on, and agreement with float for the others."""
    test = digits.load_digits()
    before = digits.predict(trained.module, test.x_test, accuracy.batch_size).tolist()
    after = predictions(path, test.x_test, accuracy.batch_size, threads)
    if artifact.name == accuracy.artifact:
        reported = next(metric.after for metric in accuracy.metrics if metric.name == "accuracy")
        measured = float((torch.tensor(after) == test.labels_test).double().mean())
        yield Check(trained.name, path.name, f"{reported:.4%} accuracy", f"{measured:.4%} accuracy")
        claimed = {flip.sample: flip.after for flip in accuracy.flips}
        expected = [claimed.get(sample, float_class) for sample, float_class in enumerate(before)]
        same = sum(a == b for a, b in zip(after, expected, strict=True))
        flipped = sum(a != b for a, b in zip(after, before, strict=True))
        claim = f"{len(claimed)} flips, {len(expected)} predictions"
        yield Check(trained.name, path.name, claim, f"{flipped} flips, {same} predictions")
    elif artifact.output and artifact.output.top1_agreement is not None:
        agreeing = sum(a == b for a, b in zip(after, before, strict=True)) / len(before)
        claim = f"{artifact.output.top1_agreement:.4%} agree with float"
        yield Check(trained.name, path.name, claim, f"{agreeing:.4%} agree with float")


def print_checks(checks: list[Check]) -> None:
    table = Table("model", "artifact", "the report says", "found here", "", box=SIMPLE_HEAD, pad_edge=False)
    for done in checks:
        table.add_row(done.model, done.artifact, done.claim, done.found, "✓" if done.holds else "[bold red]DIFFERS[/]")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
