"""How close int8 is to float: SQNR, cosine, largest error, top-1 agreement."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewbit.contract.report import SQNR_CAP_DB, Flip, OutputSimilarity

Array = np.ndarray[Any, Any]


@dataclass
class Comparison:
    """Float rows against int8 rows, added batch by batch. Classes are read off rows of two or more scores."""

    signal: float = 0.0
    noise: float = 0.0
    cosines: list[float] = field(default_factory=list)
    max_abs_error: float = 0.0
    finite: bool = True
    shape: tuple[int, ...] = ()
    before: list[Array] = field(default_factory=list)
    after: list[Array] = field(default_factory=list)

    def add(self, reference: Array, measured: Array) -> None:
        self.shape = reference.shape
        flat, other = _flat(reference), _flat(measured)
        with np.errstate(invalid="ignore"):  # infinity less infinity: the sums say so
            difference = flat - other
        self.finite = self.finite and bool(np.isfinite(other).all())
        self.signal += float(np.square(flat).sum())
        self.noise += float(np.square(difference).sum())
        self.cosines.extend(_cosines(flat, other))
        self.max_abs_error = max(self.max_abs_error, float(np.abs(difference).max(initial=0.0)))
        if reference.ndim >= 2 and reference.shape[-1] >= 2:
            self.before.append(reference.argmax(-1))
            self.after.append(measured.argmax(-1))

    @property
    def similarity(self) -> OutputSimilarity:
        return OutputSimilarity(
            sqnr_db=round(self._sqnr_db(), 2),
            cosine=_finite(float(np.mean(self.cosines)) if self.cosines else 1.0),
            max_abs_error=_finite(self.max_abs_error),
            top1_agreement=float((self.classes[0] == self.classes[1]).mean()) if self._has_classes else None,
        )

    @property
    def classes(self) -> tuple[Array, Array]:
        """Predicted classes before and after, one a row; empty when the output holds no scores."""
        if not self.before:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        return np.concatenate(self.before), np.concatenate(self.after)

    @property
    def _has_classes(self) -> bool:
        return bool(self.before) and self.before[0].ndim == 1

    @property
    def flips(self) -> tuple[Flip, ...]:
        """Samples whose class changed, for outputs of one score row a sample."""
        return flips_between(*self.classes, None) if self._has_classes else ()

    def _sqnr_db(self) -> float:
        if not self.finite or not np.isfinite(self.noise):
            return -SQNR_CAP_DB
        if self.noise == 0.0:
            return SQNR_CAP_DB
        return float(np.clip(10 * np.log10(max(self.signal, 1e-300) / self.noise), -SQNR_CAP_DB, SQNR_CAP_DB))


def flips_between(before: Array, after: Array, labels: Array | None) -> tuple[Flip, ...]:
    """Samples whose class changed, from one class a sample before and after."""
    return tuple(
        Flip(
            sample=int(index),
            before=int(before[index]),
            after=int(after[index]),
            label=int(labels[index]) if labels is not None else None,
        )
        for index in np.flatnonzero(before != after)
    )


def _flat(rows: Array) -> Array:
    return rows.reshape(len(rows), -1).astype(np.float64)


def _cosines(one: Array, other: Array) -> list[float]:
    with np.errstate(invalid="ignore"):  # infinite rows have no direction: NaN, which counts as 0
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        dots = (one * other).sum(axis=1)
        cosines = np.divide(dots, lengths, out=np.ones_like(dots), where=lengths > 0)
    return [float(cosine) for cosine in np.nan_to_num(np.clip(cosines, -1, 1), nan=0.0)]


def _finite(value: float) -> float:
    if np.isnan(value):
        return 0.0
    largest = float(np.finfo(np.float32).max)
    return float(np.clip(value, -largest, largest))
