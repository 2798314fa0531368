"""The demonstration models: they learn, and what is exported is what was trained."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch

from local import digits


def test_the_perceptron_learns_and_survives_its_export(tmp_path: Path) -> None:
    module, example = digits.train_mlp()
    data = digits.load_digits()
    assert digits.accuracy(module, data) >= 0.95
    exported = torch.export.load(digits.export_pt2(module, example, tmp_path / "mlp.pt2")).module()
    for batch in (1, 7, 64):
        assert torch.equal(exported(data.x_test[:batch]), module(data.x_test[:batch]))


def test_training_twice_gives_the_same_weights() -> None:
    first, second = (digits.train_mlp()[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_leaves_the_callers_random_state_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    digits.train_mlp()
    assert torch.equal(torch.rand(1), expected)


def test_the_dataset_is_named_after_the_forward_argument(tmp_path: Path) -> None:
    with numpy.load(digits.save_test_npz(tmp_path / "test.npz"), allow_pickle=False) as arrays:
        assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
            "x": ("float32", (512, 8, 8)),
            "labels": ("int64", (512,)),
        }
