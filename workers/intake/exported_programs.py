"""Checks an exported program's JSON before torch reads it.

torch 2.13's deserializer resolves ``target`` strings by attribute access from the ``torch`` module on
(``torch.os.system`` is one), imports whatever module a tree spec names, and pastes names into Python source that it
executes. Each check below closes one of these holes. The functions named are in ``torch/_export/serde/serialize.py``
unless another file is given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from workers.errors import EngineError
from workers.intake.expressions import is_guard, is_shape_expression
from workers.intake.pickles import words

MAX_JSON_BYTES = 256 << 20
_MAX_DEPTH = 200
_MAX_NODES = 200_000  # of one graph; the largest exported models have about ten thousand

_OPERATOR = re.compile(r"torch\.ops\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)(\.[A-Za-z_]\w*)?")
_NAMESPACES = frozenset({"aten", "prims", "prim", "quantized_decomposed", "torchao", "torchvision", "higher_order"})
_HIGHER_ORDER = words(
    "cond map_impl scan while_loop associative_scan wrap_with_set_grad_enabled wrap_with_autocast flex_attention "
    "invoke_subgraph auto_functionalized auto_functionalized_v2"
)
_FILE_OPERATORS = frozenset({"from_file"})  # maps any file the process can open
_DUNDER_OPERATORS = words(
    "__and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ __ixor__ __ilshift__ __irshift__"
)
_SYMBOLIC = words(
    "torch.sym_max torch.sym_min torch.sym_ite torch.sym_not torch.sym_float torch.sym_int torch.sym_sum "
    "torch._sym_sqrt torch.sym_sqrt torch.sym_fresh_size"
)
_PYTHON = re.compile(
    r"_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|lshift|rshift)"
    r"|math\.(trunc|floor|ceil|sqrt|pow|exp|log|sin|cos|tanh)"
)

_IDENTIFIER = re.compile(r"[A-Za-z0-9_.]{0,512}")
# Control characters, and those of Unicode that break lines or reverse text: a terminal obeys some of them.
_CONTROLS = r"\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069"
_PLAIN_TEXT = re.compile(rf"[^{_CONTROLS}\"'\\]{{0,2048}}")
_DISPLAY_TEXT = re.compile(rf"[^{_CONTROLS}]{{0,65536}}")
_SOURCE_LINES = re.compile(rf"(?:[\t\n\f\r]|[^{_CONTROLS}]){{0,1000000}}")
_RANGE_SYMBOL = re.compile(r"[A-Za-z_]{1,8}[0-9]{1,6}")


def check_json(data: bytes, entry: str) -> Any:
    """The document in ``data``, once everything that torch would evaluate, import or resolve has been checked.

    Raises ``EngineError('unsafe-model')`` with the string at fault, ``'invalid-model'`` for what is no JSON.
    """
    document = _parse(data, entry)
    for key, value in _fields(document):
        check = _CHECKS.get(key)
        if check is not None:
            check(value, entry)
    return document


def _parse(data: bytes, entry: str) -> Any:
    if len(data) > MAX_JSON_BYTES:
        raise EngineError("invalid-model", f"{entry} is {len(data)} bytes of JSON; at most {MAX_JSON_BYTES} are read.")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EngineError("invalid-model", f"{entry} is not readable JSON: {error}.") from error


def _fields(document: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value at any depth."""
    pending = [(document, 0)]
    while pending:
        node, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise EngineError("invalid-model", f"The program's JSON is nested deeper than {_MAX_DEPTH} levels.")
        if isinstance(node, dict):
            yield from node.items()
            pending += [(value, depth + 1) for value in node.values() if isinstance(value, (dict, list))]
        elif isinstance(node, list):
            pending += [(value, depth + 1) for value in node if isinstance(value, (dict, list))]


def _check_expression(value: Any, entry: str) -> None:
    """``expr_str`` goes through ``sympy.sympify`` (``_parse_sym_expr``)."""
    if not isinstance(value, str) or not is_shape_expression(value):
        raise _unsafe(entry, "a size that is not an arithmetic expression,", value, "torch would evaluate it")


def _check_guards(value: Any, entry: str) -> None:
    """``guards_code`` is executed by ``ExportedProgram.module()`` (``torch/export/_unlift.py``)."""
    for guard in value if isinstance(value, list) else [value]:
        if not isinstance(guard, str) or not is_guard(guard):
            raise _unsafe(entry, "a guard that is not a condition over sizes,", guard, "torch would execute it")


def _check_operator(value: Any, entry: str) -> None:
    """``target`` is resolved by ``getattr`` (``deserialize_operator``), then called."""
    if not isinstance(value, str):
        raise _unsafe(entry, "an operator that is not a name,", value, "torch would resolve it")
    if value in _SYMBOLIC or _PYTHON.fullmatch(value):
        return
    operator = _OPERATOR.fullmatch(value)
    if operator is None or _is_outside_tensors(operator):
        raise _unsafe(entry, "a call of", value, "it is not a tensor operator")
    if operator[1] not in _NAMESPACES:
        raise EngineError(
            "invalid-model",
            f"The program calls the custom operator {operator[1]}::{operator[2]}, which is not installed here. "
            "Export the model without it (run_decompositions, or a plain PyTorch implementation).",
        )


def _is_outside_tensors(operator: re.Match[str]) -> bool:
    namespace, name, overload = operator[1], operator[2], operator[3]
    if namespace == "higher_order":
        return overload is not None or name not in _HIGHER_ORDER
    if "__" in name and name not in _DUNDER_OPERATORS:
        return True
    return overload is None or "__" in overload or name in _FILE_OPERATORS


def _check_identifier(value: Any, entry: str) -> None:
    """Names of values and arguments are pasted into the generated ``forward`` (``torch/fx/graph.py``)."""
    if value is not None and not (isinstance(value, str) and _IDENTIFIER.fullmatch(value)):
        raise _unsafe(entry, "a name that is not an identifier,", value, "torch would compile it as source")


def _check_identifiers(value: Any, entry: str) -> None:
    if not isinstance(value, list | None):
        raise _unsafe(entry, "instead of a list of names", value, "torch would compile it as source")
    for name in value or ():
        _check_identifier(name, entry)


def _check_plain_text(value: Any, entry: str) -> None:
    """Attribute paths are quoted into the generated source without escaping (``_format_target``)."""
    if value is not None and not (isinstance(value, str) and _PLAIN_TEXT.fullmatch(value)):
        raise _unsafe(entry, "a parameter name with quotes or control characters,", value, "torch would compile it")


def _check_display_text(value: Any, entry: str) -> None:
    """Module paths and types are not evaluated, but they name the layers in reports and logs."""
    if value is not None and not (isinstance(value, str) and _DISPLAY_TEXT.fullmatch(value)):
        raise _unsafe(entry, "a module's name with control characters,", value, "a reader could be misled")


def _check_source_lines(value: Any, entry: str) -> None:
    """Lines of the user's code, which reports quote."""
    if value is not None and not (isinstance(value, str) and _SOURCE_LINES.fullmatch(value)):
        raise _unsafe(entry, "a line of code with control characters,", value, "a reader could be misled")


def _check_tree_spec(value: Any, entry: str) -> None:
    """Tree specs import modules for enums and default factories (``torch/utils/_pytree.py``); their keys end up in
    guards."""
    pending: list[Any] = [_parse(str(value).encode(), entry)]
    while pending:
        spec = pending.pop()
        if isinstance(spec, dict):
            _check_tree_node(spec, entry)
            pending += spec.values()
        elif isinstance(spec, list):
            pending += spec
        elif isinstance(spec, str):
            _check_tree_string(spec, pending, entry)


def _check_tree_node(spec: dict[str, Any], entry: str) -> None:
    if "__enum__" in spec or "default_factory_module" in spec:
        module = spec.get("fqn", spec.get("default_factory_module"))
        raise _unsafe(entry, "an input structure that imports", module, "only tuples, lists and dicts are taken")
    for key in spec:
        _check_plain_text(key, entry)


def _check_tree_string(text: str, pending: list[Any], entry: str) -> None:
    """A context is JSON inside the JSON; anything else is a type's name or a key."""
    if text.lstrip()[:1] in ("[", "{", '"'):
        pending.append(_parse(text.encode(), entry))
    else:
        _check_plain_text(text, entry)


def _check_ranges(value: Any, entry: str) -> None:
    """Symbols with a range; torch counts up to an unbacked symbol's number, so it is bounded."""
    for symbol in value if isinstance(value, dict) else ():
        if not _RANGE_SYMBOL.fullmatch(symbol):
            raise _unsafe(entry, "a range for something that is not a symbol,", symbol, "torch would evaluate it")


def _check_keys(value: Any, entry: str) -> None:
    """Fully-qualified names of weights and constants, which become attribute paths."""
    for key in value if isinstance(value, dict) else ():
        _check_plain_text(key, entry)


def _check_length(value: Any, entry: str) -> None:
    if isinstance(value, list) and len(value) > _MAX_NODES:
        raise EngineError("invalid-model", f"{entry} has {len(value)} operations; at most {_MAX_NODES} are taken.")


def _unsafe(entry: str, what: str, value: Any, why: str) -> EngineError:
    shown = repr(value)
    return EngineError("unsafe-model", f"{entry} holds {what} {shown[:200]}: {why}. Nothing was executed.")


_CHECKS: dict[str, Callable[[Any, str], None]] = {
    "expr_str": _check_expression,
    "guards_code": _check_guards,
    "target": _check_operator,
    "as_operator": _check_operator,
    "name": _check_identifier,
    "as_name": _check_identifier,
    "forward_arg_names": _check_identifiers,
    "field_names": _check_identifiers,
    "nn_module_stack": _check_display_text,
    "torch_fn": _check_display_text,
    "stack_trace": _check_source_lines,
    "in_spec": _check_tree_spec,
    "out_spec": _check_tree_spec,
    "range_constraints": _check_ranges,
    "fqn": _check_plain_text,
    "parameter_name": _check_plain_text,
    "buffer_name": _check_plain_text,
    "tensor_constant_name": _check_plain_text,
    "custom_obj_name": _check_plain_text,
    "user_input_name": _check_plain_text,
    "config": _check_keys,
    "nodes": _check_length,
}
