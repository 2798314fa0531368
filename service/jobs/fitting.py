"""Does a dataset fit a model? Each input needs an array of its name, dtype and shape, the sample axis first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fewbit.contract.metrics import family
from fewbit.contract.problems import FieldError
from fewbit.contract.resources import ArraySignature, Dataset, InputSignature

LABELS = "labels"
KEPT_AS = {"bfloat16": "float32"}  # NumPy has no bfloat16: inputs are stored as float32, the engine rounds them


def dataset_errors(
    field: str, metrics: Sequence[str], dataset: Dataset, inputs: Sequence[InputSignature] | None
) -> Iterator[FieldError]:
    """``field``: ``calibration`` or ``evaluation``; ``metrics``: what its labels are for; ``inputs`` is None where only
    the dataset tells them. Every message says what was found, what is needed, and the fix."""
    arrays = {array.name: array for array in dataset.arrays}
    labels = arrays.pop(LABELS, None) if LABELS not in {given.name for given in inputs or ()} else None
    where = f"/{field}/dataset"
    if inputs is not None:
        yield from _input_errors(where, arrays, inputs)
    yield from _label_errors(where, metrics, labels)


def _input_errors(
    where: str, arrays: dict[str, ArraySignature], inputs: Sequence[InputSignature]
) -> Iterator[FieldError]:
    paired = _pairs(arrays, inputs)
    for given in inputs:
        if given.name not in paired and not given.optional:
            yield FieldError(pointer=where, code="missing-input", message=_missing(given, arrays))
    taken = {array.name for array in paired.values()}
    for name in arrays:
        if name not in taken:
            yield FieldError(pointer=where, code="unknown-array", message=_unknown(name, inputs))
    for given in inputs:
        if given.name in paired:
            yield from _misfits(where, given, paired[given.name])


def _pairs(arrays: dict[str, ArraySignature], inputs: Sequence[InputSignature]) -> dict[str, ArraySignature]:
    """By name; where there is just one of each, names do not matter."""
    if len(inputs) == len(arrays) == 1:
        return {inputs[0].name: next(iter(arrays.values()))}
    return {given.name: arrays[given.name] for given in inputs if given.name in arrays}


def _misfits(where: str, given: InputSignature, array: ArraySignature) -> Iterator[FieldError]:
    wanted = KEPT_AS.get(given.dtype, given.dtype)
    if array.dtype != wanted:
        message = (
            f"{array.name} is {array.dtype}, and the model's input {given.name} takes {given.dtype}. "
            f"Save {array.name}.astype(numpy.{'bool_' if wanted == 'bool' else wanted})."
        )
        yield FieldError(pointer=where, code="dtype-mismatch", message=message)
    if reason := _shape_misfit(given, array):
        message = f"{array.name} has shape {_shown(array.shape)}: {reason}"
        yield FieldError(pointer=where, code="shape-mismatch", message=message)


def _shape_misfit(given: InputSignature, array: ArraySignature) -> str | None:
    """Why the array's shape does not do. The first axis counts samples, however many the model takes at a time."""
    expected = f"the model's input {given.name} takes {_shown(('samples', *given.shape[1:]))}"
    if not given.shape:
        return f"the model's input {given.name} is a single number, so it has no axis for samples."
    if len(array.shape) != len(given.shape):
        return f"{expected}, which has {len(given.shape)} axes, not {len(array.shape)}."
    for axis, (size, wanted) in enumerate(zip(array.shape[1:], given.shape[1:], strict=True), start=1):
        if not _fits(size, wanted, given):
            return f"{expected}; axis {axis} must be {_bounds(wanted, given)}, not {size}."
    return None


def _fits(size: int, wanted: int | str, given: InputSignature) -> bool:
    if isinstance(wanted, int):
        return size == wanted
    low, high = given.dynamic.get(wanted, (0, None))
    return low <= size and (high is None or size <= high)


def _bounds(wanted: int | str, given: InputSignature) -> str:
    if isinstance(wanted, int):
        return str(wanted)
    low, high = given.dynamic.get(wanted, (0, None))
    return f"{wanted}, from {low} to {high}" if high is not None else f"{wanted}, at least {low}"


def _label_errors(where: str, metrics: Sequence[str], labels: ArraySignature | None) -> Iterator[FieldError]:
    """What the labels alone tell: whether they fit the output is seen when the model runs."""
    if labels is None:
        if named := [metric for metric in metrics if metric != "accuracy"]:  # the default, which asks for nothing
            message = f"{', '.join(named)} is measured on labels, and the dataset holds none. Save it with labels=..."
            yield FieldError(pointer=where, code="missing-labels", message=message)
        return
    whole = [metric for metric in metrics if family(metric) != "regression"]
    if whole and not labels.dtype.startswith(("int", "uint", "bool")):
        message = (
            f"labels is {labels.dtype}; {', '.join(whole)} needs whole numbers. Save labels.astype(numpy.int64), or "
            'name metrics of numbers in evaluation.metrics, such as "mean_squared_error".'
        )
        yield FieldError(pointer=where, code="dtype-mismatch", message=message)
    ranked = [metric for metric in metrics if family(metric) == "retrieval"]
    if ranked and len(labels.shape) != 2:
        message = (
            f"labels has shape {_shown(labels.shape)}; {', '.join(ranked)} needs the relevance of each candidate, "
            "[samples, candidates]. For one right candidate a sample save numpy.eye(candidates, dtype=int)[labels]."
        )
        yield FieldError(pointer=where, code="shape-mismatch", message=message)
    if metrics and not labels.shape:
        message = "labels is a single number; it needs one label a sample."
        yield FieldError(pointer=where, code="shape-mismatch", message=message)


def _missing(given: InputSignature, arrays: dict[str, ArraySignature]) -> str:
    found = ", ".join(arrays) or "none"
    return (
        f"The model's input {given.name} ({given.dtype}, {_shown(given.shape)}) has no array of its name. "
        f"Found: {found}. "
        f"Save it as numpy.savez(path, {given.name}=..., labels=...)."
    )


def _unknown(name: str, inputs: Sequence[InputSignature]) -> str:
    names = ", ".join(given.name for given in inputs)
    return f"{name} is no input of the model. It takes {names}. Rename the array, or leave it out."


def _shown(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"
