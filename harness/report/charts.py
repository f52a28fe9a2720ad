"""The page's charts, as inline SVG in the page's colours.

Every chart is described for those who do not see it; every point tells its value to a pointer that
rests on it. A series is told by its marker's shape as well as by its colour.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.draw.chart import Box, Chart, Line, draw
from harness.draw.drawing import Drawing
from harness.draw.markup import tag
from harness.draw.scales import few

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.draw.markup import Markup

_WIDTH, _HEIGHT = 460.0, 230.0
_BOX = Box(54, 12, _WIDTH - 16, _HEIGHT - 34)
_NAMED = replace(_BOX, bottom=_BOX.bottom - 12)  # above the x axis' name
_BAR_STEP, _BAR_HEIGHT, _CORNER = 38.0, 9.0, 4.0
_MOST_COMMITS, _MOST_LAYERS = 5, 8  # that are named
_EQUAL = 1e-16  # what a cosine of exactly 1 is drawn as: float64 tells no smaller loss


@dataclass(frozen=True)
class Bar:
    """A share of 1, with its name and what it says beside it."""

    name: str
    share: float
    said: str


def lines(title: str, unit: str, series: Sequence[Line], commits: Sequence[str]) -> Markup:
    """Values over commits, from zero up; a cross where a commit has none."""
    newest_first = few(range(len(commits) - 1, -1, -1), _MOST_COMMITS)
    places = [(x, commits[x]) for x in newest_first]
    drawing = Drawing(_WIDTH, _HEIGHT, f"{title}, {unit}")
    draw(drawing, Chart(series, places, from_zero=True), _BOX)
    return drawing.inline("; ".join(_described(line, unit) for line in series))


def losses(title: str, series: Sequence[Line], floor: float) -> Markup:
    """1 − cosine by layer, on a logarithmic scale; the floor as a line."""
    layers = max((mark.x for line in series for mark in line.marks), default=0)
    places = [(x, str(x)) for x in few(range(round(layers) + 1), _MOST_LAYERS)]
    shown = [_losses(line) for line in series]
    limit = 1 - floor, f"cosine {floor:g}"
    drawing = Drawing(_WIDTH, _HEIGHT, f"{title}, 1 − cosine by layer")
    draw(drawing, Chart(shown, places, "layer", log=True, limit=limit), _NAMED)
    said = (
        f"{line.name}: worst {max(values):.3g}"
        for line in series
        if (values := [mark.value for mark in line.marks if mark.value is not None])
    )
    return drawing.inline("; ".join(said))


def bars(title: str, rows: Sequence[Bar], whole: str) -> Markup:
    """Shares as bars, ``whole`` at the right end (or further, where a share exceeds it)."""
    most = max(1.0, *(row.share for row in rows))
    height, right = _BAR_STEP * len(rows) + 22, _WIDTH - 1
    end = right / most
    drawing = Drawing(_WIDTH, height, title)
    for index, row in enumerate(rows):
        y = _BAR_STEP * index + 20
        drawing.text(0, y - 6, row.name, size=12.5)
        drawing.text(right, y - 6, row.said, colour="quiet", size=12.5, anchor="end")
        drawing.rect(0, y, right, _BAR_HEIGHT, "groove", corner=_CORNER)
        length = max(right * row.share / most, 1.0)
        told = f"{row.name}: {row.said}"
        drawing.rect(0, y, length, _BAR_HEIGHT, "c1", told, corner=_CORNER)
        drawing.line((end, y - 2), (end, y + _BAR_HEIGHT + 2), "ink", width=1.6)
    drawing.text(end, height - 6, whole, colour="quiet", size=11.5, anchor="end")
    return drawing.inline("; ".join(f"{row.name}: {row.said}" for row in rows))


def legend(names: Sequence[str]) -> Markup:
    """The series' names beside their marks."""
    return tag(
        "ul", *(tag("li", _sign(at), name) for at, name in enumerate(names)), class_="legend"
    )


def _sign(number: int) -> Markup:
    drawing = Drawing(14, 14, "")
    drawing.mark(number, 7, 7)
    return tag("svg", drawing.shapes, viewBox="0 0 14 14", aria_hidden="true")


def _losses(line: Line) -> Line:
    """A line's marks, each where a logarithmic axis has a place."""
    marks = (
        mark if mark.value is None else replace(mark, value=max(mark.value, _EQUAL))
        for mark in line.marks
    )
    return Line(line.name, tuple(marks), joined=False)


def _described(line: Line, unit: str) -> str:
    values = [mark.value for mark in line.marks if mark.value is not None]
    failed = len(line.marks) - len(values)
    holes = f", {failed} failed" if failed else ""
    if not values:
        return f"{line.name}: no value{holes}"
    return f"{line.name}: from {values[0]:.4g} to {values[-1]:.4g} {unit}{holes}"
