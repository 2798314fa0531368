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

SAMPLES = 2  # torch.export takes a size of one for a constant
TOKENS = 8
SOME_TOKENS = 50  # ids below this are in every vocabulary worth the name
AUDIO_SAMPLES = 16_000  # one second, at the rate that speech models take
IMAGE_SIZE = 224  # where the config names none: a convolutional network takes any
LABELS = "labels"


@dataclass(frozen=True)
class Argument:
    """One argument that forward takes."""

    name: str
    required: bool


def from_dataset(path: Path, accepted: Sequence[Argument], dtype: torch.dtype) -> dict[str, Tensor]:
    """The first two samples of a dataset, by forward argument and in forward's order: arrays go by name, and the only
    array to the only argument that is needed. Floating-point arrays become ``dtype``, integers int64.

    Raises ``EngineError('calibration-failed')`` when they do not fit.
    """
    arrays = first_samples(path)
    arrays.pop(LABELS, None)
    named = _by_name(arrays, accepted)
    return {each.name: _tensor(named[each.name], dtype) for each in accepted if each.name in named}


def first_samples(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Two samples of every array; of a dataset with one sample, that one twice."""
    if is_npz(path):
        with np.load(path, allow_pickle=False) as archive:
            return {name: _two(archive[name]) for name in archive.files}
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return {name: _two(file.get_slice(name)[:SAMPLES]) for name in file.keys()}  # noqa: SIM118  # no iterator


def float_dtype(module: nn.Module) -> torch.dtype:
    """What the module computes in: its first floating-point parameter's dtype."""
    return next((each.dtype for each in module.parameters() if each.dtype.is_floating_point), torch.float32)


def from_config(config: Any, names: Sequence[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """Made-up inputs of a Transformers model, [2, ...] each: those of ``names`` that ``MAKERS`` knows."""
    made = {name: MAKERS[name](config) for name in names if name in MAKERS}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in made.items()}


def has_image_size(config: Any) -> bool:
    """Whether the model takes pictures of one size only."""
    return bool(getattr(_vision(config), "image_size", None))


def _by_name(arrays: dict[str, np.ndarray[Any, Any]], accepted: Sequence[Argument]) -> dict[str, np.ndarray[Any, Any]]:
    names = {each.name for each in accepted}
    required = [each.name for each in accepted if each.required] or [each.name for each in accepted[:1]]
    if len(arrays) == len(required) == 1 and not names & set(arrays):
        arrays = dict(zip(required, arrays.values(), strict=True))
    strange, missing = sorted(set(arrays) - names), sorted(set(required) - set(arrays))
    needed = any(each.required for each in accepted)
    if strange or not arrays or (needed and missing):
        raise EngineError("calibration-failed", _misfit(strange, missing if needed else required, accepted))
    return arrays


def _misfit(strange: Sequence[str], missing: Sequence[str], accepted: Sequence[Argument]) -> str:
    takes = ", ".join(each.name for each in accepted) or "nothing"
    found = f"has {', '.join(strange)}, which forward does not take" if strange else f"lacks {', '.join(missing)}"
    return f"the dataset {found}. forward takes {takes}: name the arrays so, with numpy.savez(path, name=...)."


def _two(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    first = array[:SAMPLES]
    if not len(first):
        raise EngineError("calibration-failed", "the dataset holds no samples")
    return first if len(first) == SAMPLES else np.concatenate([first, first])


def _tensor(array: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    value = torch.from_numpy(np.ascontiguousarray(array))
    if value.is_floating_point():
        return value.to(dtype)
    return value.to(torch.int64) if array.dtype.kind == "i" else value


# --- What a config tells ----------------------------------------------------------------------------------------------


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
    """A waveform, or where the config tells its size, the spectrogram that some audio models call by the same name."""
    if hasattr(config, "frequency_stride"):
        return _floats(int(config.max_length), int(config.num_mel_bins))
    return _floats(AUDIO_SAMPLES)


def _floats(*shape: int) -> Tensor:
    return torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(0))


MAKERS: dict[str, Callable[[Any], Tensor]] = {
    "input_ids": _token_ids,
    "attention_mask": _attention_mask,
    "decoder_input_ids": _token_ids,
    "pixel_values": _pixel_values,
    "input_features": _input_features,
    "input_values": _input_values,
}
