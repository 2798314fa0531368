"""The main job: post a trained model, poll the report, download the artifact, run it somewhere else."""

import io
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from torch import nn

from fewbit import Report
from fewbit.client import Client
from local import digits
from local.alone import predictions
from tests.e2e.conftest import Upload

KERNEL = "quantized::linear_with_input_q_dq_qweight_dq_output_fp32"


@pytest.fixture(scope="module")
def finished(stack, transformer: Upload, test_set: Path) -> Report:
    with stack.client() as client:
        model = client.upload_model(transformer.path)
        dataset = client.upload_dataset(test_set)
        job = client.create_job({"model": model.id, "evaluation": {"dataset": dataset.id}})
        return client.report(client.wait(job))


def test_every_linear_of_the_transformer_runs_on_int8(finished: Report) -> None:
    assert finished.coverage.layers.quantized == finished.coverage.layers.total == 10
    assert {row.executed for row in finished.layers} == {KERNEL}
    assert all(row.reason is None for row in finished.layers)


def test_the_attentions_projections_are_marked_as_ones_eager_leaves_float(finished: Report) -> None:
    rows = {row.name: row for row in finished.layers}
    for index in (0, 1):
        for projection in ("in_proj", "out_proj"):
            eager = rows[f"encoder.layers.{index}.self_attn.{projection}"].eager
            assert not eager.quantized
            assert eager.reason is not None
            assert eager.reason.code == "mha"
    assert rows["embed"].eager.quantized


@pytest.mark.parametrize("name", ["model.ts.pt", "model.pt2"])
def test_the_downloaded_artifact_gives_the_reports_accuracy_sample_for_sample(
    name: str, finished: Report, client: Client, transformer: Upload, tmp_path: Path
) -> None:
    accuracy = finished.accuracy
    assert accuracy is not None
    data = digits.load_digits()
    path = client.download(finished.job, name, tmp_path / name)
    after = predictions(path, data.x_test, accuracy.batch_size, finished.provenance.threads)
    before = digits.predict(transformer.module, data.x_test, accuracy.batch_size).tolist()
    flipped = {flip.sample: flip.after for flip in accuracy.flips}
    assert after == [flipped.get(sample, was) for sample, was in enumerate(before)]
    measured = float((torch.tensor(after) == data.labels_test).double().mean())
    assert accuracy.metrics[0].after == measured
    assert accuracy.metrics[0].before - measured <= 0.005


def test_the_numbers_of_the_report_belong_together(finished: Report) -> None:
    sizes = {artifact.kind: artifact.size for artifact in finished.artifacts}
    assert finished.size.after == min(sizes.values())
    assert finished.size.ratio is not None
    assert finished.size.ratio < 0.30
    assert finished.latency is not None
    assert set(finished.latency.artifacts) == set(sizes) == {"pt2", "torchscript"}
    assert finished.coverage.macs == 1.0
    loud = {finding.code for finding in finished.findings if finding.severity != "info"}
    assert loud <= {"slower-than-float"}  # on a machine that tests keep busy
    assert finished.verdict == ("warn" if loud else "pass")


def test_a_linear_as_the_whole_model_is_quantized_and_explained(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "root.pt2"
    torch.export.save(torch.export.export(nn.Linear(64, 10).eval(), (torch.randn(4, 64),)), path)
    report = client.report(client.wait(client.create_job({"model": client.upload_model(path).id})))
    (row,) = report.layers
    assert (row.name, row.quantized, row.executed) == ("", True, KERNEL)
    assert row.eager.reason is not None
    assert row.eager.reason.code == "root-module"


def test_excluded_layers_stay_float_and_say_who_excluded_them(client: Client, mlp: Upload, test_set: Path) -> None:
    spec = {
        "model": client.upload_model(mlp.path).id,
        "evaluation": {"dataset": client.upload_dataset(test_set).id, "samples": 100},
        "layers": [{"match": "hidden*", "quantize": False}],
        "artifacts": ["torchscript"],
        "gates": {"min_coverage": 0.9},
    }
    report = client.report(client.wait(client.create_job(spec)))
    assert {row.name: row.quantized for row in report.layers} == {
        "hidden1": False,
        "hidden2": False,
        "classifier": True,
    }
    assert report.coverage.reasons == {"excluded-by-user": 2}
    assert (report.verdict, report.gates[0].met) == ("fail", False)
    assert report.accuracy is not None
    assert report.accuracy.samples == 100


def test_the_whole_job_with_nothing_but_http(http: httpx2.Client, mlp: Upload, test_set: Path, tmp_path: Path) -> None:
    model = http.post("/models", params={"name": "mlp"}, content=mlp.path.read_bytes(),
                      headers={"Content-Type": "application/octet-stream"}).json()  # fmt: skip
    dataset = http.post("/datasets", files={"file": ("test.npz", test_set.read_bytes())}).json()
    posted = http.post("/jobs", json={"model": model["id"], "evaluation": {"dataset": dataset["id"]}})
    assert posted.status_code == 202
    assert posted.headers["retry-after"]
    waited = http.get(posted.headers["location"], headers={"Prefer": "wait=60"})
    assert waited.json()["status"] == "succeeded"
    report = http.get(f"{posted.headers['location']}/report").json()
    listed = http.get(f"{posted.headers['location']}/artifacts").json()
    entries = listed["artifacts"] if isinstance(listed, dict) else listed
    for entry in entries:
        body = http.get(entry["url"])
        assert body.headers["etag"] == f'"sha256-{entry["sha256"]}"'
        assert len(body.content) == entry["size"]
    assert {entry["sha256"] for entry in entries} == {artifact["sha256"] for artifact in report["artifacts"]}
    ready = http.get(f"/models/{model['id']}").json()
    assert [layer["name"] for layer in ready["layers"]] == ["hidden1", "hidden2", "classifier"]
    assert ready["inputs"][0]["name"] == "x"


def test_analyze_needs_no_data_and_makes_no_artifact(client: Client, mlp: Upload) -> None:
    spec = {"model": client.upload_model(mlp.path).id, "method": "analyze"}
    report = client.report(client.wait(client.create_job(spec)))
    assert report.coverage.reasons == {"analyze-only": 3}
    assert report.artifacts == ()


def test_a_dataset_from_memory_in_one_request(http: httpx2.Client) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.zeros((3, 8, 8), np.float32), labels=np.arange(3))
    answer = http.post("/datasets", content=buffer.getvalue(), headers={"Content-Type": "application/octet-stream"})
    assert answer.status_code == 201
    assert answer.json()["samples"] == 3
