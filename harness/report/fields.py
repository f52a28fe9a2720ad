"""Reading JSON of unknown making: every value is checked where it is taken."""

from __future__ import annotations

import datetime as dt
import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_MOST_BYTES = 32 << 20  # results/ as a whole stays under 10 MB
_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number"}
_KINDS |= {float: "a number", type(None): "null"}


class Damaged(Exception):  # noqa: N818 - it is the file that is damaged
    """A file that cannot be used: one line that says what was found and what was expected."""


class Fields:
    """A JSON object; ``where`` is its place in the file, for messages."""

    def __init__(self, data: dict[str, Any], where: str = "") -> None:
        self._data, self._where = data, where

    def __contains__(self, name: str) -> bool:
        return self._data.get(name) is not None

    def text(self, name: str) -> str:
        """Text of that name."""
        value = self._data.get(name)
        if not isinstance(value, str):
            raise self._unlike(name, value, "text")
        return value

    def number(self, name: str) -> float:
        """Finite number of that name."""
        return as_number(self._data.get(name), self._path(name))

    def positive(self, name: str) -> float:
        """Finite number above 0."""
        value = self.number(name)
        if value <= 0:
            raise Damaged(f"{self._path(name)}: found {value:g}, expected more than 0")
        return value

    def flag(self, name: str) -> bool:
        """True or false, and nothing that only passes for it."""
        value = self._data.get(name)
        if not isinstance(value, bool):
            raise self._unlike(name, value, "true or false")
        return value

    def moment(self, name: str) -> dt.datetime:
        """Time of that name, ISO 8601; in UTC unless it says otherwise."""
        value = self.text(name)
        try:
            found = dt.datetime.fromisoformat(value)
            return (found if found.tzinfo else found.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
        except (ValueError, OverflowError):
            raise self._unlike(name, value, "a time (ISO 8601)") from None

    def child(self, name: str) -> Fields:
        """Object of that name."""
        value = self._data.get(name)
        if not isinstance(value, dict):
            raise self._unlike(name, value, "an object")
        return Fields(value, self._path(name))

    def array(self, name: str) -> list[Any]:
        """List of that name; its items are not checked yet."""
        value = self._data.get(name)
        if not isinstance(value, list):
            raise self._unlike(name, value, "a list")
        return value

    def children(self, name: str) -> list[Fields]:
        """List of objects of that name."""
        found = []
        for index, value in enumerate(self.array(name)):
            where = f"{self._path(name)}[{index}]"
            if not isinstance(value, dict):
                raise Damaged(f"{where}: found {_shown(value)}, expected an object")
            found.append(Fields(value, where))
        return found

    def texts(self, name: str) -> tuple[str, ...]:
        """List of texts of that name."""
        found = self.array(name)
        for value in found:
            if not isinstance(value, str):
                raise self._unlike(name, value, "a list of texts")
        return tuple(found)

    def items(self) -> list[tuple[str, Any]]:
        """Names and values, not checked."""
        return list(self._data.items())

    def _path(self, name: str) -> str:
        return f"{self._where}.{name}" if self._where else name

    def _unlike(self, name: str, value: object, expected: str) -> Damaged:
        return Damaged(f"{self._path(name)}: found {_shown(value)}, expected {expected}")


def as_number(value: object, where: str) -> float:
    """Return a finite number, or raise ``Damaged``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:  # an integer of hundreds of digits
            found = math.inf
        if math.isfinite(found):
            return found
    raise Damaged(f"{where}: found {_shown(value)}, expected a finite number")


def read_fields(path: Path) -> Fields:
    """Read a JSON object.

    Raises
    ------
    Damaged
        Where the file cannot be read, is too large, or holds something else.

    """
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise Damaged(f"found {size:,} bytes, expected at most {_MOST_BYTES:,}")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Damaged(f"cannot be read ({error.strerror}), expected JSON") from None
    except (ValueError, RecursionError) as error:
        raise Damaged(f"found no JSON ({str(error)[:120]}), expected an object") from None
    if not isinstance(data, dict):
        raise Damaged(f"found {_KINDS[type(data)]}, expected an object")
    return Fields(data)


def _shown(value: object) -> str:
    if isinstance(value, dict | list | type(None)):
        return _KINDS[type(value)]
    text = repr(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}..."
