"""Where an artifact parts from the reference: at the first layer whose result it gives otherwise."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument

from fewbit.runtime.program import Program, program_of
from fewbit.runtime.record import FILE, LayerRecord, Record
from workers.engine.artifacts.kinds import Kind
from workers.engine.data import Batch
from workers.engine.graph.editor import GraphEditor
from workers.engine.graph.run import ProgramRun
from workers.engine.graph.torch_internals import pytree
from workers.engine.quantization.reference import Reference
from workers.engine.quantization.weights import sqnr_db

APART_DB = 30.0  # below this a layer's result is another one, not another rounding


def parting_layer(reference: Path, kind: Kind, batch: Batch, folder: Path) -> str | None:
    """``reference``: the ``.pt2``. By halves, over the layers in the order of their calls: a handful of artifacts that
    end at one layer are written and run on ``batch``. None where that does not tell."""
    extra = {FILE: ""}
    program = program_of(torch.export.load(reference, extra_files=extra))
    record = Record.model_validate_json(extra[FILE])
    order = {node.name: index for index, node in enumerate(program.graph.nodes)}
    layers = sorted((layer for layer in record.layers if layer.node in order), key=lambda layer: order[layer.node])
    try:
        low, high = 0, len(layers)
        while low < high:
            middle = (low + high) // 2
            if _parts(program, record, layers[middle], kind, batch, folder):
                high = middle
            else:
                low = middle + 1
        return layers[low].name if low < len(layers) else None
    except MemoryError:
        raise
    except Exception:  # a part of a program may have no form where the whole has one
        return None


def _parts(program: Program, record: Record, layer: LayerRecord, kind: Kind, batch: Batch, folder: Path) -> bool:
    part = Reference(_Cut(program, layer.node).finish(), record)
    alive = {node.name for node in part.program.graph.nodes}
    kept = tuple(other for other in record.layers if other.node in alive)
    values = tuple(value for value in record.values if value.node in alive)
    part = Reference(part.program, record.model_copy(update={"layers": kept, "values": values}))
    path = folder / f"part-{kind.file}"
    kind.save(part, path)
    try:
        output = next(result for result in kind.loaders[kind.loader](path)(batch.inputs) if isinstance(result, Tensor))
    finally:
        path.unlink(missing_ok=True)
    expected: Tensor = ProgramRun(part.program).outputs(batch.inputs)[0]
    return expected.shape != output.shape or sqnr_db(expected.float(), output.float()) < APART_DB


class _Cut(GraphEditor):
    """The program up to one node, which is all that it gives."""

    def __init__(self, program: Program, name: str) -> None:
        super().__init__(program, drop_unread=True)
        self.cut = name
        output = next(node for node in self.graph.nodes if node.op == "output")
        output.args = ((self.nodes[name],),)

    def _assembled(self) -> ExportedProgram:
        used = {spec.target for spec in self.specs}
        whole = next(entry for entry in self.exported.module_call_graph if entry.fqn == "")
        signature = self.exported.graph_signature
        assert whole.signature is not None
        call = type(whole.signature)(
            inputs=whole.signature.inputs, outputs=[TensorArgument(self.cut)], in_spec=whole.signature.in_spec,
            out_spec=pytree.tree_structure((0,)), forward_arg_names=whole.signature.forward_arg_names,
        )  # fmt: skip
        return ExportedProgram(
            root=self.exported.graph_module,
            graph=self.graph,
            graph_signature=type(signature)(
                self.specs, [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(self.cut), None)]
            ),
            state_dict={name: value for name, value in self.state.items() if name in used},
            range_constraints=self.exported.range_constraints,
            module_call_graph=[type(whole)(fqn="", signature=call)],
            example_inputs=None,
            constants={name: value for name, value in self.exported.constants.items() if name in used},
            verifiers=self.exported.verifiers,
        )
