"""Every metric stands in docs/metrics.md."""

from pathlib import Path

import pytest

from fewbit.contract.metrics import METRICS

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_explained(name: str) -> None:
    assert f"`{name}`" in PAGE
