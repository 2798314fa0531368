"""The OpenAPI document: what FastAPI finds out by itself, made complete."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from fewbit.contract.problems import Problem
from fewbit.contract.resources import Event, NewWebhook
from fewbit.contract.spec import JobSpec
from service.http.openapi_operations import EventPage, JobEndedProblem

ABOUT = """Post a trained PyTorch model, get an int8 artifact that is proved to still give the right answers, and the
cause for every layer that stayed float.

Every call but health, docs, problems and reasons takes `Authorization: Bearer <key>`. Every error is
`application/problem+json` (RFC 9457), and its `type` is a page that says what to do.
Every answer carries `X-Request-Id`. Every `GET` path takes `HEAD` too."""

TAGS = [
    {"name": "models", "description": "Exported programs, inspected before they are used."},
    {"name": "datasets", "description": "Named arrays to calibrate and evaluate with."},
    {"name": "jobs", "description": "One model, one spec, one report."},
    {"name": "artifacts", "description": "The files a job made."},
    {"name": "webhooks", "description": "URLs that are told when a job ends."},
    {"name": "service", "description": "What the service can do, and how it is."},
]

_BY_HAND = (
    Problem,
    JobEndedProblem,
    JobSpec,
    NewWebhook,
    EventPage,
    Event,
)  # named in the document, but by no route's model
_GENERATED = ("HTTPValidationError", "ValidationError")  # FastAPI's own error shape, which no answer here has


def openapi_of(app: FastAPI) -> dict[str, Any]:
    """OpenAPI 3.1. Made once, then kept."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            tags=app.openapi_tags,
            routes=app.routes,
        )
        app.openapi_schema = _completed(document)
    return app.openapi_schema


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    schemas = document["components"]["schemas"]
    _, definitions = models_json_schema(
        [(model, "validation" if model is JobSpec else "serialization") for model in _BY_HAND],
        ref_template="#/components/schemas/{model}",
    )
    for name, schema in definitions["$defs"].items():
        schemas.setdefault(name, schema)
    for name in _GENERATED:
        schemas.pop(name, None)
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}]
    for operations in document["paths"].values():
        for operation in operations.values():
            _complete(operation)
    return document


def _complete(operation: dict[str, Any]) -> None:
    """No 422 in FastAPI's shape, and no empty lists."""
    if not operation.get("parameters"):
        operation.pop("parameters", None)
    for status, response in list(operation["responses"].items()):
        if response.get("description") == "Validation Error":
            del operation["responses"][status]
