"""A TorchScript archive becomes an exported program: converted node by node, or traced on the example.

The converter keeps the batch free, but does not support every construct. If it fails, torch.export traces one run of
the script itself. That supports everything, but fixes all sizes to those of the example.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fewbit.contract.resources import ModelLayer
from fewbit.runtime.program import Program, program_of
from workers.engine.formats.examples import Argument, example_from_dataset, float_dtype
from workers.engine.formats.exporting import Arguments, export
from workers.engine.formats.stock import check_names, layer_table, require_dataset, shown_class, stock_class
from workers.engine.graph.torch_internals import torchscript_converter
from workers.errors import EngineError, first_line


def script_program(path: Path, dataset: Path | None) -> Program:
    """The script as a program, on two samples of the dataset. Raises ``EngineError('export-failed')``."""
    script = _load(path)
    accepted = forward_arguments(script)
    example = example_from_dataset(require_dataset(dataset, accepted), accepted, float_dtype(script))
    _require_positions(example, accepted)
    program = program_of(_convert(script, example) or _trace(script, example))
    _name_layers(program, script)
    return program


def script_layers(path: Path) -> tuple[ModelLayer, ...]:
    """The layer table as far as the scripted modules remember their classes."""
    return tuple(layer_table(_load(path)))


def forward_arguments(script: torch.jit.ScriptModule) -> tuple[Argument, ...]:
    schema = script._c._get_method("forward").schema
    return tuple(Argument(argument.name, not argument.has_default_value()) for argument in schema.arguments[1:])


def _load(path: Path) -> torch.jit.ScriptModule:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load: Callable[..., torch.jit.ScriptModule] = torch.jit.load
            script = load(path, map_location="cpu")
    except MemoryError:
        raise
    except Exception as error:  # torch raises RuntimeError for everything here, and the file is the user's
        raise EngineError(
            "invalid-model", f"torch {torch.__version__} cannot load this TorchScript: {first_line(error)}"
        ) from error
    if not script._c._has_method("forward"):
        raise EngineError(
            "invalid-model",
            "the TorchScript module has no single method forward (a scripted LSTM or GRU has two). Script a module "
            "whose forward calls it.",
        )
    check_names(script)
    script.eval()
    return script


def _require_positions(example: Arguments, accepted: tuple[Argument, ...]) -> None:
    """Arguments are passed by position, so none before the last may be missing."""
    given, expected = list(example), [argument.name for argument in accepted][: len(example)]
    if given != expected:
        raise EngineError(
            "calibration-failed",
            f"the dataset gives {', '.join(given)}; forward takes {', '.join(expected)} first, so it must give these.",
        )


def _convert(script: torch.jit.ScriptModule, example: Arguments) -> ExportedProgram | None:
    """By torch's converter, then exported anew under forward's own argument names; None where that fails."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            module = torchscript_converter()(script, tuple(example.values()), {}).convert().module(check_guards=False)
            _require_same(script, module, example)
            original = module.forward
            exported = export(module, example, lambda **given: original(*given.values()))
            if exported.range_constraints:  # a size is declared free: check that it is
                one_more = {name: torch.cat([value, value[:1]]) for name, value in example.items()}
                _require_same(script, exported.module(), one_more)
            return exported
    except MemoryError:
        raise
    except Exception:  # the converter fails in many ways, with no class of error for them
        return None


def _require_same(script: nn.Module, module: nn.Module, example: Arguments) -> None:
    """Raises ``AssertionError`` if ``module`` computes something else than ``script``."""
    inputs = tuple(example.values())
    torch.testing.assert_close(module(*inputs), script(*inputs), rtol=1e-3, atol=1e-4, equal_nan=True)


def _trace(script: torch.jit.ScriptModule, example: Arguments) -> ExportedProgram:
    call = _TraceableScript(script)
    return export(call, example, call.run, fixed=True)


class _TraceableScript(nn.Module):
    """The script's parameters under their names in plain modules, so that torch.export can lift them. During a call,
    the script holds what torch.export put in their place."""

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self._script = [script]  # a list: no submodule of this one
        self._owners = dict(script.named_modules())
        for path in filter(None, self._owners):
            owner, _, name = path.rpartition(".")
            self.get_submodule(owner).add_module(name, nn.Module())
        for path, parameter in script.named_parameters(remove_duplicate=False):
            owner, _, name = path.rpartition(".")
            self.get_submodule(owner).register_parameter(name, nn.Parameter(parameter.detach()))
        for path, buffer in script.named_buffers(remove_duplicate=False):
            owner, _, name = path.rpartition(".")
            self.get_submodule(owner).register_buffer(name, buffer)

    def run(self, **arguments: Tensor) -> Any:
        """With gradients, as in training: otherwise scripted attention uses a fused kernel that hides its layers."""
        with self._parameters_in_script(), torch.enable_grad():
            return self._script[0](*arguments.values())

    @contextmanager
    def _parameters_in_script(self) -> Iterator[None]:
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        before = {path: self._swap(path, value) for path, value in own.items()}
        try:
            yield
        finally:
            for path, value in before.items():
                self._swap(path, value)

    def _swap(self, path: str, value: Tensor) -> Tensor:
        owner, _, name = path.rpartition(".")
        script = self._owners[owner]._c
        before: Tensor = script.getattr(name)
        script.setattr(name, value)
        return before


def _name_layers(program: Program, script: torch.jit.ScriptModule) -> None:
    """Neither converting nor tracing records which module made a node: it is the owner of the parameter it reads."""
    kinds = {path: stock_class(module) for path, module in script.named_modules()}
    for node in program.graph.nodes:
        node.meta.pop("nn_module_stack", None)
    for hole, constant in program.constants.items():
        owner = constant.name.rpartition(".")[0]
        stack = {owner: (owner, shown_class(kinds.get(owner, "")))}
        for user in hole.users:
            user.meta.setdefault("nn_module_stack", stack)
