"""Charts as inline SVG, drawn by hand. Colours and fonts are the page's (page.css).

Every chart is described for those who do not see it; every point tells its value to a pointer that
rests on it. A series is told by its marker's shape as well as by its colour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from harness.report.markup import Markup, join, tag

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Scale: TypeAlias = Callable[[float], float]

COLOURS = 6  # --c1 to --c6 in page.css
_WIDTH, _HEIGHT = 460.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 54.0, 16.0, 12.0, 34.0
_BAR_STEP, _BAR_HEIGHT = 38.0, 9.0
_MOST_LABELS = 5
_EQUAL = 1e-16  # what a cosine of exactly 1 is drawn as: float64 tells no smaller loss


@dataclass(frozen=True)
class Mark:
    """A value at a place on the x axis; None: failed there. ``told``: to whom points at it."""

    x: int
    value: float | None
    told: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """A series and its name in the legend."""

    name: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Bar:
    """A share of 1, with its name and what it says beside it."""

    name: str
    share: float
    said: str


def lines(title: str, unit: str, series: Sequence[Line], places: Sequence[str]) -> Markup:
    """Values over commits, from zero up; a cross where a commit has none."""
    values = [
        value
        for line in series
        for mark in line.marks
        for value in (mark.value, mark.high)
        if value is not None
    ]
    ticks = nice_ticks(max(values, default=1.0))
    top = ticks[-1]

    def across(x: float) -> float:
        inner = _WIDTH - _LEFT - _RIGHT
        return _LEFT + inner * ((x + 0.5) / len(places) if len(places) < 3 else _edge(x, places))

    def up(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * value / top

    parts = [_rule(up(tick), f"{tick:g}") for tick in ticks]
    stride = -(-len(places) // _MOST_LABELS)
    parts += [
        tag("text", place, x=across(x), y=_HEIGHT - 12, class_="tick mono", text_anchor="middle")
        for x, place in enumerate(places)
        if (len(places) - 1 - x) % stride == 0  # the newest always
    ]
    for number, line in enumerate(series):
        colour = f"s{number % COLOURS + 1}"
        parts.append(_path(line, across, up, colour))
        parts += [
            _failed(across(mark.x), mark.told)
            if mark.value is None
            else join(
                _whisker(across(mark.x), mark, up, colour),
                marker(number, across(mark.x), up(mark.value), mark.told),
            )
            for mark in line.marks
        ]
    said = "; ".join(_described(line, unit) for line in series)
    return _svg(f"{title}, {unit}", said, _HEIGHT, parts)


def losses(title: str, series: Sequence[Line], floor: float) -> Markup:
    """1 − cosine by layer, on a logarithmic scale; the floor as a line."""
    drawn = [max(m.value, _EQUAL) for line in series for m in line.marks if m.value is not None]
    lowest = math.floor(math.log10(min(drawn, default=_EQUAL)))
    highest = max(math.ceil(math.log10(max([*drawn, 1 - floor]))), lowest + 1)
    layers = max((mark.x for line in series for mark in line.marks), default=0)

    def across(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (x + 0.5) / (layers + 1)

    def up(value: float) -> float:
        share = (math.log10(max(value, _EQUAL)) - lowest) / (highest - lowest)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * share

    step = max(1, round((highest - lowest) / 5))
    parts = [_rule(up(10.0**power), f"1e{power}") for power in range(highest, lowest - 1, -step)]
    parts.append(
        tag(
            "line",
            x1=_LEFT,
            x2=_WIDTH - _RIGHT,
            y1=up(1 - floor),
            y2=up(1 - floor),
            class_="floor",
        )
    )
    parts.append(
        tag(
            "text",
            f"cosine {floor:g}",
            x=_WIDTH - _RIGHT,
            y=up(1 - floor) - 5,
            class_="tick floor-name",
            text_anchor="end",
        )
    )
    every = -(-(layers + 1) // 8)
    parts += [
        tag("text", f"{x}", x=across(x), y=_HEIGHT - 14, class_="tick", text_anchor="middle")
        for x in range(0, layers + 1, every)
    ]
    parts.append(
        tag("text", "layer", x=_LEFT - 10, y=_HEIGHT - 14, class_="tick", text_anchor="end")
    )
    parts += [
        marker(number, across(mark.x), up(mark.value), mark.told)
        for number, line in enumerate(series)
        for mark in line.marks
        if mark.value is not None
    ]
    said = "; ".join(
        f"{line.name}: worst {max(values):.3g}"
        for line in series
        if (values := [mark.value for mark in line.marks if mark.value is not None])
    )
    return _svg(f"{title}, 1 − cosine by layer", said, _HEIGHT, parts)


def bars(title: str, rows: Sequence[Bar], whole: str) -> Markup:
    """Shares as bars, ``whole`` at the right end (or further, where a share exceeds it)."""
    most = max(1.0, *(row.share for row in rows))
    height, right = _BAR_STEP * len(rows) + 22, _WIDTH - 1
    end = right / most
    parts: list[Markup] = []
    for index, row in enumerate(rows):
        y = _BAR_STEP * index + 20
        parts += [
            tag("text", row.name, x=0, y=y - 6, class_="bar-name"),
            tag("text", row.said, x=right, y=y - 6, class_="bar-said", text_anchor="end"),
            tag("rect", x=0, y=y, width=right, height=_BAR_HEIGHT, rx=4, class_="groove"),
            tag(
                "rect",
                tag("title", f"{row.name}: {row.said}"),
                x=0,
                y=y,
                width=max(right * row.share / most, 1.0),
                height=_BAR_HEIGHT,
                rx=4,
                class_="bar",
            ),
            tag("line", x1=end, x2=end, y1=y - 2, y2=y + _BAR_HEIGHT + 2, class_="roof"),
        ]
    parts.append(tag("text", whole, x=end, y=height - 6, class_="tick", text_anchor="end"))
    said = "; ".join(f"{row.name}: {row.said}" for row in rows)
    return _svg(title, said, height, parts)


def marker(number: int, x: float, y: float, told: str) -> Markup:
    """The mark of series ``number``: its own shape and colour."""
    shape, size = number % 4, 4.2
    said = tag("title", told)
    colour = f"mark s{number % COLOURS + 1}"
    if shape == 0:
        return tag("circle", said, cx=x, cy=y, r=size, class_=colour)
    around = {
        1: ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        2: ((0, -1.3), (1.2, 0.9), (-1.2, 0.9)),
        3: ((0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)),
    }[shape]
    points = " ".join(f"{x + dx * size:.1f},{y + dy * size:.1f}" for dx, dy in around)
    return tag("polygon", said, points=points, class_=colour)


def legend(names: Sequence[str]) -> Markup:
    """The series' names beside their marks."""
    items = (
        tag(
            "li",
            tag("svg", marker(number, 7, 7, name), viewBox="0 0 14 14", aria_hidden="true"),
            name,
        )
        for number, name in enumerate(names)
    )
    return tag("ul", *items, class_="legend")


def nice_ticks(most: float) -> list[float]:
    """Four to six round values from 0, of which the last is at least ``most``."""
    most = most if most > 0 else 1.0
    rough = most / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(step * magnitude for step in (1, 2, 2.5, 5, 10) if step * magnitude >= rough)
    count = math.ceil(most / step - 1e-9)
    return [step * index for index in range(count + 1)]


def _edge(x: float, places: Sequence[str]) -> float:
    """Keep half a label's width free at both ends."""
    return 0.06 + 0.88 * x / (len(places) - 1)


def _described(line: Line, unit: str) -> str:
    values = [mark.value for mark in line.marks if mark.value is not None]
    failed = len(line.marks) - len(values)
    holes = f", {failed} failed" if failed else ""
    if not values:
        return f"{line.name}: no value{holes}"
    return f"{line.name}: from {values[0]:.4g} to {values[-1]:.4g} {unit}{holes}"


def _path(line: Line, across: Scale, up: Scale, colour: str) -> Markup:
    """Lines between neighbours; none across a hole."""
    steps, pen = [], "M"
    for mark in line.marks:
        if mark.value is None:
            pen = "M"
            continue
        steps.append(f"{pen}{across(mark.x):.1f} {up(mark.value):.1f}")
        pen = "L"
    return tag("path", d=" ".join(steps), class_=f"line {colour}")


def _whisker(x: float, mark: Mark, up: Scale, colour: str) -> Markup | None:
    if mark.low is None or mark.high is None:
        return None
    return tag("line", x1=x, x2=x, y1=up(mark.low), y2=up(mark.high), class_=f"whisker {colour}")


def _failed(x: float, told: str) -> Markup:
    y, reach = _HEIGHT - _BOTTOM - 8, 4
    cross = f"M{x - reach} {y - reach}L{x + reach} {y + reach}M{x - reach} {y + reach}"
    return tag("path", tag("title", told), d=f"{cross}L{x + reach} {y - reach}", class_="failed")


def _rule(y: float, name: str) -> Markup:
    return join(
        tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="rule"),
        tag("text", name, x=_LEFT - 8, y=y + 4, class_="tick", text_anchor="end"),
    )


def _svg(title: str, said: str, height: float, parts: Sequence[Markup]) -> Markup:
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {_WIDTH:g} {height:g}",
        role="img",
        aria_label=f"{title}. {said}",
        class_="chart",
    )
