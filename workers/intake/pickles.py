"""Reads a pickle without unpickling it: opcode by opcode, against an allow-list.

A pickle is a program for a stack machine, and ``GLOBAL`` names the functions it calls. ``torch.load`` has a restricted
machine (``torch/_weights_only_unpickler.py``), but ``torch.export.load`` falls back to the unrestricted one when that
refuses a pickle. So a pickle reaches either only if it uses the restricted machine's opcodes and the functions below.
"""

from __future__ import annotations

import pickletools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec


def words(text: str) -> frozenset[str]:
    """A set of names, written as one line."""
    return frozenset(text.split())


# The opcodes of torch 2.13's restricted unpickler, which are all that torch.save writes with its default protocol 2.
_OPCODES = words(
    "PROTO GLOBAL REDUCE BUILD NEWOBJ MARK STOP NONE NEWTRUE NEWFALSE EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET "
    "TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS BININT BININT1 BININT2 BINFLOAT LONG1 BINUNICODE "
    "SHORT_BINSTRING BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT"
)

_STORAGES = words(
    "Float Double Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble QInt8 QUInt8 QInt32"
)
_DTYPES = words(
    "float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool complex32 complex64 "
    "complex128 qint8 quint8 qint32 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
)

# A part of torch's own weights-only list: what rebuilds a tensor, and nothing that would call another callable.
ALLOWED = frozenset(
    {
        "collections.OrderedDict",
        "builtins.complex",
        "__builtin__.complex",
        "torch.Size",
        "torch.device",
        "torch.serialization._get_layout",
        "torch.nn.parameter.Parameter",
        "torch.storage.UntypedStorage",
        "torch.storage.TypedStorage",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_meta_tensor_no_storage",
        *(f"torch.{name}Storage" for name in _STORAGES),
        *(f"torch.{name}" for name in _DTYPES),
    }
)

# What a pickled module needs beyond that. It only tells a careless upload from a hostile one; neither is loaded.
_PLAIN = ALLOWED | {
    "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_parameter_with_state",
    "torch._tensor._rebuild_from_type_v2",
    "torch.Tensor",
    "builtins.set",
    "__builtin__.set",
    "builtins.dict",
    "builtins.object",
    "__builtin__.object",
    "copy_reg._reconstructor",
    "copyreg._reconstructor",
    "_codecs.encode",
    "collections.Counter",
    "collections.defaultdict",
    *(f"numpy.{name}" for name in ("dtype", "ndarray")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}
_PLAIN_PACKAGES = ("torch.nn.modules.", "torch.ao.nn.")

_STRINGS = words("UNICODE BINUNICODE BINUNICODE8 SHORT_BINUNICODE STRING BINSTRING SHORT_BINSTRING")
# These call without GLOBAL, or rearrange the stack so that STACK_GLOBAL does not take the last strings written.
_COMPUTED_CALLS = words("INST OBJ NEWOBJ_EX EXT1 EXT2 EXT4 PERSID POP POP_MARK DUP")
_PUTS = words("PUT BINPUT LONG_BINPUT")
_GETS = words("GET BINGET LONG_BINGET")


@dataclass(frozen=True)
class Walk:
    """One pass over a stream: the dotted names it calls (``?``: a computed one), the opcodes that torch.save does not
    write, whether every pickle ended with STOP (``complete``), and the number of bytes after the last one."""

    names: tuple[str, ...]
    strange_opcodes: tuple[str, ...]
    complete: bool
    trailing_bytes: int = 0

    @property
    def forbidden(self) -> str | None:
        """A name outside the allow-list, or the opcode that may call anything; ``None`` if there is neither."""
        return self.outside(ALLOWED)

    def outside(self, allowed: frozenset[str]) -> str | None:
        """Like ``forbidden``, with another allow-list."""
        for name in self.names:
            if name not in allowed:
                return name
        return self.computed_call

    @property
    def computed_call(self) -> str | None:
        """The first opcode that may call anything, in words; ``None`` if there is none."""
        return next(
            (f"whatever its {code} opcode computes" for code in self.strange_opcodes if code in _COMPUTED_CALLS), None
        )

    @property
    def hostile(self) -> str | None:
        """The first name that no pickled model needs. A class that is not installed here can do nothing here: a model
        saved with its own class is a mistake, not an attack."""
        return next((name for name in self.names if not _is_plain(name)), None)


def walk(data: bytes, pickles: int = 8, limit: int = 2_000_000) -> Walk:
    """Read up to ``pickles`` consecutive pickles (torch's old format has five), at most ``limit`` opcodes of each."""
    names: dict[str, None] = {}
    strange: dict[str, None] = {}
    start, complete = 0, False
    for _ in range(pickles):
        end = _walk_one(data, start, limit, names, strange)
        if end is None:
            return Walk(tuple(names), tuple(strange), complete and start > 0)
        start, complete = end, True
        if data[start : start + 1] != b"\x80":
            break
    return Walk(tuple(names), tuple(strange), complete, len(data) - start)


def looks_like_pickle(head: bytes) -> bool:
    """Whether the first two bytes are the PROTO opcode of protocol 2 to 5."""
    return len(head) >= 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def _walk_one(data: bytes, start: int, limit: int, names: dict[str, None], strange: dict[str, None]) -> int | None:
    """Where the pickle that begins at ``start`` ends; ``None`` when it does not end properly."""
    strings = _Strings()
    try:
        for step, (opcode, arg, position) in enumerate(_operations(data, start)):
            if step > limit:
                return None
            if opcode.name not in _OPCODES:
                strange[opcode.name] = None
            if opcode.name in ("GLOBAL", "INST"):
                names[str(arg).replace(" ", ".", 1)] = None
            elif opcode.name == "STACK_GLOBAL":
                names[strings.dotted_name()] = None
            elif opcode.name == "STOP":
                return start + position + 1
            strings.record(opcode.name, arg)
    except Exception:  # pickletools raises ValueError, UnicodeDecodeError, struct.error, ... on what is no pickle
        return None
    return None


def _operations(data: bytes, start: int) -> Iterator[tuple[pickletools.OpcodeInfo, object, int]]:
    for opcode, arg, position in pickletools.genops(data[start:] if start else data):
        yield opcode, arg, position or 0


class _Strings:
    """The strings a STACK_GLOBAL would take, where the pickle spells them out and does not compute them."""

    def __init__(self) -> None:
        self._last: list[str] = []
        self._memo: dict[int, str] = {}
        self._pushed = "?"

    def record(self, opcode: str, arg: object) -> None:
        if opcode == "MEMOIZE":
            self._memo[len(self._memo)] = self._pushed
        elif opcode in _PUTS:
            self._memo[int(str(arg))] = self._pushed
        else:
            self._push(opcode, arg)

    def dotted_name(self) -> str:
        """``module.name`` for a STACK_GLOBAL at this point; ``?`` if a part is computed."""
        known = len(self._last) == 2 and "?" not in self._last
        return ".".join(self._last) if known else "?"

    def _push(self, opcode: str, arg: object) -> None:
        if opcode in _STRINGS:
            self._pushed = str(arg)
        elif opcode in _GETS:
            self._pushed = self._memo.get(int(str(arg)), "?")
        else:
            self._pushed = "?"
        self._last = [*self._last[-1:], self._pushed]


def _is_plain(name: str) -> bool:
    if name in _PLAIN or name.startswith(_PLAIN_PACKAGES):
        return True
    root = name.split(".", 1)[0]
    return root not in ("", "?") and root not in sys.stdlib_module_names | _PYTHON_2 and not _is_installed(root)


# Modules that pickle's protocols 0 to 2 map to Python 3's (``_compat_pickle.IMPORT_MAPPING``).
_PYTHON_2 = words("__builtin__ copy_reg commands os2emxpath cPickle cStringIO urllib2 httplib")


def _is_installed(root: str) -> bool:
    if root == "__main__":
        return False
    try:
        return find_spec(root) is not None
    except (ImportError, ValueError):
        return False
