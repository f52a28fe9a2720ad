"""Times that grow with something, beside their floor: what the pictures of a decode share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.draw.chart import Box, Chart, Line, Mark, draw, legend, line_keys
from harness.draw.drawing import Drawing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.report.sidecars import Batch, Decode

_WIDTH, _HEIGHT, _MARGIN = 760, 420, 28
_BOX = Box(_MARGIN + 32, 112, _WIDTH - _MARGIN, _HEIGHT - 52)
_SHORT = 8


@dataclass(frozen=True)
class Point:
    """A time at a place on the axis and the least that it can be, in ms.

    ``place`` is its name on the axis, ``subject`` what a pointer is told that it is of, ``word``
    what stands above it behind the time.
    """

    x: float
    ms: float
    floor_ms: float
    place: str
    subject: str
    word: str


@dataclass(frozen=True)
class Names:
    """Words of a picture: its title, the unit of its times, and the name of its axis."""

    title: str
    unit: str
    across: str
    measured: str


def curve(points: Sequence[Point], names: Names, ran: str) -> str:
    """Draw times and their floor, heights from zero: SVG. ``ran`` says what ran on what."""
    measured = Line(names.measured, [_measured(names.unit, each) for each in points])
    floor = Line("floor: bytes / read bandwidth", [_floor(names.unit, each) for each in points])
    drawing = Drawing(_WIDTH, _HEIGHT, f"{names.title}: {ran}")
    drawing.text(_MARGIN, 36, names.title, size=17, bold=True)
    drawing.text(_MARGIN, 56, ran, colour="quiet")
    drawing.text(_MARGIN, 88, names.unit, colour="quiet")
    legend(drawing, _WIDTH - _MARGIN, 88, line_keys(drawing, (measured, floor)))
    places = [(point.x, point.place) for point in points]
    draw(drawing, Chart((measured, floor), places, names.across, from_zero=True), _BOX)
    return drawing.render()


def heading(figures: Iterable[Decode | Batch]) -> str:
    """Say what ran: all of it, where the newest figures are of several commits."""
    told = list(figures)
    said = (
        {each.model for each in told},
        {f"on {each.origin.device}" for each in told},
        {each.numerics for each in told},
        {each.origin.commit[:_SHORT] for each in told},
    )
    model, *rest = (" and ".join(sorted(each)) for each in said)
    return f"{model} {', '.join(rest)}"


def _measured(unit: str, point: Point) -> Mark:
    times = point.ms / point.floor_ms
    told = f"{point.subject}: {point.ms:.3f} {unit}, {times:.2f} times the floor"
    return Mark(point.x, point.ms, told, word=f"{point.ms:.2f}, {point.word or f'{times:.1f} ×'}")


def _floor(unit: str, point: Point) -> Mark:
    told = f"{point.subject}: floor {point.floor_ms:.3f} {unit}"
    return Mark(point.x, point.floor_ms, told, word=f"{point.floor_ms:.2f}")
