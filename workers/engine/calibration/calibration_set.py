"""The calibration data itself: whether there is enough of it, and whether it looks like what was meant."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbit.contract.report import CalibrationReport, Convergence
from workers.engine.data import Data

SETTLED = 0.98  # of the final ranges: one more outlier moves the rest anyway
Array = np.ndarray[Any, Any]


class SampleRanges:
    """The smallest and the largest value of each sample: two float32 [samples]."""

    def __init__(self) -> None:
        self._low: list[Tensor] = []
        self._high: list[Tensor] = []

    def observe(self, x: Tensor) -> None:
        """A tensor whose first axis counts samples, or one sample as a whole."""
        if not x.numel() or not x.dtype.is_floating_point:
            return
        rows = torch.nan_to_num(x.reshape(len(x) if x.dim() else 1, -1).to(torch.float32), posinf=0.0, neginf=0.0)
        self._low.append(rows.amin(1))
        self._high.append(rows.amax(1))

    def range_shares(self, samples: int) -> Array | None:
        """The share of the final range that is reached after each sample: float64 [samples]. None where the value's
        first axis does not count samples."""
        if not self._low:
            return None
        low, high = torch.cat(self._low).clamp_max(0), torch.cat(self._high).clamp_min(0)
        if len(low) % samples:
            return None
        spread = (high.cummax(0).values - low.cummin(0).values).double().view(samples, -1)[:, -1]
        return (spread / spread[-1]).numpy() if float(spread[-1]) > 0 else None


def calibration_report(data: Data, extents: Sequence[SampleRanges]) -> CalibrationReport:
    """``extents``: of every value whose range was fixed on ``data``."""
    shares = [share for extent in extents if (share := extent.range_shares(_row_count(data))) is not None]
    mean = np.mean(shares, axis=0) if shares else np.empty(0)
    return CalibrationReport(
        samples=data.samples,
        recommended_samples=_recommended_samples(mean),
        duplicates=_count_duplicates(data),
        constant_inputs=tuple(name for name, array in _arrays(data) if array.size and bool((array == array[:1]).all())),
        non_finite_inputs=tuple(name for name, array in _arrays(data) if not _is_finite(array)),
        convergence=tuple(
            Convergence(samples=count, range_share=round(float(mean[count - 1]), 4))
            for count in _reported_counts(len(mean))
        ),
    )


def _row_count(data: Data) -> int:
    """Rows that go through the model: the last batch is padded where the model takes whole batches only."""
    return -(-data.samples // data.batch_size) * data.batch_size if data.fixed_batch else data.samples


def _recommended_samples(mean: Array) -> int | None:
    """Twice the samples after which ranges settled; None if they still grew in the second half."""
    settled = int(np.argmax(mean >= SETTLED)) + 1 if mean.size and bool((mean >= SETTLED).any()) else None
    return 2 * settled if settled is not None and 2 * settled <= mean.size else None


def _reported_counts(samples: int) -> list[int]:
    """1, 2, 4, ... and all."""
    powers = [2**power for power in range(32) if 2**power < samples]
    return [*powers, samples] if samples else []


def _count_duplicates(data: Data) -> int:
    """Samples that equal an earlier one in every input."""
    if data.rows:
        return 0
    digests = {_digest(data, index) for index in range(data.samples)}
    return data.samples - len(digests)


def _digest(data: Data, index: int) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for _, array in _arrays(data):
        digest.update(np.ascontiguousarray(array[index]).tobytes())
    return digest.digest()


def _arrays(data: Data) -> list[tuple[str, Array]]:
    """Those that have an axis for samples."""
    names = data.names or tuple(map(str, range(len(data.arrays))))
    named = zip(names, data.arrays, strict=True)
    return [(name, array[: data.samples]) for name, array in named if name not in data.constant]


def _is_finite(array: Array) -> bool:
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())
