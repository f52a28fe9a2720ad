"""What a contract file must hold, and the contract that it becomes.

All that is wrong is found in one go, each with its line. A status has no place in the file: it is
derived (``status``).
"""

from __future__ import annotations

import datetime as dt
import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contract.document import (
    Broken,
    Items,
    Node,
    Problem,
    Scalar,
    Table,
    nearest,
    read_document,
)
from harness.contract.quantities import QUANTITIES
from harness.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

SCHEMA = "moe-harness/contract/1"
COMPARISONS = ("at_least", "above", "at_most")

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_VERSION = re.compile(r"(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})")
_HEADING = ("schema", "name", "version", "subject")
_SHAPE = ("layers", "hidden", "vocab")
_STATUS_WORDS = ("status", "state", "met", "passed", "result", "accepted")


@dataclass(frozen=True)
class Criterion:
    """A quantity of stored evidence and the limit that it must keep.

    Attributes
    ----------
    ident, title
        ``AC-001``, and what it says in words.
    quantity
        A name out of ``quantities.QUANTITIES``.
    comparison, limit
        ``at_least``, ``above`` or ``at_most``.
    evidence
        Benchmarks with their parameters as the sidecars name them; all of them are needed, and the
        worst one counts.
    source
        Where the limit comes from.
    falsified_by
        Falsifiers that would show it to be wrong.

    """

    ident: str
    title: str
    quantity: str
    comparison: str
    limit: float
    evidence: tuple[str, ...]
    source: str
    falsified_by: tuple[str, ...]

    def kept_by(self, value: float) -> bool:
        """Whether a value keeps the limit; NaN keeps none."""
        if self.comparison == "at_least":
            return value >= self.limit
        return value > self.limit if self.comparison == "above" else value <= self.limit


@dataclass(frozen=True)
class Falsifier:
    """What anyone can run to show that criteria do not hold, and what it shows then."""

    ident: str
    run: str
    refutes_when: str


@dataclass(frozen=True)
class Amendment:
    """A version, the day that it came, and what it changed."""

    version: str
    date: dt.date
    what: str


@dataclass(frozen=True)
class Contract:
    """Acceptance criteria of one thing, with how to refute them and how they came to be.

    ``model`` is the shape (``layers``, ``hidden``, ``vocab``) whose decodes are evidence.
    """

    name: str
    version: str
    subject: str
    model: dict[str, float]
    criteria: tuple[Criterion, ...]
    falsifiers: tuple[Falsifier, ...]
    amendments: tuple[Amendment, ...]


def problems_of(path: Path) -> list[Problem]:
    """Everything that is wrong with a file, by line; empty for a contract."""
    return _read(path)[1]


def read_contract(path: Path) -> Contract:
    """Read a contract.

    Raises
    ------
    BadInput
        For anything that is none, in one line.

    """
    contract, problems = _read(path)
    if contract is None or problems:
        first, more = problems[0], len(problems) - 1
        others = f" ({more} more; moe-harness contract validate lists them)" if more else ""
        raise BadInput(f"{described(path, first)}{others}")
    return contract


def described(path: Path, problem: Problem) -> str:
    """``file:line: what``."""
    line = f":{problem.line}" if problem.line else ""
    return f"{path}{line}: {problem.what}"


def _read(path: Path) -> tuple[Contract | None, list[Problem]]:
    try:
        node, problems = read_document(path)
    except Broken as error:
        return None, [error.problem]
    reader = _Reader(problems)
    contract = reader.contract(node, path.stem)
    return contract, sorted(reader.problems, key=lambda problem: problem.line)


class _Reader:
    """Goes through the tree; what is wrong is noted, and something harmless read in its place."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems

    def contract(self, node: Node, stem: str) -> Contract:
        top = self._fields(
            node,
            "the contract",
            (*_HEADING, "model", "criteria", "falsifiers", "amendments"),
        )
        schema, name = self._text(top.get("schema")), self._text(top.get("name"))
        if "schema" in top and schema != SCHEMA:
            self._note(top["schema"], f"schema {schema!r}, expected {SCHEMA!r}")
        if "name" in top and name != stem:
            self._note(top["name"], f"name {name!r}, but the file is {stem}.yaml; name them alike")
        falsifiers = tuple(map(self._falsifier, self._items(top, "falsifiers")))
        criteria = tuple(
            self._criterion(item, [each.ident for each in falsifiers])
            for item in self._items(top, "criteria")
        )
        amendments = tuple(map(self._amendment, self._items(top, "amendments")))
        self._distinct(top.get("criteria"), [each.ident for each in criteria], "criterion")
        self._distinct(top.get("falsifiers"), [each.ident for each in falsifiers], "falsifier")
        version = self._version(top.get("version"))
        self._history(top, version, amendments)
        used = {name for criterion in criteria for name in criterion.falsified_by}
        for falsifier in falsifiers:
            if falsifier.ident not in used:
                unused = f"falsifier {falsifier.ident!r} stands in no criterion's falsified_by"
                self._note(top["falsifiers"], unused)
        subject = self._text(top.get("subject"))
        shape = self._fields(top["model"], "model", _SHAPE) if "model" in top else {}
        model = {key: self._number(value) for key, value in shape.items()}
        return Contract(name, version, subject, model, criteria, falsifiers, amendments)

    def _criterion(self, node: Node, falsifiers: Collection[str]) -> Criterion:
        needed = ("id", "title", "quantity", "evidence", "source", "falsified_by")
        fields = self._fields(node, "a criterion", needed, COMPARISONS)
        given = [name for name in COMPARISONS if name in fields]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            self._note(node, f"a criterion has one of {', '.join(COMPARISONS)}, found {found}")
        quantity = self._text(fields.get("quantity"))
        if "quantity" in fields and quantity not in QUANTITIES:
            unknown = f"unknown quantity {quantity!r}{nearest(quantity, QUANTITIES)}"
            self._note(fields["quantity"], unknown)
        named = self._texts(fields.get("falsified_by"))
        for name in named:
            if name not in falsifiers:
                unknown = f"unknown falsifier {name!r}{nearest(name, falsifiers)}"
                self._note(fields["falsified_by"], unknown)
        comparison = given[0] if given else COMPARISONS[0]
        return Criterion(
            self._text(fields.get("id")),
            self._text(fields.get("title")),
            quantity,
            comparison,
            self._number(fields.get(comparison)),
            self._texts(fields.get("evidence")),
            self._text(fields.get("source")),
            named,
        )

    def _falsifier(self, node: Node) -> Falsifier:
        fields = self._fields(node, "a falsifier", ("id", "run", "refutes_when"))
        return Falsifier(*(self._text(fields.get(key)) for key in ("id", "run", "refutes_when")))

    def _amendment(self, node: Node) -> Amendment:
        fields = self._fields(node, "an amendment", ("version", "date", "what"))
        date, given = dt.date.min, self._text(fields.get("date"))
        try:
            date = dt.date.fromisoformat(given) if given else date
        except ValueError:
            self._note(fields["date"], f"date {given!r}, expected one as 2026-11-24")
        version, what = self._version(fields.get("version")), self._text(fields.get("what"))
        return Amendment(version, date, what)

    def _history(
        self, top: dict[str, Node], version: str, amendments: tuple[Amendment, ...]
    ) -> None:
        """Versions and days go up, and the last amendment is what stands."""
        if not amendments or "version" not in top:
            return
        if amendments[-1].version != version:
            self._note(
                top["version"],
                f"version {version}, but the last amendment is {amendments[-1].version}; "
                "add an amendment that says what changed",
            )
        for before, after in itertools.pairwise(amendments):
            if _parts(before.version) >= _parts(after.version) or before.date > after.date:
                self._note(
                    top["amendments"],
                    f"amendment {after.version} does not follow {before.version}; oldest first",
                )

    # -- pieces ------------------------------------------------------------------------------

    def _fields(
        self, node: Node, what: str, needed: Collection[str], optional: Collection[str] = ()
    ) -> dict[str, Node]:
        if not isinstance(node, Table):
            self._note(node, f"{what} is a mapping, found {_kind(node)}")
            return {}
        known = [*needed, *optional]
        for key, (line, _) in node.entries.items():
            if key in known:
                continue
            why = nearest(key, known)
            if key.lower() in _STATUS_WORDS:
                why = "; a status is derived from the evidence (contract check), never written"
            self.problems.append(Problem(line, f"{what} has no {key!r}{why}"))
        missing = [key for key in needed if key not in node.entries]
        if missing:
            self._note(node, f"{what} lacks {', '.join(missing)}")
        return {key: value for key, (_, value) in node.entries.items() if key in known}

    def _items(self, fields: dict[str, Node], key: str) -> tuple[Node, ...]:
        node = fields.get(key)
        if node is None:
            return ()
        if not isinstance(node, Items) or not node.items:
            self._note(node, f"{key}: expected a list of at least one, found {_kind(node)}")
            return ()
        return node.items

    def _text(self, node: Node | None) -> str:
        if node is None:
            return ""
        if not isinstance(node, Scalar) or not node.text.strip():
            self._note(node, f"expected text, found {_kind(node)}")
            return ""
        return " ".join(node.text.split())

    def _texts(self, node: Node | None) -> tuple[str, ...]:
        if node is None:
            return ()
        if not isinstance(node, Items) or not node.items:
            self._note(node, f"expected a list of at least one, found {_kind(node)}")
            return ()
        texts = tuple(map(self._text, node.items))
        self._distinct(node, texts, "entry")
        return texts

    def _number(self, node: Node | None) -> float:
        if node is None:
            return float("nan")
        if not isinstance(node, Scalar) or not node.plain or not _NUMBER.fullmatch(node.text):
            found = repr(node.text) if isinstance(node, Scalar) else _kind(node)
            self._note(node, f"expected a number such as 0.99 or 1e-6, found {found}")
            return float("nan")
        value = float(node.text)
        if abs(value) == float("inf"):
            self._note(node, f"{node.text} is beyond any number")
        return value

    def _version(self, node: Node | None) -> str:
        text = self._text(node)
        if node is not None and text and not _VERSION.fullmatch(text):
            self._note(node, f"version {text!r}, expected one as 1.0.0")
            return ""
        return text

    def _distinct(self, node: Node | None, names: Collection[str], what: str) -> None:
        seen: set[str] = set()
        for name in names:
            if name and name in seen and node is not None:
                self._note(node, f"two of {what} {name!r}; keep one")
            seen.add(name)

    def _note(self, node: Node, what: str) -> None:
        self.problems.append(Problem(node.line, what))


def _parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split("."))) if version else ()


def _kind(node: Node) -> str:
    if isinstance(node, Scalar):
        return repr(node.text) if node.text else "nothing"
    return "a list" if isinstance(node, Items) else "a mapping"
