"""Follows a job on a terminal: a progress bar with the name of the stage."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fewbit.client.client import Client
from fewbit.contract.resources import Event, Job


def follow(client: Client, job: Job, console: Console, title: str) -> Job:
    """Wait until the job has ended, with a progress bar."""
    with bar(console) as progress:
        task = progress.add_task(title, total=1.0, stage=job.status)
        ended = client.wait(job, lambda event: _advance(progress, task, event))
        progress.update(task, completed=1.0 if ended.status == "succeeded" else None, stage=ended.status)
    return ended


def bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=32),
        TextColumn("{task.fields[stage]:<12}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


def _advance(progress: Progress, task: TaskID, event: Event) -> None:
    if event.event == "progress":
        progress.update(task, completed=event.data.get("fraction", 0.0), stage=event.data.get("stage", ""))
    elif event.event == "state":
        progress.update(task, stage=event.data.get("status", ""))
