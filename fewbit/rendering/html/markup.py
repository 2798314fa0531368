"""HTML built by function calls. Text is escaped unless it is ``Markup``, which only ``tag`` and ``raw`` make."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

VOID = frozenset({"br", "wbr", "hr", "input", "link", "meta", "path", "rect", "line"})


class Markup(str):
    """Text that is already HTML."""

    __slots__ = ()


Child: TypeAlias = "str | int | Iterable[Child] | None"
Attribute = str | int | float | bool | None


def tag(name: str, *children: Child, **attributes: Attribute) -> Markup:
    """An element. ``class_`` is ``class``, ``aria_label`` is ``aria-label``; ``None`` and ``False`` are left out."""
    start_tag = f"<{name}{''.join(_attribute(*attribute) for attribute in attributes.items())}"
    if name in VOID:
        return Markup(f"{start_tag}/>" if name in ("path", "rect", "line") else f"{start_tag}>")
    return Markup(f"{start_tag}>{join(children)}</{name}>")


def join(children: Child) -> Markup:
    """The children one after another; whatever is not ``Markup`` is escaped."""
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, str | int):
        return Markup(escape(str(children), quote=False))
    return Markup("".join(map(join, children)))


def raw(text: str) -> Markup:
    """This project's own text, which needs no escaping: style, script."""
    return Markup(text)


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    written = name.rstrip("_").replace("_", "-")
    return f" {written}" if value is True else f' {written}="{escape(str(value))}"'
