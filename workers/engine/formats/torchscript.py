"""A TorchScript archive becomes an exported program: converted node by node, or followed on the example.

The converter keeps the batch free, but does not know every construct. Then torch.export follows one run of the script
itself, which takes any, with the sizes of the example for good.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fewbit.contract.resources import ModelLayer
from fewbit.runtime.program import Program, program_of
from workers.engine.formats.examples import Argument, float_dtype, from_dataset
from workers.engine.formats.exporting import Arguments, export
from workers.engine.formats.stock import check_names, class_of, require, shown_class, table
from workers.errors import EngineError, first_line


def script_program(path: Path, dataset: Path | None) -> Program:
    """The script as a program, on two samples of the dataset. Raises ``EngineError('export-failed')``."""
    script = _load(path)
    accepted = arguments_of(script)
    example = from_dataset(require(dataset, accepted), accepted, float_dtype(script))
    _require_positions(example, accepted)
    program = program_of(_converted(script, example) or _followed(script, example))
    _name_layers(program, script)
    return program


def script_layers(path: Path) -> tuple[ModelLayer, ...]:
    """The layer table as far as the scripted modules still tell what they were."""
    return tuple(table(_load(path)))


def arguments_of(script: torch.jit.ScriptModule) -> tuple[Argument, ...]:
    schema = script._c._get_method("forward").schema
    return tuple(Argument(each.name, not each.has_default_value()) for each in schema.arguments[1:])


def _load(path: Path) -> torch.jit.ScriptModule:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            script = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
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
    return script.eval()  # type: ignore[no-any-return]


def _require_positions(example: Arguments, accepted: tuple[Argument, ...]) -> None:
    """Both ways give arguments by position, so none before the last may be left out."""
    given, expected = list(example), [each.name for each in accepted][: len(example)]
    if given != expected:
        raise EngineError(
            "calibration-failed",
            f"the dataset gives {', '.join(given)}; forward takes {', '.join(expected)} first, so it must give these.",
        )


def _converted(script: torch.jit.ScriptModule, example: Arguments) -> ExportedProgram | None:
    """By torch's converter, then exported anew under forward's own argument names; None where that fails."""
    from torch._export.converter import TS2EPConverter

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            module = TS2EPConverter(script, tuple(example.values()), {}).convert().module(check_guards=False)
            _require_same(script, module, example)
            original = module.forward
            exported = export(module, example, lambda **given: original(*given.values()))
            if exported.range_constraints:  # a size is free: then it must be free indeed
                one_more = {name: torch.cat([value, value[:1]]) for name, value in example.items()}
                _require_same(script, exported.module(), one_more)
            return exported
    except MemoryError:
        raise
    except Exception:  # the converter has many ways to fail, and no name for them
        return None


def _require_same(script: nn.Module, module: nn.Module, example: Arguments) -> None:
    """A conversion that computes something else is none."""
    inputs = tuple(example.values())
    torch.testing.assert_close(module(*inputs), script(*inputs), rtol=1e-3, atol=1e-4, equal_nan=True)


def _followed(script: torch.jit.ScriptModule, example: Arguments) -> ExportedProgram:
    call = _Followed(script)
    return export(call, example, call.follow, fixed=True)


class _Followed(nn.Module):
    """The script's parameters under their names in plain modules, which torch.export can lift; each call puts what
    torch.export made of them into the script for as long as it runs."""

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

    def follow(self, **arguments: Tensor) -> Any:
        """With gradients, as in training: else scripted attention takes a fused kernel that hides its layers."""
        with self._held(), torch.enable_grad():
            return self._script[0](*arguments.values())

    @contextmanager
    def _held(self) -> Iterator[None]:
        held = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        before = {path: self._swap(path, value) for path, value in held.items()}
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
    """Neither way records which module made a node. The owner of the parameter it reads did."""
    kinds = {path: class_of(module) for path, module in script.named_modules()}
    for node in program.graph.nodes:
        node.meta.pop("nn_module_stack", None)
    for hole, constant in program.constants.items():
        owner = constant.name.rpartition(".")[0]
        stack = {owner: (owner, shown_class(kinds.get(owner, "")))}
        for user in hole.users:
            user.meta.setdefault("nn_module_stack", stack)
