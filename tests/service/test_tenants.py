"""Two tenants: neither can see, name or infer anything of the other."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis

from service.openapi import document
from tests.service.gateway import Gateway
from tests.service.tenants import keys
from tests.service.uploads import digits, job, model_file, post
from tests.service.worker import Worker

DOCUMENT: dict[str, Any] = json.loads(document())
WITH_IDS = [(path, method) for path, operations in DOCUMENT["paths"].items() for method in operations if "_id}" in path]
UNKNOWN = "0354unknownXunknownX00"


@dataclass
class Two:
    ours: httpx2.Client
    theirs: httpx2.Client
    ids: dict[str, str]
    """Ids of theirs, by the name of the path parameter."""


@pytest.fixture
def two(gateway: Gateway, worker: Worker, tmp_path: Path) -> Iterator[Two]:
    keyed = [keys(gateway, "make", "--tenant", each, "--scope", "admin") for each in ("acme", "umbrella")]
    with gateway.client(keyed[0]) as ours, gateway.client(keyed[1]) as theirs:
        posted = job(theirs, worker, labels={"team": "theirs"})
        worker.succeed(posted, tmp_path, pt2=b"theirs")
        ids = {"job_id": posted, "model_id": theirs.get(f"/jobs/{posted}").json()["spec"]["model"], "name": "model.pt2"}
        ids["dataset_id"] = post(theirs, "/datasets", digits()).json()["id"]
        if "/webhooks" in DOCUMENT["paths"]:
            made = theirs.post("/webhooks", json={"url": "http://127.0.0.1:9999/hook"})
            assert made.status_code == 201, made.text
            ids["webhook_id"] = made.json()["id"]
        yield Two(ours, theirs, ids)


def unknown(ids: dict[str, str]) -> dict[str, str]:
    """Ids of equal form that nobody has."""
    return {name: each if name == "name" else f"{each.partition('_')[0]}_{UNKNOWN}" for name, each in ids.items()}


def told(answer: httpx2.Response, ids: dict[str, str]) -> tuple[int, str, set[str]]:
    """What can be told of an answer, but which id it names and which request it was."""
    text = answer.text.replace(answer.headers["X-Request-Id"], "REQUEST")
    for name, each in ids.items():
        text = text.replace(each, name)
    return answer.status_code, text, set(answer.headers)


@pytest.mark.parametrize(("path", "method"), WITH_IDS)
def test_what_is_of_another_is_exactly_what_is_not_there(two: Two, path: str, method: str) -> None:
    missing = unknown(two.ids)
    answers = [(two.ours.request(method, path.format(**ids)), ids) for ids in (two.ids, missing)]
    foreign, absent = (told(*each) for each in answers)
    assert foreign == absent
    assert foreign[0] == 404
    assert two.theirs.request("GET", f"/jobs/{two.ids['job_id']}").status_code == 200


def test_a_job_of_another_cannot_be_compared(two: Two, worker: Worker, tmp_path: Path) -> None:
    mine = job(two.ours, worker)
    worker.succeed(mine, tmp_path)
    asked = (
        (two.ours.get("/compare", params={"job": [mine, ids["job_id"]]}), ids) for ids in (two.ids, unknown(two.ids))
    )
    foreign, absent = (told(*each) for each in asked)
    assert foreign == absent
    assert foreign[0] == 404


def test_a_job_names_only_what_is_ones_own(two: Two, worker: Worker, gateway: Gateway) -> None:
    missing = unknown(two.ids)
    mine = post(two.ours, "/models", model_file()).json()["id"]
    worker.inspect(mine)
    for field, name in (("model", "model_id"), ("dataset", "dataset_id"), ("webhook", "webhook_id")):
        if name not in two.ids:
            continue
        answers = []
        for ids in (two.ids, missing):
            more = {"evaluation": {"dataset": ids[name]}} if field == "dataset" else {field: ids[name]}
            answers.append(told(two.ours.post("/jobs", json={"model": mine} | more), ids))
        assert answers[0] == answers[1], field
        assert answers[0][0] == 422


def test_lists_and_filters_hold_nothing_of_another(two: Two) -> None:
    for path in DOCUMENT["paths"]:
        if "{" in path or "get" not in DOCUMENT["paths"][path]:
            continue
        answer = two.ours.get(path)
        assert not any(each in answer.text for name, each in two.ids.items() if name != "name"), path
        assert "umbrella" not in answer.text, path
    for query in (
        "label=team%3Dtheirs",
        f"model={two.ids['model_id']}",
        "status=succeeded",
        "created_after=2020-01-01",
    ):
        assert two.ours.get(f"/jobs?{query}").json() == {"jobs": [], "next": None}


def test_equal_bytes_of_another_are_new_bytes(two: Two, gateway: Gateway) -> None:
    model, data = model_file(), digits()
    for path, content in (("/models", model), ("/datasets", data)):
        theirs, mine = (post(http, path, content) for http in (two.theirs, two.ours))
        assert (theirs.status_code, mine.status_code, post(two.ours, path, content).status_code) == (201, 201, 200)
        assert theirs.json()["id"] != mine.json()["id"]
        assert two.ours.delete(mine.headers["Location"]).status_code == 204
        assert two.theirs.get(theirs.headers["Location"]).json() == theirs.json()


def test_an_idempotency_key_of_another_is_unknown(two: Two) -> None:
    one, other = model_file(), model_file()
    assert post(two.theirs, "/models", one, Idempotency_Key="k").status_code == 201
    assert post(two.ours, "/models", other, Idempotency_Key="k").status_code == 201


def test_a_cursor_of_another_opens_nothing(two: Two) -> None:
    post(two.theirs, "/models", model_file())
    cursor = two.theirs.get("/models?limit=1").json()["next"]
    assert two.ours.get(f"/models?cursor={cursor}").json()["models"] == []


TIMED = ("/models/{model_id}", "/datasets/{dataset_id}", "/jobs/{job_id}", "/jobs/{job_id}/report")


@pytest.mark.parametrize("path", TIMED)
def test_not_ones_own_takes_as_long_as_not_there(two: Two, path: str, redis: Redis) -> None:
    """Their model gets a layer table of a megabyte: reading it, and only then finding out whose it is, would show."""
    redis.hset(f"fewbit:model:{two.ids['model_id']}", "layers", json.dumps(["layer"] * 120_000))
    urls = [path.format(**ids) for ids in (two.ids, unknown(two.ids))]
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(300):
        for which in (0, 1) if turn % 2 else (1, 0):  # interleaved, so that what disturbs one disturbs both
            started = time.perf_counter()
            assert two.ours.get(urls[which]).status_code == 404
            times[which].append(time.perf_counter() - started)
    foreign, absent = (statistics.median(each) for each in times)
    quartiles = statistics.quantiles(times[1], n=4)
    assert abs(foreign - absent) < max(quartiles[2] - quartiles[0], 0.0002), (foreign, absent)
