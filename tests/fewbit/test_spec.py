"""The job spec refuses what cannot be meant, before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fewbit import JobSpec
from fewbit.contract.spec import LayerRule


@pytest.mark.parametrize(
    "wrong",
    [
        {"modle": "mdl_1"},
        {"weights": {"granularity": "per_group"}},
        {"weights": {"group_size": 32}},
        {"weights": {"range": {"clip": [1, 1]}}},
        {"weights": {"range": {"clip": [float("nan"), 1]}}},
        {"weights": {"range": {"percentile": 20}}},
        {"gates": {"max_drop": {"accuracy": -0.1}}},
        {"artifacts": []},
        {"seed": -1},
        {"time_limit_s": 0},
        {"evaluation": {"dataset": "dst_1", "batch_size": 0}},
        {"layers": [{"match": ""}]},
    ],
)
def test_a_contradictory_spec_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JobSpec.model_validate({"model": "mdl_1"} | wrong)


def test_every_default_is_visible() -> None:
    spec = JobSpec(model="mdl_1").model_dump(mode="json")
    assert spec["weights"] == {
        "dtype": "int8", "granularity": "per_channel", "group_size": None, "range": "minmax", "non_finite": "refuse",
    }  # fmt: skip
    assert spec["artifacts"] == ["pt2", "torchscript"]


def test_a_spec_survives_a_round_trip_through_json() -> None:
    spec = JobSpec.model_validate(
        {"model": "mdl_1", "layers": [{"match": "a.*", "weights": {"range": {"clip": [-5, 5]}}}]}
    )
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_star_in_a_pattern_crosses_dots() -> None:
    rule = LayerRule(match="encoder.*.attention.*", quantize=False)
    assert rule.matches("encoder.layer.0.attention.self.query")
    assert not rule.matches("decoder.layer.0.attention.self.query")
