"""Grammars for the strings of an exported program that torch turns into code.

``torch.export.load`` hands every ``expr_str`` to ``sympy.sympify``, which evaluates it as Python, and
``ExportedProgram.module()`` executes ``guards_code``. Here both are parsed, never evaluated; only arithmetic passes.
"""

from __future__ import annotations

import ast
import re

from workers.intake.pickles import words

_SYMPY_FUNCTIONS = words(
    # sympy.srepr of what torch writes, and torch.utils._sympy.functions
    "Symbol Integer Float Rational Add Mul Pow Max Min Abs Mod floor ceiling sqrt Not And Or Xor "
    "Equality Unequality Eq Ne Lt Le Gt Ge LessThan GreaterThan StrictLessThan StrictGreaterThan "
    "FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural "
    "FloatPow FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt "
    "RoundDecimal ToFloat Identity Piecewise ExprCondPair "
    "OpaqueUnaryFn_sqrt OpaqueUnaryFn_exp OpaqueUnaryFn_log OpaqueUnaryFn_sin OpaqueUnaryFn_cos OpaqueUnaryFn_tanh"
)
_KEYWORDS = words("positive integer real nonnegative negative nonzero finite zero even odd precision evaluate")
_SYMPY_STRING = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}|[-+]?[0-9.]{1,40}(e[-+]?[0-9]{1,4})?|-?inf|nan")

_GUARD_CALLS = words(
    "max min abs int float bool pow round math.trunc math.floor math.ceil math.sqrt math.isnan math.pow "
    "torch.sym_float torch.sym_int torch.sym_max torch.sym_min torch.sym_not torch.sym_ite torch._sym_sqrt "
    "cast_symbool_to_symint_guardless IsNonOverlappingAndDenseIndicator"
)
_GUARD_METHODS = frozenset({"size", "stride", "storage_offset", "numel", "dim", "item"})
_GUARD_NAMES = frozenset({"L", "math", "inf"})
_GUARD_STRING = re.compile(r"[A-Za-z0-9_.]{1,128}")
_MATH_CONSTANTS = frozenset({"math.inf", "math.pi", "math.e", "math.nan"})

_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Tuple, ast.Load, ast.operator, ast.unaryop,
    ast.boolop, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip
_LONGEST_EXPRESSION = 20_000


def is_shape_expression(text: str) -> bool:
    """Whether ``text`` is arithmetic over symbols, numbers and the functions torch's shapes are made of."""
    tree = _parse(text)
    return tree is not None and all(_is_sympy(node) for node in ast.walk(tree))


def is_guard(text: str) -> bool:
    """Whether ``text`` is a condition over the inputs' sizes, such as ``L['x'].size()[0] // 2 >= 1``."""
    tree = _parse(text)
    try:
        return tree is not None and _is_guard(tree.body)
    except RecursionError:
        return False


def _parse(text: str) -> ast.Expression | None:
    if len(text) > _LONGEST_EXPRESSION or not text.isascii() or not text.isprintable() or "#" in text:
        return None
    try:
        return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _is_sympy(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _SYMPY_FUNCTIONS
    if isinstance(node, ast.keyword):
        return node.arg in _KEYWORDS and isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Name):
        return "__" not in node.id and (node.id in _SYMPY_FUNCTIONS or _is_symbol(node.id))
    if isinstance(node, ast.Constant):
        return _is_number(node.value) or _is_plain_string(node.value, _SYMPY_STRING)
    return isinstance(node, _ARITHMETIC)


# torch.utils._sympy.symbol.prefix_str, and sympy's own constants
_SYMBOL = re.compile(
    r"(s|u|f|zuf|zf|z|i|p|r|x|n|ps|tmp|idx|unsure)[0-9]{1,9}|int_oo|oo|true|false|zoo|nan|inf|True|False"
)


def _is_symbol(name: str) -> bool:
    return bool(_SYMBOL.fullmatch(name))


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float))


def _is_plain_string(value: object, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and "__" not in value and bool(pattern.fullmatch(value))


def _is_guard(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return not node.keywords and _is_guard_function(node.func) and all(map(_is_guard, node.args))
    if isinstance(node, ast.Subscript):
        return _is_guard(node.value) and _is_guard(node.slice)
    if isinstance(node, ast.Attribute):
        return ast.unparse(node) in _MATH_CONSTANTS
    if isinstance(node, ast.Name):
        return node.id in _GUARD_NAMES
    if isinstance(node, ast.Constant):
        return _is_number(node.value) or _is_plain_string(node.value, _GUARD_STRING)
    return isinstance(node, (*_ARITHMETIC, ast.Is, ast.IsNot)) and all(map(_is_guard, ast.iter_child_nodes(node)))


def _is_guard_function(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute) and function.attr in _GUARD_METHODS:
        return _is_guard(function.value)
    return ast.unparse(function) in _GUARD_CALLS
