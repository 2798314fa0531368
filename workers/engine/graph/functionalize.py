"""A program without writes: what it changes becomes what it gives.

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
from workers.engine.graph.editor import Surgery

aten = torch.ops.aten
VIEWS_OF_ALL = frozenset((aten.detach.default, aten.alias.default, aten.detach_.default))
LOOKUPS = frozenset((
    aten.embedding.default, aten.embedding_bag.default, aten.embedding_bag.padding_idx, aten._embedding_bag.default,
    aten._embedding_bag_forward_only.default,
))  # fmt: skip
DROPOUTS = frozenset((aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default))


def functionalized(program: Program) -> Program:
    """``program`` itself where nothing is written."""
    if not writes(program):
        return program
    program = _with_renormalized_tables(program)
    written = [node for node in program.graph.nodes if mutates(node)]
    if not _writes_in_regions(program) and all(_pure_overload(node) is not None for node in written):
        return _with_pure_overloads(program) if written else program
    return _functionalized_by_torch(program)


def writes(program: Program) -> bool:
    """Whether any call of the program, or of a region it calls, writes into one of its arguments."""
    return any(mutates(node) for node in program.graph.nodes) or _writes_in_regions(program)


def _writes_in_regions(program: Program) -> bool:
    whole = program.exported.graph_module
    regions = (region for region in whole.modules() if isinstance(region, fx.GraphModule) and region is not whole)
    return any(mutates(node) for region in regions for node in region.graph.nodes)


# --- Tables whose rows are shortened when they are read ---


def _with_renormalized_tables(program: Program) -> Program:
    """``embedding_renorm_`` gives a row that it has shortened before once more: where all readers of a table look up
    rows that were just shortened, it may as well be done to all rows at once."""
    shortened = {node for node in program.graph.nodes if node.target is aten.embedding_renorm_.default}
    tables = {_root(node.args[0]) for node in shortened}
    ready = {table: calls for table in tables if (calls := _only_lookups(table))}
    if not ready:
        return program
    surgery = Surgery(program)
    for table, calls in ready.items():
        hole = surgery.nodes[table.name]
        target, settings = surgery.target_of(hole), calls[0].args[2:4]
        value = surgery.held(target) if target is not None else None
        if target is None or value is None:
            continue
        surgery.put(target, _shortened(value, *settings))
        for call in calls:
            node = surgery.nodes[call.name]
            surgery.unread.discard(node)
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            surgery.graph.erase_node(node)
    return surgery.finish()


def _shortened(table: Tensor, largest: Any, norm: Any) -> Tensor:
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
        elif reader.target not in LOOKUPS or reader.args[1] not in shortened:
            return []
    return calls if len({call.args[2:4] for call in calls}) == 1 else []


def _position(node: fx.Node) -> int:
    return next(index for index, other in enumerate(node.graph.nodes) if other is node)


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    for user in node.users:
        if user.target in VIEWS_OF_ALL:
            yield from _readers(user)
        else:
            yield user


def _root(node: Any) -> Any:
    while isinstance(node, fx.Node) and node.target in VIEWS_OF_ALL:
        node = node.args[0]
    return node


# --- Values that nobody else can see ---


def _with_pure_overloads(program: Program) -> Program:
    surgery = Surgery(program)
    for node in list(surgery.graph.nodes):
        pure = _pure_overload(node)
        if pure is not None:
            _make_pure(surgery, node, pure)
    return surgery.finish()


def _pure_overload(node: fx.Node) -> Any:
    """The pure overload of a call such as ``relu_`` whose argument nobody else can see; None for all others."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not mutates(node) or not target._opname.endswith("_"):
        return None
    written = node.args[0] if node.args else None
    if not isinstance(written, fx.Node) or written.op != "call_function" or _is_view(written):
        return None
    if any(_is_view(user) for user in written.users):
        return None
    return getattr(getattr(aten, target._opname[:-1], None), target._overloadname, None)


def _is_view(node: fx.Node) -> bool:
    """Whether what ``node`` gives may share memory with what it reads. Dropout gives its input itself in eval mode."""
    target = node.target
    returns = target._schema.returns if isinstance(target, torch._ops.OpOverload) else ()
    shares = any(result.alias_info is not None and not result.alias_info.is_write for result in returns)
    return not returns or shares or target in DROPOUTS


def _make_pure(surgery: Surgery, node: fx.Node, pure: Any) -> None:
    written = node.args[0]
    node.target = pure
    after = False
    for reader in list(surgery.graph.nodes):
        if after and written in reader.all_input_nodes:
            reader.replace_input_with(written, node)
        after = after or reader is node


# --- All others ---


def _functionalized_by_torch(program: Program) -> Program:
    """Where torch cannot, the program as it is: what comes of it is measured against the upload."""
    exported = _without_dropout(program).exported
    try:
        return program_of(exported.run_decompositions({}))
    except MemoryError:
        raise
    except Exception:  # torch raises many kinds here
        return program


def _without_dropout(program: Program) -> Program:
    """A dropout that does nothing gives its input, and a write to one is a write to the other, which torch's
    functionalization does not know."""
    idle = [node.name for node in program.graph.nodes if node.target in DROPOUTS and not node.args[2]]
    if not idle:
        return program
    surgery = Surgery(program)
    for name in idle:
        node = surgery.nodes[name]
        surgery.supersede(node, node.args[0])  # type: ignore[arg-type]
    return surgery.finish()
