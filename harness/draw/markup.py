"""HTML and SVG that cannot be injected into: text becomes markup here, escaped, nowhere else."""

from __future__ import annotations

import html
import re
from typing import TypeAlias

_LONGEST = 600  # characters of one text: results are files from outside
# Controls, what turns the direction of the text around it, and halves of characters.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_VOID = ("br", "hr", "link", "meta")


class Markup(str):
    """Text that is markup already. Made of others' text by ``tag`` and ``join`` alone."""

    __slots__ = ()


Child: TypeAlias = "str | Markup | None"


def text(value: str) -> Markup:
    """Escape what is to be read, and shorten what is endless."""
    if isinstance(value, Markup):
        return value
    fit = _UNFIT.sub("\N{REPLACEMENT CHARACTER}", value)
    return Markup(html.escape(fit if len(fit) <= _LONGEST else f"{fit[:_LONGEST]}…"))


def join(*children: Child, between: str = "") -> Markup:
    """One after the other; None is nothing. ``between`` is markup."""
    return Markup(between.join(text(child) for child in children if child is not None))


def tag(name: str, *children: Child, **attributes: str | float | None) -> Markup:
    """``<name attributes>children</name>``.

    An attribute that is None is left out. ``class_`` is class; other underscores are dashes.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def _plain(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
