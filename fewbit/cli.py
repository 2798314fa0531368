"""The command line.

Exit codes: 0 the verdict is pass or warn, 1 the verdict is fail, 2 there is a problem.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from fewbit.client import Client
from fewbit.client.client import Progress
from fewbit.client.progress import bar, follow
from fewbit.contract.report import Report
from fewbit.contract.resources import Delivery, Job, Model, Webhook
from fewbit.errors import FewbitError
from fewbit.rendering import terminal
from fewbit.rendering.html.report_page import report_page
from fewbit.rendering.markdown import report_markdown
from fewbit.rendering.numbers import kilobytes

app = typer.Typer(
    help="Quantize PyTorch models to int8, and read why each layer is int8 or float.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
webhooks = typer.Typer(help="URLs that get a message when a job ends.", no_args_is_help=True)
app.add_typer(webhooks, name="webhooks")
out = terminal.standard_output()
err = Console(stderr=True)

FAILED, PROBLEM = 1, 2

Url = Annotated[str | None, typer.Option("--url", envvar="FEWBIT_URL", help="Where the service is.")]
Key = Annotated[str | None, typer.Option("--key", envvar="FEWBIT_KEY", help="Your API key.", show_envvar=True)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


class ReportFormat(StrEnum):
    """The formats a report can be written in."""

    terminal = "terminal"
    json = "json"
    markdown = "markdown"
    html = "html"


@app.command()
def quantize(  # typer reads the signature
    model: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="An exported program (.pt2).")],
    evaluate: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Arrays to measure on (.npz): inputs and labels.")
    ] = None,
    method: Annotated[str, typer.Option(help="dynamic, or analyze for a report without artifacts.")] = "dynamic",
    exclude: Annotated[list[str] | None, typer.Option(help="Pattern of layers to leave float. Repeatable.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="Fail if accuracy drops by more than this (0.01).")] = None,
    webhook: Annotated[
        str | None, typer.Option(help="The webhook (whk_...) that gets a message when the job ends.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", file_okay=False, help="Where the artifacts go.")] = Path(),
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Upload a model, quantize it, show the report, and save the artifacts."""
    with problems(), Client(url, key) as client:
        with bar(err) as bars:
            sent = client.upload_model(model, progress=_upload_bar(bars, model))
            data = client.upload_dataset(evaluate, progress=_upload_bar(bars, evaluate)) if evaluate else None
        client.inspected(sent)
        spec: dict[str, Any] = {"model": sent.id, "method": method}
        spec |= {"layers": [{"match": pattern, "quantize": False} for pattern in exclude or ()]}
        spec |= {"evaluation": {"dataset": data.id}} if data else {}
        spec |= {"gates": {"max_drop": {"accuracy": max_drop}}} if max_drop is not None else {}
        spec |= {"webhook": webhook} if webhook else {}
        job = client.create_job(spec)
        err.print(
            f"{job.id} goes on if you interrupt this: `fewbit report {job.id}` shows it",
            highlight=False,
            soft_wrap=True,
        )
        follow(client, job, err, model.name)
        report = client.report(job)
        _print_report(report, as_json, model.name)
        _save_artifacts(client, report, model.stem, folder)
    raise typer.Exit(FAILED if report.verdict == "fail" else 0)


@app.command("report")
def report_(
    job: str,
    report_format: Annotated[
        ReportFormat, typer.Option("--format", help="terminal, json, markdown for a pull request, or html.")
    ] = ReportFormat.terminal,
    file: Annotated[Path | None, typer.Option("--out", dir_okay=False, help="Write the report to this file.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Show or save a job's report. Waits if the job is still running."""
    with problems(), Client(url, key) as client:
        report = client.report(job)
        _write_report(report, ReportFormat.json if as_json else report_format, file, client.url)
    raise typer.Exit(FAILED if report.verdict == "fail" else 0)


@app.command()
def models(as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """List the uploaded models."""
    with problems(), Client(url, key) as client:
        _print_models(list(client.models()), as_json)


@app.command()
def jobs(as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """List the jobs."""
    with problems(), Client(url, key) as client:
        _print_jobs(list(client.jobs()), as_json)


@webhooks.command("create")
def create_webhook(address: str, as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """Send messages to an https:// address. Prints the id for jobs and, only now, the signing secret."""
    with problems(), Client(url, key) as client:
        made = client.create_webhook(address)
    if as_json:
        _print_json(made.model_dump_json())
    else:
        out.print(f"{made.id}\n{made.secret}", highlight=False, soft_wrap=True)


@webhooks.command("list")
def list_webhooks(as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """List the webhooks."""
    with problems(), Client(url, key) as client:
        _print_webhooks(client.webhooks(), as_json)


@webhooks.command("delete")
def delete_webhook(webhook: str, url: Url = None, key: Key = None) -> None:
    """Delete a webhook. It gets no more messages."""
    with problems(), Client(url, key) as client:
        client.delete_webhook(webhook)


@webhooks.command("test")
def send_test(webhook: str, url: Url = None, key: Key = None) -> None:
    """Send a test message now."""
    with problems(), Client(url, key) as client:
        sent = client.test_webhook(webhook)
    err.print(f"{sent.id} is being sent: `fewbit webhooks deliveries {webhook}`", highlight=False, soft_wrap=True)


@webhooks.command("deliveries")
def list_deliveries(webhook: str, as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """List the messages to a webhook, and whether they arrived."""
    with problems(), Client(url, key) as client:
        _print_deliveries(client.deliveries(webhook), as_json)


@contextmanager
def problems() -> Iterator[None]:
    """Print what is wrong, where, and what to do, instead of a traceback."""
    try:
        yield
    except FewbitError as error:
        _print_problem(str(error))
        raise typer.Exit(PROBLEM) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _print_problem(
            f"{where}{error.strerror or error}. What to do: name a file or folder that exists and that you may access."
        )
        raise typer.Exit(PROBLEM) from error
    except Exception as error:  # a bug: print it all; exit code 1 would read as a failed verdict
        traceback.print_exc()
        raise typer.Exit(PROBLEM) from error


def _print_problem(text: str) -> None:
    err.print(text, style="red", markup=False, highlight=False, soft_wrap=True)


def _upload_bar(bars: Bars, path: Path) -> Progress:
    task = bars.add_task(path.name, total=None, stage="upload")
    return lambda sent, size: bars.update(task, completed=sent, total=size)


def _save_artifacts(client: Client, report: Report, stem: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for artifact in report.artifacts:
        path = client.download(report.job, artifact.name, folder / f"{stem}.int8{_suffix(artifact.name)}")
        err.print(f"saved {path}", highlight=False)


def _suffix(name: str) -> str:
    return "".join(Path(name).suffixes)


def _print_report(report: Report, as_json: bool, title: str | None = None) -> None:
    if as_json:
        _print_json(report.model_dump_json(indent=2))
    else:
        terminal.print_report(report, out, title)


def _write_report(report: Report, report_format: ReportFormat, file: Path | None, base: str) -> None:
    """Write the report to ``file``, or to standard output without one."""
    if report_format is ReportFormat.terminal:
        with file.open("w", encoding="utf-8") if file else nullcontext() as to:
            terminal.print_report(report, Console(file=to, width=100) if to else out)
        return
    text = {
        ReportFormat.json: lambda: report.model_dump_json(indent=2) + "\n",
        ReportFormat.markdown: lambda: report_markdown(report, base),
        ReportFormat.html: lambda: report_page(report, base),
    }[report_format]()
    if file:
        file.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


def _print_models(listed: list[Model], as_json: bool) -> None:
    if as_json:
        _print_json("[" + ",".join(model.model_dump_json() for model in listed) + "]")
        return
    table = _table("model", "name", "size", "status", "layers")
    for model in listed:
        status = model.error.title if model.error else model.status
        table.add_row(model.id, Text(model.name or ""), kilobytes(model.size), status, str(len(model.layers)))
    out.print(table)


def _print_jobs(listed: list[Job], as_json: bool) -> None:
    if as_json:
        _print_json("[" + ",".join(job.model_dump_json() for job in listed) + "]")
        return
    table = _table("job", "model", "method", "status", "created")
    for job in listed:
        status = f"{job.status}: {job.error.title}" if job.error else job.status
        table.add_row(job.id, job.spec.model, job.spec.method, status, f"{job.created_at:%Y-%m-%d %H:%M}")
    out.print(table)


def _print_webhooks(listed: Sequence[Webhook], as_json: bool) -> None:
    if as_json:
        _print_json("[" + ",".join(webhook.model_dump_json() for webhook in listed) + "]")
        return
    table = _table("webhook", "url", "created")
    for webhook in listed:
        table.add_row(webhook.id, Text(webhook.url), f"{webhook.created_at:%Y-%m-%d %H:%M}")
    out.print(table)


def _print_deliveries(listed: Sequence[Delivery], as_json: bool) -> None:
    if as_json:
        _print_json("[" + ",".join(delivery.model_dump_json() for delivery in listed) + "]")
        return
    table = _table("delivery", "type", "job", "status", "attempts", "last answer")
    for delivery in listed:
        last = delivery.attempts[-1] if delivery.attempts else None
        answer = str(last.status or last.error) if last else ""
        table.add_row(
            delivery.id, delivery.type, delivery.job or "", delivery.status, str(len(delivery.attempts)), answer
        )
    out.print(table)


def _table(identifier: str, *others: str) -> Table:
    """A table whose first column is never cut, because people copy identifiers."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(identifier, no_wrap=True, min_width=26)
    for name in others:
        table.add_column(name, overflow="fold")
    return table


def _print_json(text: str) -> None:
    sys.stdout.write(text + "\n")
