"""Checks the source text of a TorchScript archive before torch parses it.

Loading runs each class's ``__setstate__``; the rest runs with the first batch. TorchScript has no imports, but a few of
its operators open files, and it resolves operators from names in four ways: ``torch.name``, ``ops.namespace.name``,
``value.name`` and ``getattr(value, "name")``. So these names are refused anywhere in the text, and so is every way to
build a name that is not in the text.
"""

from __future__ import annotations

import re

from workers.errors import EngineError
from workers.intake.pickles import ALLOWED, words

MAX_CODE_BYTES = 64 << 20

# Operators with a file name, and those that call other machines (of torch._C._jit_get_all_schemas() in torch 2.13).
_FILE_AND_NETWORK = words("from_file save load load_tensor rpc_async rpc_sync rpc_remote")
_NAMESPACES = words("aten prim prims")
_WORD = re.compile(rb"[A-Za-z_]\w*")
_OPS = re.compile(rb"(?<![\w.])ops\b(\.([a-z_]+)\.(\w+))?")
_GETATTR = re.compile(rb"\bgetattr\b(\([\w.]+, \"[^\"\\\n]*\"\))?")
_ATTRIBUTE = re.compile(rb"\b__annotations__\b( = \[\]|\[\"\w+\"\])?")  # attributes end up in generated source
_CLASSES = re.compile(rb"\btorch\W+classes\b")

# Beyond tensors: the typed lists of TorchScript, and classes whose source is in the archive.
_TYPED = frozenset(
    f"torch.jit._pickle.{name}"
    for name in words("build_intlist build_doublelist build_boollist build_tensorlist restore_type_tag")
)
_OWN_CLASS = re.compile(r"__torch__\.(?!torch\.classes\.)[\w.]+")
_QUANTIZED = re.compile(r"torch\._utils\._rebuild_qtensor|__torch__\.torch\.classes\.quantized\..*")


def check_code(text: bytes, entry: str) -> None:
    """Raises ``EngineError('unsafe-model')`` for a call to files or other machines, ``'invalid-model'`` for an operator
    that torch does not have."""
    if _CLASSES.search(text):
        raise _unsafe(entry, "uses a class of torch.classes")
    found = {word.decode() for word in _WORD.findall(text)} & _FILE_AND_NETWORK
    if found:
        raise _unsafe(entry, f"names {', '.join(sorted(found))}, which can touch files or other machines")
    for match in _OPS.finditer(text):
        _check_operator(match, entry)
    for match in _GETATTR.finditer(text):
        if match[1] is None:
            raise _unsafe(entry, "calls getattr with a name that is not written out")
    for match in _ATTRIBUTE.finditer(text):
        if match[1] is None:
            raise _unsafe(entry, "declares an attribute whose name is not an identifier")


def forbidden_name(names: tuple[str, ...], where: str) -> str | None:
    """The first name of a TorchScript pickle that is neither data nor a class of the archive. Raises
    ``EngineError('invalid-model')`` for a quantized model."""
    for name in names:
        if _QUANTIZED.fullmatch(name):
            raise EngineError("invalid-model", f"{where} holds quantized weights already. Upload the float model.")
        if name not in ALLOWED | _TYPED and _OWN_CLASS.fullmatch(name) is None:
            return name
    return None


def _check_operator(match: re.Match[bytes], entry: str) -> None:
    if match[1] is None:
        raise _unsafe(entry, "uses ops in a way that torch.jit.save never writes")
    namespace, name = match[2].decode(), match[3].decode()
    if namespace not in _NAMESPACES:
        raise EngineError(
            "invalid-model",
            f"{entry} calls the operator {namespace}::{name}, which is not one of torch's own for float models. "
            "Export it without: torch.export.save(torch.export.export(model.eval(), (example_input,)), 'model.pt2').",
        )


def _unsafe(entry: str, what: str) -> EngineError:
    return EngineError("unsafe-model", f"{entry} {what}. Nothing was executed.")
