"""Metrics: one's own, or, for the operator, everybody's by label."""

from __future__ import annotations

import httpx2
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.service.gateway import Gateway
from tests.service.tenants import keys
from tests.service.uploads import job, model_file, post
from tests.service.worker import Worker

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(answer: httpx2.Response) -> Samples:
    """Values by name and labels, as Prometheus reads them."""
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_an_administrator_sees_ones_own_and_the_operator_everybodys(gateway: Gateway, worker: Worker) -> None:
    job(gateway.http, worker)
    worker.announce("jobs@here", "small")
    with gateway.client(keys(gateway, "make", "--tenant", "acme", "--scope", "admin")) as acme:
        content = model_file()
        post(acme, "/models", content)
        own = acme.get("/metrics")
    assert own.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    samples = samples_of(own)
    assert samples[("fewbit_models", frozenset())] == 1
    assert samples[("fewbit_stored_bytes", frozenset())] == len(content)
    assert samples[("fewbit_jobs", frozenset({("status", "queued")}))] == 0
    assert "default" not in own.text
    assert "fewbit_workers" not in own.text
    everybodys = samples_of(gateway.http.get("/metrics"))
    assert everybodys[("fewbit_models", frozenset({("tenant", "acme")}))] == 1
    assert everybodys[("fewbit_jobs", frozenset({("tenant", "default"), ("status", "queued")}))] == 1
    assert everybodys[("fewbit_workers", frozenset())] == 1


def test_openmetrics_for_who_asks_for_it(gateway: Gateway) -> None:
    answer = gateway.http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    (models,) = [family for family in openmetrics(answer.text) if family.name == "fewbit_models"]
    assert (models.type, [sample.labels for sample in models.samples]) == ("gauge", [{"tenant": "default"}])


def test_metrics_take_an_administrator(gateway: Gateway) -> None:
    with gateway.client(keys(gateway, "make", "--tenant", "acme", "--scope", "write")) as http:
        assert http.get("/metrics").status_code == 403
    with gateway.client() as anyone:
        assert anyone.get("/metrics").status_code == 401


def test_no_answer_names_a_host(gateway: Gateway, worker: Worker) -> None:
    worker.announce("build-host-7:4711", "small")
    assert "build-host-7" not in gateway.http.get("/capabilities").text
