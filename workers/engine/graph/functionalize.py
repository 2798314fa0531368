"""A program without writes: what it changes becomes an output.

A quantized copy of a value that stands before a later write to it is wrong, and so is a constant that a call changes.
So before anything looks for layers, no call writes: not in place, not through a view. What a program keeps from one
call to the next, a counter or a cache, is an output that the graph's signature names.

Three ways, the cheapest that fits:

    tables       ``Embedding(max_norm)`` shortens the rows that are read: all rows are shortened here, once
    alone        ``relu_`` on a value that nothing else can see: the pure overload takes its place
    all others   torch's functionalization, which keeps every operator (an empty table of decompositions)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fewbit.runtime.program import Program, mutates, program_of
from workers.engine.graph.editor import GraphEditor
from workers.engine.graph.ops import DROPOUTS, EMBEDDINGS, SAME_MEMORY
from workers.engine.graph.torch_internals import (
    OpOverload,
    base_name,
    gives_view,
    is_operator,
    overload_name,
    result_count,
)

aten = torch.ops.aten


def functionalize(program: Program) -> Program:
    """``program`` itself where nothing is written."""
    if not has_writes(program):
        return program
    program = _renormalize_tables(program)
    written = [node for node in program.graph.nodes if mutates(node)]
    if not _has_region_writes(program) and all(_pure_overload(node) is not None for node in written):
        return _use_pure_overloads(program) if written else program
    return _functionalize_by_torch(program)


def has_writes(program: Program) -> bool:
    """Whether any call of the program, or of a region it calls, writes into one of its arguments."""
    return any(mutates(node) for node in program.graph.nodes) or _has_region_writes(program)


def _has_region_writes(program: Program) -> bool:
    whole = program.exported.graph_module
    regions = (region for region in whole.modules() if isinstance(region, fx.GraphModule) and region is not whole)
    return any(mutates(node) for region in regions for node in region.graph.nodes)


# --- Tables whose rows are shortened when they are read ---


def _renormalize_tables(program: Program) -> Program:
    """``embedding_renorm_`` gives a row that it has shortened before once more: where all readers of a table look up
    rows that were just shortened, it may as well be done to all rows at once."""
    shortened = {node for node in program.graph.nodes if node.target is aten.embedding_renorm_.default}
    tables = {_root(node.args[0]) for node in shortened}
    ready = {table: calls for table in tables if (calls := _only_lookups(table))}
    if not ready:
        return program
    editor = GraphEditor(program)
    for table, calls in ready.items():
        name, settings = editor.constant_name(editor.nodes[table.name]), calls[0].args[2:4]
        value = editor.value(name) if name is not None else None
        if name is None or value is None:
            continue
        editor.set_value(name, _shorten_rows(value, *settings))
        for call in calls:
            node = editor.nodes[call.name]
            editor.unread.discard(node)
            node.replace_all_uses_with(node.all_input_nodes[0])
            editor.graph.erase_node(node)
    return editor.finish()


def _shorten_rows(table: Tensor, largest: Any, norm: Any) -> Tensor:
    with torch.no_grad():
        shortened: Tensor = aten.embedding_renorm_(table.detach().clone(), torch.arange(len(table)), largest, norm)
    return shortened


def _only_lookups(table: fx.Node) -> list[fx.Node]:
    """The calls that shorten rows of ``table``; none where something reads a row that they have not."""
    if table.op != "placeholder":
        return []
    calls: list[fx.Node] = []
    shortened: set[Any] = set()
    for reader in sorted(_readers(table), key=_position):
        if reader.target is aten.embedding_renorm_.default:
            calls.append(reader)
            shortened.add(reader.args[1])
        elif reader.target not in EMBEDDINGS or reader.args[1] not in shortened:
            return []
    return calls if len({call.args[2:4] for call in calls}) == 1 else []


def _position(node: fx.Node) -> int:
    return next(index for index, other in enumerate(node.graph.nodes) if other is node)


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    for user in node.users:
        if user.target in SAME_MEMORY:
            yield from _readers(user)
        else:
            yield user


def _root(node: Any) -> Any:
    while isinstance(node, fx.Node) and node.target in SAME_MEMORY:
        node = node.args[0]
    return node


# --- Values that nobody else can see ---


def _use_pure_overloads(program: Program) -> Program:
    editor = GraphEditor(program)
    for node in list(editor.graph.nodes):
        pure = _pure_overload(node)
        if pure is not None:
            _make_pure(editor, node, pure)
    return editor.finish()


def _pure_overload(node: fx.Node) -> OpOverload | None:
    """The pure overload of a call such as ``relu_`` whose argument nobody else can see; None for all others."""
    target = node.target
    if not is_operator(target) or not mutates(node) or not base_name(target).endswith("_"):
        return None
    written = node.args[0] if node.args else None
    if not isinstance(written, fx.Node) or written.op != "call_function" or _is_view(written):
        return None
    if any(_is_view(user) for user in written.users):
        return None
    packet = getattr(aten, base_name(target)[:-1], None)
    pure = getattr(packet, overload_name(target), None)
    return pure if is_operator(pure) else None


def _is_view(node: fx.Node) -> bool:
    """Whether the result may share memory with an argument: also where nothing is known of the call. In eval mode
    dropout returns its input itself."""
    target = node.target
    return not is_operator(target) or not result_count(target) or gives_view(target) or target in DROPOUTS


def _make_pure(editor: GraphEditor, node: fx.Node, pure: OpOverload) -> None:
    written = node.all_input_nodes[0]
    node.target = pure
    behind = False
    for reader in list(editor.graph.nodes):
        if behind and written in reader.all_input_nodes:
            reader.replace_input_with(written, node)
        behind = behind or reader is node


# --- All others ---


def _functionalize_by_torch(program: Program) -> Program:
    """Where torch cannot, the program as it is: what comes of it is measured against the upload."""
    exported = _remove_idle_dropout(program).exported
    try:
        return program_of(exported.run_decompositions({}))
    except MemoryError:
        raise
    except Exception:  # torch raises many kinds here
        return program


def _remove_idle_dropout(program: Program) -> Program:
    """A dropout that does nothing gives its input, and a write to one is a write to the other, which torch's
    functionalization does not know."""
    idle = [node.name for node in program.graph.nodes if node.target in DROPOUTS and not node.args[2]]
    if not idle:
        return program
    editor = GraphEditor(program)
    for name in idle:
        node = editor.nodes[name]
        editor.replace(node, node.all_input_nodes[0])
    return editor.finish()
