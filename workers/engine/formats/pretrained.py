"""A Transformers folder: its class comes from the installed library, its weights from safetensors; it brings no code.

The upload was scanned: names, config and headers are known to be harmless (``workers.intake``). Downloads and remote
classes, which the library would still allow, are turned off here as well.
"""

from __future__ import annotations

import inspect
import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.contract.resources import InputSignature
from fewbit.runtime.program import Program, program_of
from workers.engine.formats import experts
from workers.engine.formats.examples import (
    EXAMPLE_MAKERS,
    Argument,
    example_from_config,
    example_from_dataset,
    float_dtype,
    has_image_size,
)
from workers.engine.formats.exporting import ADVICE, Arguments, export
from workers.engine.graph.program import signature
from workers.errors import EngineError, first_line
from workers.intake.transformers_folders import extract

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the library is imported; a worker never downloads
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # one thread: only one tensor is in memory twice
import transformers
from transformers import PreTrainedModel  # the heavy part, once in the fork server
from transformers.utils import logging

# A progress bar would start a thread, and a process with threads cannot be forked safely.
quiet: Any = logging
quiet.disable_progress_bar()
quiet.set_verbosity_error()

LIKE = {"attention_mask": "input_ids", "token_type_ids": "input_ids", "decoder_attention_mask": "decoder_input_ids"}
"""Arguments that a dataset may leave out, and the argument that has the same dtype and shape."""


def open_pretrained(path: Path) -> nn.Module:
    """The model in the folder archive at ``path``, in eval mode, its weights in the dtypes they were stored in.

    Raises ``EngineError('invalid-model')`` for a model the installed library does not have, or with weights missing.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="folder-") as name:
        folder = extract(path, Path(name))
        config = json.loads((folder / "config.json").read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _load_pretrained(_architecture_class(config), folder, config)


def pretrained_program(path: Path, dataset: Path | None) -> Program:
    """The model as a program. Its inputs are those that the dataset gives, or else those made from the config."""
    return _program(open_pretrained(path), dataset)


def inspect_pretrained(path: Path) -> tuple[Program, tuple[InputSignature, ...]]:
    """The program on made-up inputs, and all inputs that a dataset may give: that can be more, or of another size."""
    model = open_pretrained(path)
    names = {argument.name for argument in forward_arguments(model)}
    program = _program(model, None)
    made_up = {given.name: given for given in signature(program)}
    optional = {name: made_up[like] for name, like in LIKE.items() if name in names and like in made_up}
    inputs = made_up | {name: given for name, given in optional.items() if name not in made_up}
    return program, tuple(_accepted_input(name, given, model.config) for name, given in inputs.items())


def _accepted_input(name: str, given: InputSignature, config: Any) -> InputSignature:
    if name == "pixel_values" and not has_image_size(config):
        bounds: dict[str, tuple[int, int | None]] = {"height": (1, None), "width": (1, None)}
        return given.model_copy(
            update={"shape": (*given.shape[:2], "height", "width"), "dynamic": given.dynamic | bounds}
        )
    return given.model_copy(update={"name": name, "optional": name in LIKE})


def _program(model: nn.Module, dataset: Path | None) -> Program:
    accepted, dtype = forward_arguments(model), float_dtype(model)
    forward = model.forward

    def call(**arguments: Tensor) -> dict[str, Tensor]:
        """A plain dict, so that the artifact loads without Transformers; without what is not a tensor (caches)."""
        return {name: value for name, value in forward(**arguments).items() if isinstance(value, Tensor)}

    example = example_from_dataset(dataset, accepted, dtype) if dataset else _make_up_example(model, accepted, dtype)
    return program_of(export(model, example, call, by_name=True))


def forward_arguments(model: nn.Module) -> tuple[Argument, ...]:
    """All arguments of forward, tensors and flags alike; required are those that the model cannot run without."""
    main = getattr(model, "main_input_name", "input_ids")
    names = [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    required = {main, "decoder_input_ids"} if _config(model).is_encoder_decoder else {main}
    return tuple(Argument(name, name in required) for name in names)


def _config(model: nn.Module) -> Any:
    return model.config


def _make_up_example(model: nn.Module, accepted: Sequence[Argument], dtype: torch.dtype) -> Arguments:
    names = [argument.name for argument in accepted if argument.name in EXAMPLE_MAKERS]
    required = {argument.name for argument in accepted if argument.required}
    if "input_ids" not in required:  # spectrograms and pictures have no mask
        names = [name for name in names if name != "attention_mask"]
    if not _config(model).is_encoder_decoder:
        names = [name for name in names if not name.startswith("decoder_")]
    if not required <= set(EXAMPLE_MAKERS):
        unknown = ", ".join(sorted(required - set(EXAMPLE_MAKERS)))
        raise EngineError("export-failed", f"inputs like {unknown} cannot be made up from a config. {ADVICE}")
    return example_from_config(model.config, names, dtype)


def _architecture_class(config: dict[str, Any]) -> Any:
    """``architectures[0]``, which must be a model class of the library for this ``model_type``."""
    architecture, model_type = config["architectures"][0], config["model_type"]
    model_class = getattr(transformers, architecture, None)
    is_model = isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)
    if model_class is None or not is_model or not model_class.__module__.startswith("transformers.models."):
        raise EngineError(
            "invalid-model",
            f"config.json names the architecture {architecture}, which transformers {transformers.__version__} does "
            f"not have. {ADVICE}",
        )
    if model_class.config_class is None or model_class.config_class.model_type != model_type:
        raise EngineError("invalid-model", f"config.json names {architecture}, which is not a {model_type!r} model.")
    return model_class


def _load_pretrained(kind: Any, folder: Path, config: dict[str, Any]) -> nn.Module:
    try:
        model, info = kind.from_pretrained(
            folder,
            config=kind.config_class.from_dict(config),
            attn_implementation="eager",
            dtype="auto",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except MemoryError:
        raise
    except Exception as error:  # the library raises many kinds, and the user can fix all of them in the folder
        raise EngineError(
            "invalid-model", f"transformers {transformers.__version__} cannot load this folder: {first_line(error)}"
        ) from error
    _require_all(info)
    for module in model.modules():
        if hasattr(module, "config") and hasattr(module.config, "use_cache"):
            module.config.use_cache = False
    experts.compute_all(model)
    ready: nn.Module = model.eval()
    return ready


def _require_all(info: dict[str, Any]) -> None:
    """The library fills missing parameters with random numbers, and only logs it."""
    missing = sorted(map(str, info["missing_keys"]))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        count = "1 parameter" if len(missing) == 1 else f"{len(missing)} parameters"
        raise EngineError(
            "invalid-model",
            f"the safetensors lack {count} of the architecture: {', '.join(missing[:3])}{more}. Save the model with "
            "save_pretrained under the class it was trained as.",
        )
