"""SmoothQuant: the same function in float, and far closer to it in integers where a few channels are far larger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

from fewbit import JobSpec
from fewbit.runtime.program import Program
from tests.workers.engine.models import Attention, CalledTwice, CalledTwiceAlike, Functional, Tied, mlp
from tests.workers.engine.runs import export, load_exported, run_engine
from workers.engine.calibration.conversion import Conversion
from workers.engine.calibration.smooth import smooth, smoothing_factors
from workers.engine.data import Batch, Data
from workers.engine.graph.layers import find_layers
from workers.engine.graph.program import load
from workers.engine.measurement.float_pass import program_outputs
from workers.engine.quantization.plan import plan
from workers.engine.quantization.weights import sqnr_db

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's own
aten = torch.ops.aten

WIDTH, TOKENS, VOCABULARY = 128, 16, 500
OUTLIERS, GAIN = 0.01, 30.0  # share of each norm's channels that are this many times larger
AUTO = {"smooth": {"alpha": "auto"}, "weights": {"range": "mse"}}


class Encoder(nn.Module):
    """Two encoder layers by hand, so that torch.ao quantizes all of it too, with planted outlier channels."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block(norm_first) for _ in range(2))
        self.head = nn.Linear(WIDTH, 32)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Block(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        for norm in self.norms:
            norm.weight.data[torch.randperm(WIDTH)[: max(1, round(OUTLIERS * WIDTH))]] *= GAIN

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self.attend(self.norms[0](x))
            return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))
        x = self.norms[0](x + self.attend(x))
        return self.norms[1](x + self.down(nn.functional.gelu(self.up(x))))

    def attend(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) / WIDTH**0.5
        return self.out(scores.softmax(-1) @ self.value(x))


def ids(seed: int, samples: int = 48) -> Tensor:
    return torch.randint(0, VOCABULARY, (samples, TOKENS), generator=torch.Generator().manual_seed(seed))


def make_data(x: Tensor) -> Data:
    return Data((x.numpy(),), (x.dtype,), None, len(x), 16, "real", False)


def smooth_on(program: Program, x: Tensor, **settings: Any) -> Conversion:
    spec = JobSpec.model_validate({"model": "m", **settings})
    return smooth(plan_conversion(program, spec), spec.smooth, lambda: make_data(x), lambda _: None)


def plan_conversion(program: Program, spec: JobSpec) -> Conversion:
    layers, _ = find_layers(program)
    return Conversion(program, layers, plan(layers, spec, full_range=False))


def closeness(program: Program, other: Program, x: Tensor) -> float:
    """dB."""
    outputs = (torch.from_numpy(program_outputs(model, Batch((x,), 0, len(x)))) for model in (program, other))
    return sqnr_db(*outputs)


def multiplications(program: Program) -> int:
    return sum(node.target is aten.mul.Tensor for node in program.graph.nodes)


def output_sqnr_db(folder: Path, module: nn.Module, **spec: Any) -> float:
    folder.mkdir()
    run = run_engine(
        folder, module, (ids(0, 4),), {"ids": ids(1).numpy()}, threads=1, calibration={"ids": ids(2).numpy()}, **spec
    )
    assert run.report.accuracy is not None
    return run.report.accuracy.output.sqnr_db


@pytest.mark.parametrize("norm_first", [False, True])
def test_outlier_channels_cost_five_decibels_less(norm_first: bool, tmp_path: Path) -> None:
    module = Encoder(norm_first).eval()
    with torch.no_grad():
        swapped = quantize_dynamic(module, {nn.Linear: per_channel_dynamic_qconfig})
        stock = sqnr_db(module(ids(1)), swapped(ids(1)))
    plain = output_sqnr_db(tmp_path / "plain", module)
    best = output_sqnr_db(tmp_path / "auto", module, **AUTO)
    assert best >= stock + 5
    assert best >= plain + 5


def test_fixed_ranges_gain_as_well(tmp_path: Path) -> None:
    module = Encoder(norm_first=True).eval()
    plain = output_sqnr_db(tmp_path / "plain", module, method="static")
    assert output_sqnr_db(tmp_path / "auto", module, method="static", **AUTO) >= plain + 5


def test_int4_weights_alone_come_no_farther_from_float(tmp_path: Path) -> None:
    module = Encoder(norm_first=False).eval()
    weights = {"dtype": "int4", "granularity": "per_group", "group_size": 32, "range": "mse"}
    plain = output_sqnr_db(tmp_path / "plain", module, method="weight_only", weights=weights)
    auto = output_sqnr_db(
        tmp_path / "auto", module, method="weight_only", weights=weights, smooth={"alpha": "auto"}
    )  # fmt: skip
    assert auto >= plain


def test_a_searched_alpha_is_about_as_good_as_the_best_one_for_all_groups(tmp_path: Path) -> None:
    module = Encoder(norm_first=False).eval()
    given = {
        alpha: output_sqnr_db(tmp_path / str(alpha), module, smooth={"alpha": alpha}, weights={"range": "mse"})
        for alpha in (0.3, 0.5, 0.7)
    }
    assert output_sqnr_db(tmp_path / "auto", module, **AUTO) >= max(given.values()) - 0.5


def test_the_report_says_each_layers_alpha(tmp_path: Path) -> None:
    run = run_engine(tmp_path, Encoder(False).eval(), (ids(0, 4),), {"ids": ids(1).numpy()}, threads=1, **AUTO)
    schemes = {row.name: row.scheme for row in run.report.layers if row.scheme is not None}
    assert schemes["table"].smooth is None
    alphas = [schemes[f"blocks.1.{name}"].smooth or 0.0 for name in ("query", "key", "value")]
    assert len(set(alphas)) == 1
    assert 0 < alphas[0] < 1


# --- The same function ---


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (Attention(), torch.randn(4, 5, 8)),
        (Functional(), torch.randn(6, 8)),
        (CalledTwice(), torch.randn(4, 8)),
        (CalledTwiceAlike(), torch.randn(4, 8)),
        (mlp(), torch.randn(4, 64)),
        (Encoder(True), ids(3, 4)),
        (Tied(), torch.randint(0, 32, (4, 6))),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("decompose", [False, True])
def test_nothing_changes_in_float(module: nn.Module, x: Tensor, decompose: bool, tmp_path: Path) -> None:
    program = load(export(module, (x,), tmp_path / "model.pt2", decompose=decompose))
    found = smooth_on(program, x, smooth={"alpha": 0.8})
    assert closeness(program, found.program, x) > 100
    assert [layer.name for layer in found.layers] == [layer.name for layer in find_layers(program)[0]]
    assert [layer.layer for layer in found.planned] == list(found.layers)
    torch.export.save(found.program.exported, tmp_path / "smooth.pt2")
    assert closeness(program, load(tmp_path / "smooth.pt2"), x) > 100


def test_every_layer_that_multiplies_is_smoothed(tmp_path: Path) -> None:
    found = smooth_on(load_exported(Encoder(False), (ids(0, 4),), tmp_path), ids(0), smooth={"alpha": 0.5})
    assert set(found.alphas) == {layer.name for layer in found.layers if layer.kind == "linear"}
    assert set(found.alphas.values()) == {0.5}


def test_a_norm_that_only_the_group_reads_takes_the_factors(tmp_path: Path) -> None:
    program = load_exported(Encoder(True), (ids(0, 4),), tmp_path)
    found = smooth_on(program, ids(0), smooth={"alpha": 0.5})
    added = multiplications(found.program) - multiplications(program)
    assert added == len(("out", "down")) * 2 + len(("head",))  # before query, key, value and up there is none


def test_a_norm_that_others_read_too_costs_one_multiplication_for_the_group(tmp_path: Path) -> None:
    program = load_exported(Encoder(False), (ids(0, 4),), tmp_path)
    found = smooth_on(program, ids(0), smooth={"alpha": 0.5})
    added = multiplications(found.program) - multiplications(program)
    assert added == len(("query and key and value", "out", "up", "down")) * 2  # the last norm has one reader, the head


def test_between_linear_layers_the_factors_go_through_the_relu(tmp_path: Path) -> None:
    program = load_exported(mlp(), (torch.randn(4, 64),), tmp_path)
    found = smooth_on(program, torch.randn(64, 64), smooth={"alpha": 0.5}, method="static")
    assert set(found.alphas) == {"0", "2", "4"}
    assert multiplications(found.program) == 1  # of the model's input


def test_a_weight_scaled_as_a_whole_does_not_take_factors_of_its_rows(tmp_path: Path) -> None:
    program = load_exported(mlp(), (torch.randn(4, 64),), tmp_path)
    weights = {"granularity": "per_tensor"}
    assert multiplications(smooth_on(program, torch.randn(64, 64), smooth={"alpha": 0.5}, weights=weights).program) == 3


# --- What is left alone ---


def test_a_tied_weight_is_left_alone(tmp_path: Path) -> None:
    x = torch.randint(0, 32, (4, 6))
    program = load_exported(Tied(), (x,), tmp_path)
    assert smooth_on(program, x, smooth={"alpha": 0.5}).program is program


def test_a_layer_that_stays_float_reads_what_it_read_before(tmp_path: Path) -> None:
    program = load_exported(Encoder(True), (ids(0, 4),), tmp_path)
    rules = [{"match": "*.key", "quantize": False}]
    found = smooth_on(program, ids(0), smooth={"alpha": 0.8}, layers=rules)
    assert not any(name.endswith("key") for name in found.alphas)
    assert closeness(program, found.program, ids(1)) > 100


def test_bounds_in_the_units_of_a_weight_keep_it_as_it_is(tmp_path: Path) -> None:
    program = load_exported(mlp(), (torch.randn(4, 64),), tmp_path)
    rules = [{"match": "2", "weights": {"range": {"clip": [-1, 1]}}}]
    found = smooth_on(program, torch.randn(64, 64), smooth={"alpha": 0.5}, layers=rules)
    before, after = (
        next(layer.weight for layer in layers if layer.name == "2")
        for layers in (find_layers(program)[0], found.layers)
    )  # fmt: skip
    assert set(found.alphas) == {"0", "4"}
    assert torch.equal(before, after)


@pytest.mark.parametrize("spec", [{"smooth": None}, {"smooth": {"alpha": "auto"}, "method": "analyze"}])
def test_where_nothing_is_smoothed_no_data_is_read(spec: dict[str, Any], tmp_path: Path) -> None:
    program = load_exported(mlp(), (torch.randn(4, 64),), tmp_path)
    chosen = JobSpec.model_validate({"model": "m", **spec})

    def unread() -> Data:
        raise AssertionError("data was read")

    found = smooth(plan_conversion(program, chosen), chosen.smooth, unread, lambda _: None)
    assert found.program is program


def test_a_group_that_gains_nothing_is_left_alone(tmp_path: Path) -> None:
    """Activations that int8 holds exactly: any smoothing could only add an error."""
    layer = nn.Linear(16, 8)
    layer.weight.data = torch.randint(-127, 128, (8, 16)).float() / 127
    layer.weight.data[:, 0] = 1.0
    x = torch.randint(-1, 2, (32, 16)).float()
    program = load_exported(nn.Sequential(layer), (x,), tmp_path)
    assert smooth_on(program, x, smooth={"alpha": "auto"}).alphas == {}


def test_activations_that_are_not_finite_leave_the_group_alone(tmp_path: Path) -> None:
    x = torch.randn(8, 64)
    program = load_exported(mlp(), (x,), tmp_path)
    x[0, 0] = float("nan")
    assert smooth_on(program, x, smooth={"alpha": 0.5}).alphas == {}


# --- The factors ---


def test_the_factors_are_the_papers_up_to_one_common_factor() -> None:
    largest, columns = torch.tensor([100.0, 1.0, 4.0]), torch.tensor([0.5, 2.0, 1.0])
    factors = smoothing_factors(largest, columns, 0.75)
    wanted = largest**0.75 / columns**0.25
    np.testing.assert_allclose(factors / factors[1], wanted / wanted[1], rtol=1e-5)
    assert factors.max() * factors.min() == pytest.approx(1.0)


def test_a_channel_that_is_never_used_keeps_its_values() -> None:
    factors = smoothing_factors(torch.tensor([0.0, 3.0, 5.0]), torch.tensor([1.0, 0.0, 2.0]), 0.5)
    assert factors.tolist() == [1.0, 1.0, 1.0]
