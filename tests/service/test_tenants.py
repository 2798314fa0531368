"""Two tenants: neither can see, name or infer anything of the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis

from service.openapi import document
from tests.service.gateway import A_HOST, Gateway
from tests.service.tenants import keys
from tests.service.timing import Difference, Pairs, measured
from tests.service.uploads import digits, job, model_file, post
from tests.service.worker import Worker

DOCUMENT: dict[str, Any] = json.loads(document())
OPERATIONS = {
    (path, method): operation
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}
WITH_IDS = [place for place in OPERATIONS if "_id}" in place[0]]
LISTS = [path for path, method in OPERATIONS if method == "get" and "{" not in path]
HOLDING = ("/jobs", "/models", "/datasets", "/webhooks", "/audit")
"""Lists that hold ids; the others count, or tell of the service."""
THAT_MAKE = {
    ("/jobs", "post"): "test_a_job_names_only_what_is_ones_own",
    ("/models", "post"): "test_equal_bytes_of_another_are_new_bytes",
    ("/datasets", "post"): "test_equal_bytes_of_another_are_new_bytes",
    ("/webhooks", "post"): "test_a_webhook_of_another_is_no_obstacle",
}
UNKNOWN = "0354unknownXunknownX00"


@dataclass
class Two:
    ours: httpx2.Client
    theirs: httpx2.Client
    ids: dict[str, str]
    """Ids of theirs, by the name of the path parameter."""


@pytest.fixture
def two(gateway: Gateway, worker: Worker, tmp_path: Path) -> Iterator[Two]:
    keyed = [keys(gateway, "make", "--tenant", tenant, "--scope", "admin") for tenant in ("acme", "umbrella")]
    with gateway.client(keyed[0]) as ours, gateway.client(keyed[1]) as theirs:
        posted = job(theirs, worker, labels={"team": "theirs"})
        worker.succeed(posted, tmp_path, pt2=b"theirs")
        ids = {"job_id": posted, "model_id": theirs.get(f"/jobs/{posted}").json()["spec"]["model"], "name": "model.pt2"}
        ids["dataset_id"] = post(theirs, "/datasets", digits()).json()["id"]
        made = theirs.post("/webhooks", json={"url": "http://127.0.0.1:9999/hook"})
        assert made.status_code == 201, made.text
        ids["webhook_id"] = made.json()["id"]
        worker.announce(f"worker@{A_HOST}", "small")
        yield Two(ours, theirs, ids)


def unknown(ids: dict[str, str]) -> dict[str, str]:
    """Ids of equal form that nobody has."""
    return {name: known if name == "name" else f"{known.partition('_')[0]}_{UNKNOWN}" for name, known in ids.items()}


def told(answer: httpx2.Response, ids: dict[str, str]) -> tuple[int, str, set[str]]:
    """What can be told of an answer, but which id it names and which request it was."""
    text = answer.text.replace(answer.headers["X-Request-Id"], "REQUEST")
    for name, known in ids.items():
        text = text.replace(known, name)
    return answer.status_code, text, set(answer.headers)


def test_every_endpoint_is_in_one_of_these_tests() -> None:
    """A new one is found by its ids or as a list; one that makes something needs a test of its own."""
    of_nobody = {place for place, operation in OPERATIONS.items() if operation.get("security") == []}
    listed = {(path, "get") for path in LISTS}
    assert set(OPERATIONS) == set(WITH_IDS) | listed | set(THAT_MAKE) | of_nobody
    assert set(THAT_MAKE.values()) <= set(globals())
    assert set(HOLDING) <= set(LISTS)


@pytest.mark.parametrize(("path", "method"), [*WITH_IDS, *((path, "head") for path, verb in WITH_IDS if verb == "get")])
def test_what_is_of_another_is_exactly_what_is_not_there(two: Two, path: str, method: str) -> None:
    missing = unknown(two.ids)
    answers = [(two.ours.request(method, path.format(**ids)), ids) for ids in (two.ids, missing)]
    foreign, absent = (told(*answer) for answer in answers)
    assert foreign == absent
    assert foreign[0] == 404
    assert two.theirs.request("GET", f"/jobs/{two.ids['job_id']}").status_code == 200


def test_a_job_of_another_cannot_be_compared(two: Two, worker: Worker, tmp_path: Path) -> None:
    mine = job(two.ours, worker)
    worker.succeed(mine, tmp_path)
    asked = (
        (two.ours.get("/compare", params={"job": [mine, ids["job_id"]]}), ids) for ids in (two.ids, unknown(two.ids))
    )
    foreign, absent = (told(*answer) for answer in asked)
    assert foreign == absent
    assert foreign[0] == 404


def test_a_job_names_only_what_is_ones_own(two: Two, worker: Worker, gateway: Gateway) -> None:
    missing = unknown(two.ids)
    mine = post(two.ours, "/models", model_file()).json()["id"]
    worker.inspect(mine)
    for field, name in (("model", "model_id"), ("dataset", "dataset_id"), ("webhook", "webhook_id")):
        answers = []
        for ids in (two.ids, missing):
            more = {"evaluation": {"dataset": ids[name]}} if field == "dataset" else {field: ids[name]}
            answers.append(told(two.ours.post("/jobs", json={"model": mine} | more), ids))
        assert answers[0] == answers[1], field
        assert answers[0][0] == 422


def test_lists_and_filters_hold_nothing_of_another(two: Two) -> None:
    for path in LISTS:
        mine, theirs = (http.get(path).text for http in (two.ours, two.theirs))
        ids = {known for name, known in two.ids.items() if name != "name"}
        assert any(known in theirs for known in ids) == (path in HOLDING), path
        assert not any(known in mine for known in ids), path
        assert "umbrella" not in mine, path
    for query in (
        "label=team%3Dtheirs",
        f"model={two.ids['model_id']}",
        "status=succeeded",
        "created_after=2020-01-01",
    ):
        assert two.ours.get(f"/jobs?{query}").json() == {"jobs": [], "next": None}


def test_what_another_does_moves_no_number(two: Two, worker: Worker) -> None:
    paths = ("/metrics", "/capabilities")
    before = [two.ours.get(path).text for path in paths]
    theirs = two.theirs.get(paths[0]).text
    worker.fail(job(two.theirs, worker))
    assert two.theirs.get(paths[0]).text != theirs
    assert [two.ours.get(path).text for path in paths] == before


def test_a_webhook_of_another_is_no_obstacle(two: Two) -> None:
    address = two.theirs.get("/webhooks").json()["webhooks"][0]["url"]
    mine = two.ours.post("/webhooks", json={"url": address})
    assert (mine.status_code, mine.json()["url"]) == (201, address)
    assert [webhook["id"] for webhook in two.ours.get("/webhooks").json()["webhooks"]] == [mine.json()["id"]]


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


HEAVY = {"model": "layers", "dataset": "record", "job": "spec", "webhook": "url"}
"""A field of each record that is read with it."""


def laden(two: Two, redis: Redis) -> None:
    """Theirs get a megabyte each: reading that, and only then finding out whose it is, would show."""
    for kind, field in HEAVY.items():
        redis.hset(f"fewbit:{kind}:{two.ids[f'{kind}_id']}", field, json.dumps(["a field"] * 100_000))


def timed(http: httpx2.Client, method: str, one: str, other: str, status: int = 404) -> Pairs:
    def ask(url: str, expected: int) -> None:
        assert http.request(method, url).status_code == expected

    return measured(lambda: ask(one, status), lambda: ask(other, 404))


@pytest.mark.parametrize(("path", "method"), WITH_IDS)
def test_not_ones_own_takes_as_long_as_not_there(two: Two, path: str, method: str, redis: Redis) -> None:
    laden(two, redis)
    foreign, absent = (path.format(**ids) for ids in (two.ids, unknown(two.ids)))
    pairs = timed(two.ours, method, foreign, absent)
    found = Difference.of(pairs)
    assert found.is_sure, found
    assert not found.tells, found
    assert Difference.of([(one + 3 * found.telling, other) for one, other in pairs]).tells  # one would have shown


def test_what_is_read_before_anyone_looks_whose_it_is_would_show(two: Two, redis: Redis) -> None:
    """Their own record, which is read, beside one that is not there: the measure tells them apart."""
    laden(two, redis)
    url = f"/models/{two.ids['model_id']}"
    pairs = timed(two.theirs, "head", url, url[:-4] + "XXXX", status=200)
    assert Difference.of(pairs).tells
