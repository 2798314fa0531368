"""Example inputs: from the job's dataset, or made from what a Transformers config says of the model's inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workers.engine.data import is_npz
from workers.errors import EngineError

SAMPLES = 2  # torch.export treats a size of one as a constant
TOKENS = 8
SOME_TOKENS = 50  # ids below this are in every real vocabulary
AUDIO_SAMPLES = 16_000  # one second, at the rate that speech models take
IMAGE_SIZE = 224  # if the config names none: a convolutional network takes any
LABELS = "labels"


@dataclass(frozen=True)
class Argument:
    """One argument that forward takes."""

    name: str
    required: bool


def example_from_dataset(path: Path, accepted: Sequence[Argument], dtype: torch.dtype) -> dict[str, Tensor]:
    """The first two samples of a dataset, by forward argument and in forward's order. Arrays are matched by name; a
    single array goes to a single required argument. Floating-point arrays become ``dtype``, integers int64.

    Raises ``EngineError('calibration-failed')`` when they do not fit.
    """
    arrays = first_samples(path)
    arrays.pop(LABELS, None)
    named = _by_name(arrays, accepted)
    return {argument.name: _tensor(named[argument.name], dtype) for argument in accepted if argument.name in named}


def first_samples(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Two samples of every array; if there is only one, that one twice."""
    if is_npz(path):
        with np.load(path, allow_pickle=False) as archive:
            return {name: _two_samples(archive[name]) for name in archive.files}
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return {name: _two_samples(file.get_slice(name)[:SAMPLES]) for name in file.keys()}  # noqa: SIM118  # no iterator


def float_dtype(module: nn.Module) -> torch.dtype:
    """The dtype the module computes in: that of its first floating-point parameter."""
    dtypes = (parameter.dtype for parameter in module.parameters())
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)


def example_from_config(config: Any, names: Sequence[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """Made-up inputs [2, ...] of a Transformers model: those of ``names`` that ``EXAMPLE_MAKERS`` has."""
    made = {name: EXAMPLE_MAKERS[name](config) for name in names if name in EXAMPLE_MAKERS}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in made.items()}


def has_image_size(config: Any) -> bool:
    """Whether the model takes pictures of one size only."""
    return bool(getattr(_vision(config), "image_size", None))


def _by_name(arrays: dict[str, np.ndarray[Any, Any]], accepted: Sequence[Argument]) -> dict[str, np.ndarray[Any, Any]]:
    names = {argument.name for argument in accepted}
    needed = [argument.name for argument in accepted if argument.required]
    required = needed or [argument.name for argument in accepted[:1]]
    if len(arrays) == len(required) == 1 and not names & set(arrays):
        arrays = dict(zip(required, arrays.values(), strict=True))
    unknown, missing = sorted(set(arrays) - names), sorted(set(required) - set(arrays))
    if unknown or not arrays or (needed and missing):
        raise EngineError("calibration-failed", _mismatch(unknown, missing if needed else required, accepted))
    return arrays


def _mismatch(unknown: Sequence[str], missing: Sequence[str], accepted: Sequence[Argument]) -> str:
    takes = ", ".join(argument.name for argument in accepted) or "nothing"
    problem = f"has {', '.join(unknown)}, which forward does not take" if unknown else f"lacks {', '.join(missing)}"
    return f"the dataset {problem}. forward takes {takes}: name the arrays so, with numpy.savez(path, name=...)."


def _two_samples(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    first = array[:SAMPLES]
    if not len(first):
        raise EngineError("calibration-failed", "the dataset holds no samples")
    return first if len(first) == SAMPLES else np.concatenate([first, first])


def _tensor(array: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    value = torch.from_numpy(np.ascontiguousarray(array))
    if value.is_floating_point():
        return value.to(dtype)
    return value.to(torch.int64) if array.dtype.kind == "i" else value


# --- Inputs made from a config ----------------------------------------------------------------------------------------


def _token_ids(config: Any) -> Tensor:
    vocabulary = getattr(config, "vocab_size", None) or config.get_text_config().vocab_size
    ids = torch.arange(1, 1 + SAMPLES * TOKENS) % min(int(vocabulary), SOME_TOKENS)
    return ids.reshape(SAMPLES, TOKENS)


def _attention_mask(_config: Any) -> Tensor:
    return torch.ones(SAMPLES, TOKENS, dtype=torch.int64)


def _vision(config: Any) -> Any:
    return getattr(config, "vision_config", None) or config


def _pixel_values(config: Any) -> Tensor:
    vision = _vision(config)
    size = getattr(vision, "image_size", None) or IMAGE_SIZE
    height, width = (size, size) if isinstance(size, int) else tuple(size)[:2]
    return _floats(int(getattr(vision, "num_channels", 3)), int(height), int(width))


def _input_features(config: Any) -> Tensor:
    """Whisper's log-mel spectrogram: its first convolutions halve the frames to ``max_source_positions``."""
    return _floats(int(config.num_mel_bins), 2 * int(config.max_source_positions))


def _input_values(config: Any) -> Tensor:
    """A waveform; or a spectrogram, for models that use the same name for it and have its size in their config."""
    if hasattr(config, "frequency_stride"):
        return _floats(int(config.max_length), int(config.num_mel_bins))
    return _floats(AUDIO_SAMPLES)


def _floats(*shape: int) -> Tensor:
    return torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(0))


EXAMPLE_MAKERS: dict[str, Callable[[Any], Tensor]] = {
    "input_ids": _token_ids,
    "attention_mask": _attention_mask,
    "decoder_input_ids": _token_ids,
    "pixel_values": _pixel_values,
    "input_features": _input_features,
    "input_values": _input_values,
}
