"""A spec that cannot work is refused at once, with every field at fault."""

from __future__ import annotations

from typing import Any

import httpx2
import numpy as np
import pytest

from fewbit.contract.resources import InputSignature
from tests.service.uploads import codes, dataset, digits, job, message, model_file, npz, post, ready_model
from tests.service.worker import Worker


def refused(http: httpx2.Client, **spec: Any) -> httpx2.Response:
    answer = http.post("/jobs", json=spec)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-request"), answer.text
    assert answer.json()["errors"]
    return answer


def test_a_spec_is_stored_with_every_default(http: httpx2.Client, worker: Worker) -> None:
    spec = http.get(f"/jobs/{job(http, worker, labels={'team': 'search'})}").json()["spec"]
    assert spec["method"] == "dynamic"
    assert spec["weights"] == {
        "dtype": "int8", "granularity": "per_channel", "group_size": None, "range": "minmax", "non_finite": "refuse",
    }  # fmt: skip
    assert spec["labels"] == {"team": "search"}


def test_every_field_at_fault_is_named_at_once(http: httpx2.Client, worker: Worker) -> None:
    answer = refused(
        http,
        model="mdl_nowhere",
        mehtod="dynamic",
        seed="7",
        weights={"granularity": "per_row", "dtyp": "int8"},
        evaluation={"dataset": "dst_nowhere", "batch_size": 0},
        calibration={"dataset": "dst_nowhere"},
        layers=[{"match": ""}],
        auto={},
    )
    assert codes(answer) == {
        ("/mehtod", "unknown-field"),
        ("/seed", "int-type"),
        ("/weights/granularity", "literal-error"),
        ("/weights/dtyp", "unknown-field"),
        ("/evaluation/batch_size", "greater-than-equal"),
        ("/layers/0/match", "string-too-short"),
        ("/model", "unknown-model"),
        ("/calibration/dataset", "unknown-dataset"),
        ("/auto", "unsupported"),
    }


def test_a_union_is_one_error(http: httpx2.Client) -> None:
    answer = refused(
        http, model="m", weights={"range": "widest"}, layers=[{"match": "a", "weights": {"range": {"c": 1}}}]
    )
    assert {where for where, _ in codes(answer)} >= {"/weights/range"}
    assert "'minmax' or 'mse'" in next(
        error["message"] for error in answer.json()["errors"] if error["pointer"] == "/weights/range"
    )


def test_a_missing_model_is_named(http: httpx2.Client) -> None:
    assert codes(refused(http)) == {("/model", "required")}


@pytest.mark.parametrize(
    ("spec", "pointer"),
    [
        ({"method": "auto"}, "/method"),
        ({"weights": {"dtype": "int4"}}, "/weights/dtype"),
        ({"weights": {"granularity": "per_group", "group_size": 32}}, "/weights/granularity"),
        ({"layers": [{"match": "*", "weights": {"dtype": "int4"}}]}, "/layers/0/weights/dtype"),
        ({"auto": {}}, "/auto"),
        ({"gates": {"max_drop": {"f1": 0.1}}}, "/gates/max_drop/f1"),
    ],
)
def test_what_this_release_does_not_do_is_refused(
    http: httpx2.Client, worker: Worker, spec: dict[str, Any], pointer: str
) -> None:
    answer = refused(http, model=ready_model(http, worker), **spec)
    assert codes(answer) == {(pointer, "unsupported")}
    assert message(answer, "unsupported").endswith(".")


GROUPS = {"granularity": "per_group", "group_size": 32}
PER_GROUP, PER_TENSOR, SIZE = {"granularity": "per_group"}, {"granularity": "per_tensor"}, {"group_size": 32}
NEEDED, UNUSED = "group-size-needed", "group-size-unused"


def rules(*weights: dict[str, Any], match: str = "*") -> list[dict[str, Any]]:
    """Each for every layer, but the first for those that ``match``."""
    return [{"match": "*" if index else match, "weights": weight_rule} for index, weight_rule in enumerate(weights)]


@pytest.mark.parametrize(
    ("spec", "pointers", "code", "words"),
    [
        ({"layers": rules(PER_GROUP)}, ["/layers/0/weights"], NEEDED, '"group_size": 32'),
        ({"layers": rules(GROUPS, match="encoder.*") + rules(PER_GROUP)}, ["/layers/1/weights"], NEEDED, "classifier"),
        ({"layers": rules(SIZE)}, ["/layers/0/weights"], UNUSED, "per_group"),
        ({"layers": rules(SIZE), "method": "dynamic"}, ["/layers/0/weights"], UNUSED, "Leave it out."),
        ({"layers": rules(GROUPS, match="en*") + rules(SIZE, match="cl*")}, ["/layers/1/weights"], UNUSED, "cl*"),
        ({"layers": rules(SIZE | PER_TENSOR), "weights": GROUPS}, ["/layers/0/weights"], UNUSED, "per_tensor"),
        ({"layers": [{"match": "encoder.*", "weights": PER_GROUP}, {"match": "cl*", "weights": PER_GROUP}]},
         ["/layers/0/weights", "/layers/1/weights"], NEEDED, "leave granularity out"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["weight_only", "analyze"])
def test_groups_without_a_size_and_sizes_without_groups_are_refused(
    http: httpx2.Client, worker: Worker, spec: dict[str, Any], pointers: list[str], code: str, words: str, method: str
) -> None:
    answer = refused(http, model=ready_model(http, worker), **{"method": method} | spec)
    assert codes(answer) == {(pointer, code) for pointer in pointers}
    assert words in message(answer, code)


def test_groups_without_a_size_are_named_beside_an_unknown_model(http: httpx2.Client) -> None:
    answer = refused(http, model="mdl_nowhere", method="weight_only", layers=rules(PER_GROUP))
    assert codes(answer) == {("/model", "unknown-model"), ("/layers/0/weights", NEEDED)}


@pytest.mark.parametrize(
    "spec",
    [
        {"layers": rules(GROUPS)},
        {"layers": rules(PER_GROUP, SIZE)},
        {"layers": rules(SIZE, PER_GROUP)},
        {"layers": rules(SIZE), "weights": GROUPS | {"group_size": 64}},
        {"layers": rules(PER_GROUP), "weights": GROUPS},
        {"layers": rules({"granularity": "per_channel"}), "weights": GROUPS},
        {"layers": rules(GROUPS, PER_TENSOR)},
        {"layers": rules(GROUPS, match="encoder.*") + rules(SIZE)},
    ],
)
def test_groups_whose_size_another_entry_gives_are_taken(
    http: httpx2.Client, worker: Worker, spec: dict[str, Any]
) -> None:
    job(http, worker, method="weight_only", **spec)


def test_eager_on_a_graph_says_what_to_upload_instead(http: httpx2.Client, worker: Worker) -> None:
    answer = refused(http, model=ready_model(http, worker), backend="eager")
    assert codes(answer) == {("/backend", "backend-needs-module")}
    assert "torch.save(model, path)" in message(answer, "backend-needs-module")


def test_eager_takes_only_what_torch_ao_has(http: httpx2.Client, worker: Worker) -> None:
    answer = refused(http, model=ready_model(http, worker), backend="eager", artifacts=["onnx"], method="weight_only")
    assert {where for where, _ in codes(answer)} >= {"/artifacts/0", "/method"}


def test_static_without_data_says_what_to_send(http: httpx2.Client, worker: Worker) -> None:
    answer = refused(http, model=ready_model(http, worker), method="static")
    assert codes(answer) == {("/calibration", "calibration-needed")}
    assert "POST /datasets" in message(answer, "calibration-needed")


@pytest.mark.parametrize(
    "spec",
    [
        {"method": "weight_only", "weights": {"dtype": "int4", "granularity": "per_group", "group_size": 32}},
        {"method": "static", "activations": {"dtype": "int8", "range": "entropy"}},
        {"smooth": {"alpha": "auto"}, "bias_correction": True},
        {"target": "avx2", "layers": [{"match": "*", "activations": {"range": {"percentile": 99.9}}}]},
    ],
    ids=["int4 in groups", "static", "smooth", "target"],
)
def test_every_method_is_taken(http: httpx2.Client, worker: Worker, spec: dict[str, Any]) -> None:
    data = {"calibration": {"dataset": dataset(http, digits())}} if spec.get("method") == "static" else {}
    answer = http.post("/jobs", json={"model": ready_model(http, worker), **spec, **data})
    assert answer.status_code == 202, answer.text


@pytest.mark.parametrize(
    ("metric", "labels", "code", "words"),
    [
        ("retrieval_recall@5", np.arange(8), "shape-mismatch", "numpy.eye(candidates, dtype=int)[labels]"),
        ("f1_score", np.ones(8), "dtype-mismatch", "labels.astype(numpy.int64)"),
        ("mean_squared_error", None, "missing-labels", "labels=..."),
    ],
)
def test_labels_that_a_metric_cannot_read_are_refused(
    http: httpx2.Client, worker: Worker, metric: str, labels: np.ndarray[Any, Any] | None, code: str, words: str
) -> None:
    arrays = {"x": f32(8, 4)} | ({"labels": labels} if labels is not None else {})
    evaluation = {"dataset": dataset(http, npz(**arrays)), "metrics": [metric]}
    answer = refused(http, model=ready_model(http, worker, FIXED), evaluation=evaluation)
    assert codes(answer) == {("/evaluation/dataset", code)}
    assert words in message(answer, code)


def test_metrics_of_every_family_are_taken_and_so_are_gates_on_them(http: httpx2.Client, worker: Worker) -> None:
    names = ("accuracy", "f1_score", "mean_squared_error")
    evaluation = {"dataset": dataset(http, digits()), "metrics": names}
    gates = {"max_drop": {"f1_score": 0.01, "mean_squared_error": 0.1}}
    job(http, worker, evaluation=evaluation, gates=gates)


def test_near_names_are_offered_and_a_wrong_cutoff_is_explained(http: httpx2.Client, worker: Worker) -> None:
    metrics = ["f1", "mean_sqared_error", "accuracy@5"]
    evaluation = {"dataset": dataset(http, digits()), "metrics": metrics}
    answer = refused(http, model=ready_model(http, worker), evaluation=evaluation)
    assert codes(answer) == {(f"/evaluation/metrics/{index}", "unsupported") for index in range(3)}
    messages = [error["message"] for error in answer.json()["errors"]]
    assert "Near it: f1_score" in messages[0]
    assert "mean_squared_error" in messages[1]
    assert "retrieval_recall@10" in messages[2]


def test_an_unknown_metric_says_which_there_are(http: httpx2.Client, worker: Worker) -> None:
    evaluation = {"dataset": dataset(http, digits()), "metrics": ["accuracy", "bleu"]}
    answer = refused(http, model=ready_model(http, worker), evaluation=evaluation)
    assert codes(answer) == {("/evaluation/metrics/1", "unsupported")}
    assert "accuracy" in message(answer, "unsupported")


def test_all_supported_ranges_are_taken(http: httpx2.Client, worker: Worker) -> None:
    for chosen in ("minmax", "mse", {"percentile": 99.9}, {"clip": [-1, 1]}):
        job(http, worker, weights={"range": chosen}, layers=[{"match": "*", "weights": {"range": chosen}}])


def test_a_pattern_without_a_match_offers_near_names(http: httpx2.Client, worker: Worker) -> None:
    rules = [{"match": "encoder.*"}, {"match": "encodr.query", "quantize": False}, {"match": "decoder.*"}]
    answer = refused(http, model=ready_model(http, worker), layers=rules)
    assert codes(answer) == {("/layers/1/match", "no-match"), ("/layers/2/match", "no-match")}
    assert "encoder.query" in answer.json()["errors"][0]["message"]


def test_a_job_waits_for_the_inspection(http: httpx2.Client, worker: Worker) -> None:
    from threading import Timer

    model = post(http, "/models", model_file()).json()["id"]
    timer = Timer(0.5, worker.inspect, [model])
    timer.start()
    assert http.post("/jobs", json={"model": model}).status_code == 202
    timer.join()


def test_a_rejected_model_is_refused_with_its_own_problem(http: httpx2.Client, worker: Worker) -> None:
    model = post(http, "/models", model_file()).json()["id"]
    worker.reject(model, "unsafe-model", "It would run os.system.")
    answer = http.post("/jobs", json={"model": model})
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/unsafe-model")
    assert answer.json()["errors"][0]["pointer"] == "/model"
    assert "os.system" in answer.json()["detail"]


def signature(name: str, dtype: str, *shape: int | str, **dynamic: tuple[int, int | None]) -> InputSignature:
    return InputSignature(name=name, dtype=dtype, shape=shape, dynamic=dynamic)


IMAGE = signature("x", "float32", "batch", 3, "side", batch=(1, None), side=(4, 8))
FIXED = signature("x", "float32", 8, 4)
ROUNDED = signature("x", "bfloat16", "batch", 4, batch=(1, None))
TOKENS = signature("tokens", "int64", "batch", "length", batch=(1, 64), length=(2, 512))
MASK = signature("mask", "bool", "batch", "length", batch=(1, 64), length=(2, 512))


def f32(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("inputs", "arrays"),
    [
        ([IMAGE], {"x": f32(5, 3, 8)}),
        ([IMAGE], {"anything": f32(5, 3, 4), "labels": np.arange(5)}),
        ([FIXED], {"x": f32(20, 4)}),
        ([ROUNDED], {"x": f32(20, 4)}),
        ([TOKENS, MASK], {"tokens": np.ones((100, 9), np.int64), "mask": np.ones((100, 9), bool)}),
    ],
)
def test_a_dataset_that_fits_is_taken(
    http: httpx2.Client, worker: Worker, inputs: list[InputSignature], arrays: dict[str, Any]
) -> None:
    spec = {"model": ready_model(http, worker, *inputs), "evaluation": {"dataset": dataset(http, npz(**arrays))}}
    assert http.post("/jobs", json=spec).status_code == 202


@pytest.mark.parametrize(
    ("inputs", "arrays", "expected", "words"),
    [
        ([IMAGE], {"x": np.ones((5, 3, 8))}, {"dtype-mismatch"}, "x.astype(numpy.float32)"),
        ([ROUNDED], {"x": np.ones((5, 4), np.float16)}, {"dtype-mismatch"}, "x.astype(numpy.float32)"),
        ([MASK], {"mask": np.ones((5, 9), np.int8)}, {"dtype-mismatch"}, "mask.astype(numpy.bool_)"),
        ([IMAGE], {"x": f32(5, 3, 9)}, {"shape-mismatch"}, "axis 2 must be side, from 4 to 8, not 9"),
        ([IMAGE], {"x": f32(5, 2, 8)}, {"shape-mismatch"}, "axis 1 must be 3, not 2"),
        ([FIXED], {"x": f32(20)}, {"shape-mismatch"}, "[samples, 4]"),
        ([signature("x", "float32")], {"x": f32(20)}, {"shape-mismatch"}, "single number"),
        ([TOKENS, MASK], {"tokens": np.ones((5, 9), np.int64)}, {"missing-input"}, "mask=..."),
        (
            [TOKENS, MASK],
            {"tokens": np.ones((5, 1), np.int64), "masks": np.ones((5, 9), bool)},
            {"missing-input", "unknown-array", "shape-mismatch"},
            "tokens, mask",
        ),
        ([FIXED], {"x": f32(8, 4), "labels": np.ones(8)}, {"dtype-mismatch"}, "labels.astype(numpy.int64)"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(
    http: httpx2.Client,
    worker: Worker,
    inputs: list[InputSignature],
    arrays: dict[str, Any],
    expected: set[str],
    words: str,
) -> None:
    answer = refused(
        http, model=ready_model(http, worker, *inputs), evaluation={"dataset": dataset(http, npz(**arrays))}
    )
    assert codes(answer) == {("/evaluation/dataset", code) for code in expected}
    assert any(words in error["message"] for error in answer.json()["errors"]), answer.text


def test_calibration_data_are_checked_too_but_not_their_labels(http: httpx2.Client, worker: Worker) -> None:
    wrong = dataset(http, npz(x=np.ones((5, 4)), labels=np.ones(5)))
    answer = refused(http, model=ready_model(http, worker), calibration={"dataset": wrong})
    assert codes(answer) == {("/calibration/dataset", "dtype-mismatch")}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"model"',
        b'{"model": "a", "model": "b"}',
        b'{"model": "a", "gates": {"min_coverage": NaN}}',
        b'{"model": "a", "gates": {"min_coverage": Infinity}}',
        b"[" * 200_000,
        b'{"model": "\xff"}',
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_not_json_is_malformed(http: httpx2.Client, body: bytes) -> None:
    answer = http.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed-request"), answer.text


def test_an_infinite_number_is_no_limit(http: httpx2.Client, worker: Worker) -> None:
    body = f'{{"model": "{ready_model(http, worker)}", "gates": {{"min_speedup": 1e999}}}}'
    answer = http.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    assert codes(answer) == {("/gates/min_speedup", "finite-number")}


def test_a_spec_of_more_than_a_mebibyte_is_too_large(http: httpx2.Client) -> None:
    body = b'{"model": "' + b"m" * 2**20 + b'"}'
    answer = http.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/payload-too-large")


def test_a_spec_is_json_and_says_so(http: httpx2.Client) -> None:
    answer = http.post("/jobs", content=b'{"model": "m"}', headers={"Content-Type": "text/plain"})
    assert (answer.status_code, answer.json()["type"]) == (415, "/problems/unsupported-media-type")
