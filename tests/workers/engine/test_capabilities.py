"""What the service says it can do is what the engine can do."""

from typing import get_args

import numpy as np
import torch

from fewbit.contract import capabilities, spec
from fewbit.contract.metrics import family
from tests.workers.engine.metrics.outputs import FORMS, Outputs, regression, retrieval
from workers.engine.artifacts.kinds import KINDS
from workers.engine.metrics.fitting import NotApplicable, fit
from workers.engine.metrics.registry import resampler
from workers.engine.quantization.observers import observer_for
from workers.engine.quantization.weights import clip_bound, quantize_weight


def test_every_artifact_kind_has_its_writer_and_no_other_has() -> None:
    assert set(capabilities.ARTIFACT_KINDS) == set(KINDS) <= set(get_args(spec.ArtifactKind))


def test_every_metric_that_is_offered_is_measured_on_some_output_and_labels() -> None:
    forms = {"classification": FORMS.values(), "regression": (regression,), "retrieval": (retrieval,)}
    for name in capabilities.METRICS:
        outputs = [make() for make in forms[family(name)]]
        assert any(_measures(name, form) for form in outputs), name


def _measures(name: str, outputs: Outputs) -> bool:
    rows = fit(family(name), outputs.before, outputs.after, outputs.labels)
    try:
        return bool(np.isfinite(resampler(name, rows).statistic(np.ones((1, rows.samples)))).all())
    except NotApplicable:
        return False


def test_every_activation_range_that_is_offered_has_its_observer() -> None:
    extras = {"percentile": {"percentile": 99.0}, "clip": {"clip": [-1, 1]}}
    for name in capabilities.ACTIVATION_RANGES:
        settings = spec.Activations.model_validate({"range": extras.get(name, name)})
        observer = observer_for(settings.range)
        observer.observe(torch.randn(1000))
        assert observer.qparams("uint8", reduce_range=False).qmax == 255


def test_every_weight_setting_that_is_offered_quantizes() -> None:
    weight = torch.randn(4, 64)
    ranges = {"minmax": "minmax", "mse": "mse", "percentile": {"percentile": 99.0}, "clip": {"clip": [-1, 1]}}
    assert set(ranges) == set(capabilities.WEIGHT_RANGES)
    for granularity in capabilities.WEIGHT_GRANULARITIES:
        for range_ in ranges.values():
            group = {"group_size": 16} if granularity == "per_group" else {}
            for dtype, largest in (("int8", 127), ("int4", 7)):
                settings = {"dtype": dtype, "granularity": granularity, "range": range_, **group}
                weights = spec.Weights.model_validate(settings)
                assert quantize_weight(weight, weights).values.abs().max() == largest
            assert bool((clip_bound(weight, weights.range) > 0).all())
