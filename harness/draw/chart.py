"""Lines over a common axis, with the limit that they must keep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.draw.colours import series_colour
from harness.draw.drawing import DASHED, text_width
from harness.draw.scales import Scale, few, powers, round_ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.draw.drawing import Drawing

_SMALL = 11.5
_MOST_TICKS = 6
# Free at both ends of the x axis: half a place, or where places are many a share of their width, as
# names are written around their places.
_HALF, _SHARE = 0.5, 0.068


@dataclass(frozen=True)
class Mark:
    """A value at a place on the x axis; None: failed there. ``told``: to whom points at it.

    ``low`` and ``high`` are the ends of its interval; ``word`` is written above it.
    """

    x: float
    value: float | None
    told: str
    low: float | None = None
    high: float | None = None
    word: str = ""


@dataclass(frozen=True)
class Line:
    """A series and its name in the legend; ``joined`` between neighbours, not across a hole."""

    name: str
    marks: Sequence[Mark]
    joined: bool = True


@dataclass(frozen=True)
class Chart:
    """Lines over an axis.

    Attributes
    ----------
    lines
        What is drawn; a value that is not finite, or not above 0 on a logarithmic axis, is not.
    places
        Values on the x axis, with what is written below them.
    across
        Name of the x axis.
    log, from_zero
        The y axis: logarithmic; from zero up, so that heights compare.
    limit
        A value and its name: a dashed line.
    slanted
        Names of places are, as they are long.

    """

    lines: Sequence[Line]
    places: Sequence[tuple[float, str]]
    across: str = ""
    log: bool = False
    from_zero: bool = False
    limit: tuple[float, str] | None = None
    slanted: bool = False


@dataclass(frozen=True)
class Box:
    """Where on the paper the axes stand; names are written to the left of it and below it."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class _Plane:
    """Where values stand on the paper."""

    across: Scale
    up: Scale

    def has(self, value: float) -> bool:
        """Whether a value has a place on the y axis."""
        return _drawable(value, log=self.up.log)


def draw(drawing: Drawing, chart: Chart, box: Box) -> None:
    """Draw a chart."""
    marks = [mark for line in chart.lines for mark in line.marks]
    if not any(mark.value is None or _drawable(mark.value, log=chart.log) for mark in marks):
        drawing.text(box.left, (box.top + box.bottom) / 2, "nothing to draw", colour="quiet")
        return
    up, ticks = _up(marks, chart, box)
    plane = _Plane(_across([*(mark.x for mark in marks), *(x for x, _ in chart.places)], box), up)
    for tick, name in ticks:
        _rule(drawing, up(tick), name, box)
    _places(drawing, chart, plane.across, box)
    if chart.limit is not None and plane.has(chart.limit[0]):
        _limit(drawing, *chart.limit, up, box, below=_any_above(chart))
    for number, line in enumerate(chart.lines):
        _line(drawing, number, line, plane)


def legend(
    drawing: Drawing,
    right: float,
    y: float,
    keys: Sequence[tuple[str, Callable[[float, float], None]]],
) -> None:
    """Write names in a line that ends at ``right``, each behind its sign.

    A key's second draws the sign around a point.
    """
    for name, sign in reversed(keys):
        right -= text_width(name, 12)
        drawing.text(right, y, name, colour="quiet")
        sign(right - 11, y - 4)
        right -= 34


def line_keys(
    drawing: Drawing, lines: Sequence[Line]
) -> list[tuple[str, Callable[[float, float], None]]]:
    """Keys of lines, for ``legend``."""

    def sign(number: int) -> Callable[[float, float], None]:
        return lambda x, y: drawing.mark(number, x, y)

    return [(line.name, sign(number)) for number, line in enumerate(lines)]


def _across(values: Sequence[float], box: Box) -> Scale:
    low, high = min(values), max(values)
    room = max(_HALF, _SHARE * (high - low))
    return Scale(low - room, high + room, box.left, box.right)


def _up(marks: Sequence[Mark], chart: Chart, box: Box) -> tuple[Scale, list[tuple[float, str]]]:
    """Scale of the y axis, and its ticks with their names."""
    limit = [] if chart.limit is None else [chart.limit[0]]
    told = [value for mark in marks for value in (mark.low, mark.value, mark.high)]
    values = [
        value for value in (*told, *limit) if value is not None and _drawable(value, log=chart.log)
    ]
    values = values or [1.0]  # all failed
    if chart.log:
        whole = powers(min(values), max(values))
        named = [(10.0**power, f"1e{power}") for power in few(whole, _MOST_TICKS)]
        low, high = 10.0 ** whole[0], 10.0 ** whole[-1]
    else:
        ticks = round_ticks(0.0 if chart.from_zero else min(values), max(values))
        named = [(tick, f"{tick:.6g}") for tick in ticks]
        low, high = ticks[0], ticks[-1]
    return Scale(low, high, box.bottom, box.top, log=chart.log), named


def _rule(drawing: Drawing, y: float, name: str, box: Box) -> None:
    drawing.line((box.left, y), (box.right, y), "rule")
    drawing.text(box.left - 8, y + 4, name, colour="quiet", size=_SMALL, anchor="end")


def _places(drawing: Drawing, chart: Chart, across: Scale, box: Box) -> None:
    slant, anchor = (-20, "end") if chart.slanted else (0, "middle")
    for x, name in chart.places:
        drawing.text(
            across(x),
            box.bottom + 18,
            name,
            colour="quiet",
            size=_SMALL,
            anchor=anchor,
            turned=slant,
        )
    if chart.across:
        middle = (box.left + box.right) / 2
        drawing.text(
            middle, box.bottom + 34, chart.across, colour="quiet", size=_SMALL, anchor="middle"
        )


def _any_above(chart: Chart) -> bool:
    """Whether a mark stands above the limit, where its name would otherwise."""
    if chart.limit is None:
        return False
    marks = [mark.value for line in chart.lines for mark in line.marks if mark.value is not None]
    return any(value > chart.limit[0] for value in marks)


def _limit(drawing: Drawing, value: float, name: str, up: Scale, box: Box, *, below: bool) -> None:
    y = up(value)
    drawing.line((box.left, y), (box.right, y), "warn", width=1.2, dashes=DASHED)
    # Never above the box: other words stand there.
    y += 14 if below or y - box.top < 14 else -5
    drawing.text(box.left + 4, y, name, colour="warn", size=_SMALL, over=True)


def _line(drawing: Drawing, number: int, line: Line, plane: _Plane) -> None:
    if line.joined:
        for stretch in _stretches(line, plane):
            drawing.path(stretch, series_colour(number), width=1.8)
    for mark in line.marks:
        if mark.value is None:
            drawing.cross(plane.across(mark.x), plane.up.start - 8, mark.told)
        elif plane.has(mark.value):
            _mark(drawing, number, mark, plane.up(mark.value), plane)


def _stretches(line: Line, plane: _Plane) -> list[list[tuple[float, float]]]:
    """Points to be joined: a failure ends a stretch, and one point makes none."""
    found: list[list[tuple[float, float]]] = [[]]
    for mark in line.marks:
        if mark.value is None:
            found.append([])
        elif plane.has(mark.value):
            found[-1].append((plane.across(mark.x), plane.up(mark.value)))
    return [stretch for stretch in found if len(stretch) > 1]


def _mark(drawing: Drawing, number: int, mark: Mark, y: float, plane: _Plane) -> None:
    x = plane.across(mark.x)
    interval = [end for end in (mark.low, mark.high) if end is not None and plane.has(end)]
    if len(interval) == 2:
        low, high = map(plane.up, interval)
        drawing.line((x, low), (x, high), series_colour(number), width=1.2)
    drawing.mark(number, x, y, mark.told)
    if mark.word:
        drawing.text(x, y - 11, mark.word, size=_SMALL, anchor="middle", bold=True, over=True)


def _drawable(value: float, *, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)
