"""A Transformers folder: its class from the installed library, its weights from safetensors, its code from nowhere.

The upload was scanned: names, config and headers are known to be harmless (``workers.intake``). What the library
could still be talked into, a download or a remote class, is closed off here once more.
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
from workers.engine.formats.examples import MAKERS, Argument, float_dtype, from_config, from_dataset, has_image_size
from workers.engine.formats.exporting import ADVICE, Arguments, export
from workers.engine.graph.program import signature
from workers.errors import EngineError, first_line
from workers.intake.transformers_folders import extract

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the library is imported; a worker never downloads
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # one thread: memory stays at what one tensor needs
import transformers
from transformers import PreTrainedModel  # the heavy part, once in the fork server
from transformers.utils import logging

# A progress bar would start a thread, and a process with threads cannot be forked safely.
logging.disable_progress_bar()  # type: ignore[no-untyped-call]
logging.set_verbosity_error()  # type: ignore[no-untyped-call]

LIKE = {"attention_mask": "input_ids", "token_type_ids": "input_ids", "decoder_attention_mask": "decoder_input_ids"}
"""Arguments that a dataset may give or leave out, each with the one whose dtype and shape it has."""


def open_pretrained(path: Path) -> nn.Module:
    """The model in the folder archive at ``path``, in eval mode, its weights in the dtypes they were stored in.

    Raises ``EngineError('invalid-model')`` for a model the installed library does not have, or with weights missing.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="folder-") as name:
        folder = extract(path, Path(name))
        config = json.loads((folder / "config.json").read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _loaded(_class_of(config), folder, config)


def pretrained_program(path: Path, dataset: Path | None) -> Program:
    """The model as a program whose inputs are what the dataset gives, or else what the config tells."""
    return _program(open_pretrained(path), dataset)


def inspect_pretrained(path: Path) -> tuple[Program, tuple[InputSignature, ...]]:
    """The program on made-up inputs, and all that a dataset may give, which can be more, or of another size."""
    model = open_pretrained(path)
    names = {each.name for each in arguments_of(model)}
    program = _program(model, None)
    made = {each.name: each for each in signature(program)}
    more = {name: made[like] for name, like in LIKE.items() if name in names and like in made}
    inputs = {name: made.get(name, each) for name, each in (made | more).items()}
    return program, tuple(_as_accepted(name, each, model.config) for name, each in inputs.items())


def _as_accepted(name: str, given: InputSignature, config: Any) -> InputSignature:
    if name == "pixel_values" and not has_image_size(config):
        bounds: dict[str, tuple[int, int | None]] = {"height": (1, None), "width": (1, None)}
        return given.model_copy(
            update={"shape": (*given.shape[:2], "height", "width"), "dynamic": given.dynamic | bounds}
        )
    return given.model_copy(update={"name": name, "optional": name in LIKE})


def _program(model: nn.Module, dataset: Path | None) -> Program:
    accepted, dtype = arguments_of(model), float_dtype(model)
    forward = model.forward

    def call(**arguments: Tensor) -> dict[str, Tensor]:
        """A plain dict: the artifact loads without Transformers. What is no tensor (caches) has no place in it."""
        return {name: value for name, value in forward(**arguments).items() if isinstance(value, Tensor)}

    example = from_dataset(dataset, accepted, dtype) if dataset else _made_up(model, accepted, dtype)
    return program_of(export(model, example, call, by_name=True))


def arguments_of(model: nn.Module) -> tuple[Argument, ...]:
    """What forward takes, tensors and flags alike. Needed is what the model cannot do without."""
    main = getattr(model, "main_input_name", "input_ids")
    parameters = [
        name
        for name, each in inspect.signature(model.forward).parameters.items()
        if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    ]
    needed = {main, "decoder_input_ids"} if model.config.is_encoder_decoder else {main}  # type: ignore[union-attr]
    return tuple(Argument(name, name in needed) for name in parameters)


def _made_up(model: nn.Module, accepted: Sequence[Argument], dtype: torch.dtype) -> Arguments:
    names = [each.name for each in accepted if each.name in MAKERS]
    needed = [each.name for each in accepted if each.required]
    if "input_ids" not in needed:  # of spectrograms and pictures nothing is masked
        names = [name for name in names if name != "attention_mask"]
    if not model.config.is_encoder_decoder:  # type: ignore[union-attr]
        names = [name for name in names if not name.startswith("decoder_")]
    if not set(needed) <= set(MAKERS):
        unknown = ", ".join(sorted(set(needed) - set(MAKERS)))
        raise EngineError("export-failed", f"inputs like {unknown} cannot be made up from a config. {ADVICE}")
    return from_config(model.config, names, dtype)


def _class_of(config: dict[str, Any]) -> Any:
    """``architectures[0]``, which must be a model class of the library for this ``model_type``."""
    architecture, model_type = config["architectures"][0], config["model_type"]
    found = getattr(transformers, architecture, None)
    is_model = isinstance(found, type) and issubclass(found, PreTrainedModel)
    if found is None or not is_model or not found.__module__.startswith("transformers.models."):
        raise EngineError(
            "invalid-model",
            f"config.json names the architecture {architecture}, which transformers {transformers.__version__} does "
            f"not have. {ADVICE}",
        )
    if found.config_class is None or found.config_class.model_type != model_type:
        raise EngineError("invalid-model", f"config.json names {architecture}, which is no {model_type!r} model.")
    return found


def _loaded(kind: Any, folder: Path, config: dict[str, Any]) -> nn.Module:
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
    except Exception as error:  # the library raises many kinds, and the folder is the user's: each is his to mend
        raise EngineError(
            "invalid-model", f"transformers {transformers.__version__} cannot load this folder: {first_line(error)}"
        ) from error
    _require_all(info)
    for module in model.modules():
        if hasattr(module, "config") and hasattr(module.config, "use_cache"):
            module.config.use_cache = False
    experts.compute_all(model)
    return model.eval()  # type: ignore[no-any-return]


def _require_all(info: dict[str, Any]) -> None:
    """The library fills what is missing with random numbers, and says so in a log nobody reads here."""
    missing = sorted(map(str, info["missing_keys"]))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise EngineError(
            "invalid-model",
            f"the safetensors lack {', '.join(missing[:3])}{more}, which {len(missing)} parameters of the architecture "
            "need. Save the model with save_pretrained under the class it was trained as.",
        )
