"""Health, capabilities, and the document that describes it all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from fewbit.contract import capabilities
from fewbit.contract.problems import PROBLEMS
from service.app import create_app
from service.openapi import FILE, difference, document
from service.settings import ServiceSettings
from tests.service.gateway import A_HOST, Gateway
from tests.service.worker import Worker

DOCUMENT: dict[str, Any] = json.loads(document())
OPERATIONS = [
    (method, path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]


def test_ready_takes_a_worker_for_jobs_and_one_for_inspections(gateway: Gateway, worker: Worker) -> None:
    with gateway.client() as anyone:
        alone = anyone.get("/health/ready")
        assert (alone.status_code, alone.json()["parts"]) == (
            503,
            {"redis": "ok", "blobs": "ok", "worker": "missing", "inspector": "missing"},
        )
        worker.announce("jobs@here", "small", "large")
        half = anyone.get("/health/ready")
        assert half.status_code == 503
        assert "inspector" in half.json()["detail"]
        worker.announce("inspector@here", "inspect")
        assert anyone.get("/health/ready").json() == {
            "status": "ok",
            "parts": dict.fromkeys(("redis", "blobs", "worker", "inspector"), "ok"),
        }


def test_capabilities_are_those_of_this_release(http: httpx2.Client, worker: Worker) -> None:
    worker.announce(f"jobs@{A_HOST}", "small")
    told = http.get("/capabilities").json()
    assert tuple(told["methods"]) == capabilities.METHODS
    assert tuple(told["weights"]["ranges"]) == capabilities.WEIGHT_RANGES
    assert told["limits"]["model_bytes"] == 8 * 2**20
    assert [worker["cpu"] for worker in told["workers"]] == ["a CPU"]


def test_the_committed_document_is_the_apps() -> None:
    assert difference(FILE.read_text(), document()) == [], "run `make openapi`"


def test_the_served_document_is_the_committed_one(http: httpx2.Client) -> None:
    assert http.get("/openapi.json").json() == json.loads(FILE.read_text())


def test_settings_have_no_part_in_the_document() -> None:
    app = create_app(ServiceSettings(auth="off", max_model_bytes=1))
    assert app.openapi() == DOCUMENT


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    used = {reference.removeprefix("#/components/schemas/") for reference in references(DOCUMENT)}
    assert used == set(schemas)


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("method", "path", "operation"), OPERATIONS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_operation_is_described(method: str, path: str, operation: dict[str, Any]) -> None:
    assert operation["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}
    assert len(operation["description"]) > 20
    for status, response in operation["responses"].items():
        assert "X-Request-Id" in response["headers"], (method, path, status)
        if int(status) >= 400:
            assert list(response["content"]) == ["application/problem+json"], (method, path, status)
            assert all(slug in PROBLEMS for slug in slugs(response["description"]))
        elif status not in ("204", "206", "304"):
            schemas = [content["schema"] for content in response["content"].values()]
            assert all(schemas), (method, path, status)
    assert {"500", "503"} <= set(operation["responses"])


def slugs(description: str) -> list[str]:
    found = [line.partition("`]")[0].removeprefix("[`") for line in description.split("\n\n")]
    assert found
    return found


def test_who_lands_at_the_front_is_told_where_to_go(gateway: Gateway) -> None:
    with gateway.client() as http:
        told = http.get("/")
        assert (told.status_code, told.json()["docs"]) == (200, "/docs")
        for name in ("docs", "openapi", "health", "problems", "reasons"):
            assert http.get(told.json()[name]).status_code in (200, 503), name
        page = http.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
        assert page.headers["Content-Type"].startswith("text/html")
        assert 'href="/docs"' in page.text


def test_what_the_contract_has_and_this_release_does_not_says_what_to_do_instead(http: httpx2.Client) -> None:
    for path, method in (("/uploads", "POST"), ("/uploads/upl_1", "PATCH"), ("/uploads/upl_1", "HEAD")):
        answer = http.request(method, path, headers={"Tus-Resumable": "1.0.0"})
        assert answer.status_code == 404
        if method != "HEAD":
            assert answer.json()["type"] == "/problems/not-found"
            assert "not part of this release. Send the whole file to POST /models" in answer.json()["detail"]
    named = http.post("/models", json={"upload": "upl_1"})
    assert (named.status_code, named.json()["type"]) == (415, "/problems/unsupported-media-type")
    assert "not part of this release. Send the file itself" in named.json()["detail"]
    auto = http.post("/jobs", json={"model": "mdl_1", "method": "auto", "auto": {}})
    assert auto.status_code == 422
    assert {error["pointer"] for error in auto.json()["errors"]} == {"/model", "/method", "/auto"}
