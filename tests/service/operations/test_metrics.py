"""Metrics: one's own, or, for the operator, everybody's by label."""

from __future__ import annotations

from tests.service.gateway import Gateway
from tests.service.tenants import keys
from tests.service.uploads import job, model_file, post
from tests.service.worker import Worker


def test_an_administrator_sees_ones_own_and_the_operator_everybodys(gateway: Gateway, worker: Worker) -> None:
    job(gateway.http, worker)
    worker.announce("jobs@here", "small")
    with gateway.client(keys(gateway, "make", "--tenant", "acme", "--scope", "admin")) as acme:
        content = model_file()
        post(acme, "/models", content)
        own = acme.get("/metrics")
    assert own.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = set(own.text.splitlines())
    assert {"fewbit_models 1", f"fewbit_stored_bytes {len(content)}", 'fewbit_jobs{status="queued"} 0'} <= lines
    assert "default" not in own.text
    assert "fewbit_workers" not in own.text
    everybodys = set(gateway.http.get("/metrics").text.splitlines())
    queued = 'fewbit_jobs{tenant="default",status="queued"} 1'
    assert {'fewbit_models{tenant="acme"} 1', queued, "fewbit_workers 1"} <= everybodys


def test_metrics_take_an_administrator(gateway: Gateway) -> None:
    with gateway.client(keys(gateway, "make", "--tenant", "acme", "--scope", "write")) as http:
        assert http.get("/metrics").status_code == 403
    with gateway.client() as anyone:
        assert anyone.get("/metrics").status_code == 401


def test_no_answer_names_a_host(gateway: Gateway, worker: Worker) -> None:
    worker.announce("build-host-7:4711", "small")
    assert "build-host-7" not in gateway.http.get("/capabilities").text
