"""Can this job work? Whatever speaks against it is found before it is queued, and all of it is told at once.

spec  ->  features this release has  ->  datasets  ->  the inspected model  ->  layer patterns, dataset arrays
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from json import loads

from anyio import to_thread

from fewbit.contract.metrics import is_known, wanted
from fewbit.contract.problems import FieldError, JobProblem
from fewbit.contract.spec import Calibration, Evaluation, JobSpec
from service.context import ServiceContext
from service.http.ids import is_id
from service.http.problems import InvalidRequest, ModelNotReady, UnusableModel
from service.jobs.fitting import dataset_errors
from service.jobs.groups import group_errors
from service.jobs.posted_spec import ReadSpec
from service.jobs.support import resolve_defaults, unsuited, unsupported
from store.queue import line_of
from store.records import BlobRef, DatasetRecord, ModelRecord, NewJob

WITHOUT_EXAMPLES = frozenset({"module", "torchscript"})  # formats whose inputs only a dataset tells
INSPECTION_WAIT_S = 30.0
MOST_HINTS = 20  # finding near names costs more than finding out that there are no equal ones
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.5


@dataclass(frozen=True)
class NamedDataset:
    """A dataset the spec names, and the field that names it."""

    field: str
    use: Calibration | Evaluation
    record: DatasetRecord | None

    @property
    def blob(self) -> BlobRef | None:
        return self.record.blob if self.record else None


async def validate(read: ReadSpec, context: ServiceContext) -> NewJob:
    """The job as it will be stored. Raises ``InvalidRequest``, ``UnusableModel`` and ``ModelNotReady``."""
    errors = [*read.errors, *unsupported(read.spec)]
    spec = resolve_defaults(read.spec)
    calibration = await _find_dataset(context, "calibration", spec.calibration)
    evaluation = await _find_dataset(context, "evaluation", spec.evaluation)
    datasets = [named for named in (calibration, evaluation) if named is not None]
    errors += [_unknown_dataset(named.field, named.use.dataset) for named in datasets if named.record is None]

    if spec.webhook is not None and not (is_id(spec.webhook, "whk") and await context.webhooks.get(spec.webhook)):
        errors.append(_unknown_webhook(spec.webhook))

    model = await context.models.get(spec.model) if is_id(spec.model, "mdl") else None
    if model is not None and not errors:
        model = await _wait_for_inspection(context, model)
    if model is not None and model.status == "ready":
        errors += await to_thread.run_sync(_errors_against_model, spec, model, datasets)
    else:
        errors += group_errors(spec, ())
    if model is None:
        raise InvalidRequest([_unknown_model(spec.model), *errors])
    if model.status == "rejected":
        raise _unusable(model, errors)
    if errors:
        raise InvalidRequest(errors)
    return NewJob(
        spec=spec,
        model=model.blob,
        calibration=calibration.blob if calibration else None,
        evaluation=evaluation.blob if evaluation else None,
        line=line_of(model.size, context.store),
    )


def unknown_upload(new: NewJob, upload_id: str) -> FieldError:
    """For an upload that was deleted after validation and before the job was stored."""
    if upload_id == new.model.id:
        return _unknown_model(upload_id)
    field = "calibration" if new.calibration and new.calibration.id == upload_id else "evaluation"
    return _unknown_dataset(field, upload_id)


async def _find_dataset(
    context: ServiceContext, field: str, use: Calibration | Evaluation | None
) -> NamedDataset | None:
    if use is None:
        return None
    return NamedDataset(field, use, await context.datasets.get(use.dataset) if is_id(use.dataset, "dst") else None)


async def _wait_for_inspection(context: ServiceContext, model: ModelRecord) -> ModelRecord | None:
    """The model once it is judged, for which a pipeline that has just uploaded it should not have to poll. Raises
    ``ModelNotReady``."""
    deadline, pause = time.monotonic() + INSPECTION_WAIT_S, FIRST_PAUSE_S
    current: ModelRecord | None = model
    while current is not None and current.status == "inspecting":
        if time.monotonic() + pause > deadline:
            raise ModelNotReady(model.id)
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE_S)
        current = await context.models.get(model.id)
    return current


def _errors_against_model(spec: JobSpec, model: ModelRecord, datasets: Sequence[NamedDataset]) -> list[FieldError]:
    """In a thread: ten thousand patterns over thousands of layers take seconds."""
    layers = [layer.name for layer in model.layers]
    errors = [*_unmatched_patterns(spec, layers), *group_errors(spec, layers), *_example_errors(model, datasets)]
    errors += unsuited(spec, model.format)
    for named in datasets:
        if named.record is not None:
            inputs = None if model.format in WITHOUT_EXAMPLES else model.inputs
            names = [*filter(is_known, wanted(spec))] if named.field == "evaluation" else []
            errors += dataset_errors(named.field, names, named.record.dataset, inputs)
    return errors


def _example_errors(model: ModelRecord, datasets: Sequence[NamedDataset]) -> Iterator[FieldError]:
    """A saved module and TorchScript do not say what their inputs look like: only data can."""
    if model.format in WITHOUT_EXAMPLES and not datasets:
        message = (
            f"A {model.format} upload does not say what its inputs look like, so the job needs data: "
            "numpy.savez('evaluation.npz', x=...), one array for each argument of forward, named like it, the first "
            'axis counting samples; then POST /datasets, and name it here: "evaluation": {"dataset": "dst_..."}.'
        )
        yield FieldError(pointer="/evaluation", code="example-inputs-needed", message=message)


def _unmatched_patterns(spec: JobSpec, names: Sequence[str]) -> Iterator[FieldError]:
    hints = 0
    for index, rule in enumerate(spec.layers):
        if not any(map(rule.matches, names)):
            message = f"{rule.match!r} matches none of the model's {len(names)} layers."
            hint = _near(rule.match, names) if hints < MOST_HINTS else ""
            hints += 1
            yield FieldError(pointer=f"/layers/{index}/match", code="no-match", message=f"{message} {hint}".strip())


def _near(pattern: str, names: Sequence[str]) -> str:
    """What may have been meant: names that look alike, and patterns over names whose segments do."""
    bare = pattern.replace("*", "").strip(".")
    near = get_close_matches(bare, names, n=3, cutoff=0.5)
    near = near or [name for name in names if bare and bare.lower() in name.lower()][:3]
    near = near or list(names[:3])
    return f"Near it: {', '.join(near)}." if near else "It has none."


def _unknown_model(model_id: str) -> FieldError:
    message = f"There is no model {model_id!r}. POST /models uploads one and answers its id."
    return FieldError(pointer="/model", code="unknown-model", message=message)


def _unknown_dataset(field: str, dataset_id: str) -> FieldError:
    message = f"There is no dataset {dataset_id!r}. POST /datasets uploads one and answers its id."
    return FieldError(pointer=f"/{field}/dataset", code="unknown-dataset", message=message)


def _unknown_webhook(webhook_id: str) -> FieldError:
    message = f"There is no webhook {webhook_id!r}. POST /webhooks makes one and answers its id."
    return FieldError(pointer="/webhook", code="unknown-webhook", message=message)


def _unusable(model: ModelRecord, errors: Sequence[FieldError]) -> UnusableModel:
    problem = JobProblem.model_validate(loads(model.error_json))
    message = f"{model.id} was rejected: {problem.detail}"
    return UnusableModel(problem, [FieldError(pointer="/model", code="rejected-model", message=message), *errors])
