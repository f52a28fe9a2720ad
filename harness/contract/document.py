"""A YAML file as it stands, with the line of everything: what a schema's messages point at.

Of YAML this reads mappings, lists and scalars. A duplicate key (of which YAML libraries keep the
last, in silence), an anchor, an alias or a tag is a problem that is named with its line.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_MOST_BYTES = 1 << 20  # a contract is a page
_MOST_DEPTH = 8  # of lists and mappings in one another; a contract has 4


@dataclass(frozen=True)
class Problem:
    """What is wrong in which line, counted from 1 (0: the file as a whole)."""

    line: int
    what: str


class Broken(Exception):  # noqa: N818 - it is the document that is broken
    """A document that cannot be read at all."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.what)
        self.problem = problem


@dataclass(frozen=True)
class Scalar:
    """Text as written; ``plain`` is whether it stood without quotes."""

    line: int
    text: str
    plain: bool


@dataclass(frozen=True)
class Items:
    """A list, of the file's lines."""

    line: int
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Table:
    """Keys with their lines; of a duplicate key the first stands, the others are problems."""

    line: int
    entries: Mapping[str, tuple[int, Node]]


Node = Scalar | Items | Table


def read_document(path: Path) -> tuple[Node, list[Problem]]:
    """Read a file; returns its tree, and what is wrong with it before any schema.

    Raises
    ------
    Broken
        Where it cannot be read, is no YAML, or is empty.

    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise Broken(Problem(0, f"cannot be read ({error.strerror})")) from None
    if len(raw) > _MOST_BYTES:
        raise Broken(Problem(0, f"more than {_MOST_BYTES} bytes; a contract is a page"))
    try:
        text = raw.decode("utf-8")
        _refuse_what_no_contract_needs(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise Broken(Problem(line, "no UTF-8")) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = f"no YAML: {error.problem or error.context}"
        raise Broken(Problem(0 if mark is None else mark.line + 1, what)) from None
    except yaml.YAMLError as error:
        raise Broken(Problem(0, f"no YAML: {error}")) from None
    if node is None:
        raise Broken(Problem(0, "empty"))
    problems: list[Problem] = []
    return _tree(node, problems), problems


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean '...'?`` for a near miss, else what there is."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; expected {', '.join(names)}"


def _refuse_what_no_contract_needs(text: str) -> None:
    """Anchors make a small file a large one, tags make objects, depth takes time and the stack."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MOST_DEPTH:
            raise Broken(Problem(line, f"nested more than {_MOST_DEPTH} deep"))
        if getattr(event, "anchor", None) is not None:
            raise Broken(Problem(line, "an anchor or alias (& or *); write the value out"))
        if getattr(event, "tag", None) is not None:
            raise Broken(Problem(line, f"a tag ({event.tag}); write a plain value"))


def _tree(node: yaml.Node, problems: list[Problem]) -> Node:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        return Scalar(line, str(node.value), node.style is None)
    if isinstance(node, yaml.SequenceNode):
        return Items(line, tuple(_tree(item, problems) for item in node.value))
    entries: dict[str, tuple[int, Node]] = {}
    for key, value in node.value:
        at = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            problems.append(Problem(at, "a key that is no text"))
        elif key.value in entries:
            first = entries[key.value][0]
            problems.append(
                Problem(at, f"duplicate key {key.value!r}, first in line {first}; keep one")
            )
        else:
            entries[str(key.value)] = (at, _tree(value, problems))
    return Table(line, entries)
