"""Charts as SVG, without a dependency: legible on a light and on a dark page.

Text and axes take their colour from the reader's scheme (``prefers-color-scheme``); series differ
in shape as well as in colour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 }
.title { font-weight: 600; font-size: 13px }
.axis { stroke: #888; stroke-width: 1; fill: none }
.grid { stroke: #8883; stroke-width: 1 }
.s0 { stroke: #0b63b0; fill: #0b63b0 }
.s1 { stroke: #b3470f; fill: #b3470f }
.s2 { stroke: #4a7a28; fill: #4a7a28 }
.line { fill: none; stroke-width: 1.5 }
.limit { stroke: #999; stroke-width: 1; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd }
  .s0 { stroke: #6db3f2; fill: #6db3f2 }
  .s1 { stroke: #f2a06d; fill: #f2a06d }
  .s2 { stroke: #9ccc70; fill: #9ccc70 }
}
"""

WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 70, 20, 34, 34


@dataclass(frozen=True)
class Series:
    """Points ``(x, y)``; left out where y is None or not finite, or not above 0 on a log axis.

    ``joined``: by a line, in the order of the points.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    joined: bool = True


@dataclass(frozen=True)
class Panel:
    """One chart: series over a common axis, ``limit`` a dashed line with its name."""

    title: str
    x_name: str
    series: list[Series]
    log: bool = False
    limit: tuple[str, float] | None = None
    height: int = 220
    x_labels: list[str] = field(default_factory=list)


def document(panels: list[Panel], title: str) -> str:
    """Return an SVG of the panels, one below the other."""
    height = sum(panel.height for panel in panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
    ]
    top = 0
    for panel in panels:
        parts.append(f'<g transform="translate(0 {top})">{_panel(panel)}</g>')
        top += panel.height
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel) -> str:
    shown = [
        replace(s, points=[(x, y) for x, y in s.points if _drawable(y, log=panel.log)])
        for s in panel.series
    ]
    points = [(x, y) for series in shown for x, y in series.points if y is not None]
    parts = [f'<text class="title" x="{_LEFT}" y="16">{escape(panel.title)}</text>']
    if not points:
        parts.append(f'<text x="{_LEFT}" y="{panel.height // 2}">nothing to draw</text>')
        return "".join(parts)
    values = [y for _, y in points]
    if panel.limit is not None and _drawable(panel.limit[1], log=panel.log):
        values.append(panel.limit[1])
    ys = _Scale(min(values), max(values), panel.height - _BOTTOM, _TOP, log=panel.log)
    every = [x for series in panel.series for x, _ in series.points]
    xs = _Scale(min(every) - 0.5, max(every) + 0.5, _LEFT, WIDTH - _RIGHT, log=False)
    for value in ys.ticks():
        y = ys(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    bottom = panel.height - _BOTTOM
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{WIDTH - _RIGHT}"/>')
    parts += _x_axis(panel, xs, bottom, every)
    if panel.limit is not None and _drawable(panel.limit[1], log=panel.log):
        y = ys(panel.limit[1])
        parts.append(f'<path class="limit" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text x="{WIDTH - _RIGHT}" y="{y - 4:.1f}" text-anchor="end">'
            f"{escape(panel.limit[0])}</text>"
        )
    for index, series in enumerate(shown):
        parts += _drawn(series, index, xs, ys)
    return "".join(parts)


def _x_axis(panel: Panel, xs: _Scale, bottom: int, every: list[float]) -> list[str]:
    parts = []
    if panel.x_labels:
        for index, label in enumerate(panel.x_labels):
            parts.append(
                f'<text transform="translate({xs(index):.1f} {bottom + 14}) rotate(-20)" '
                f'text-anchor="end">{escape(label)}</text>'
            )
    else:
        step = max(1, round((max(every) - min(every)) / 12))
        parts += [
            f'<text x="{xs(value):.1f}" y="{bottom + 15}" text-anchor="middle">{value}</text>'
            for value in range(round(min(every)), round(max(every)) + 1, step)
        ]
    parts.append(
        f'<text x="{WIDTH - _RIGHT}" y="{panel.height - 4}" text-anchor="end">'
        f"{escape(panel.x_name)}</text>"
    )
    return parts


def _drawn(series: Series, index: int, xs: _Scale, ys: _Scale) -> list[str]:
    kind = f"s{index % 3}"
    placed = [(xs(x), ys(y)) for x, y in series.points if y is not None]
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
    parts = [f'<path class="{kind} line" d="M{line}"/>'] if placed and series.joined else []
    parts += [_mark(index, x, y, kind) for x, y in placed]
    at = 400 + 150 * index
    parts.append(_mark(index, at, 12, kind))
    parts.append(f'<text x="{at + 8}" y="16">{escape(series.name)}</text>')
    return parts


def _mark(index: int, x: float, y: float, kind: str) -> str:
    if index % 3 == 0:
        return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'
    if index % 3 == 1:
        return f'<rect class="{kind}" x="{x - 2.5:.1f}" y="{y - 2.5:.1f}" width="5" height="5"/>'
    return f'<path class="{kind}" d="M{x:.1f} {y - 3.5:.1f}l3.5 6.5h-7z"/>'


def _drawable(value: float | None, *, log: bool) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not log)


class _Scale:
    """Values to pixels, linear or logarithmic."""

    def __init__(self, low: float, high: float, start: float, stop: float, *, log: bool) -> None:
        self._log = log
        if log:
            self.low = float(math.floor(math.log10(low)))
            self.high = max(self.low + 1, float(math.ceil(math.log10(high))))
        else:
            room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
            self.low, self.high = low - room, high + room
        self._start, self._stop = start, stop

    def __call__(self, value: float) -> float:
        at = math.log10(value) if self._log else value
        share = (at - self.low) / (self.high - self.low)
        return self._start + share * (self._stop - self._start)

    def ticks(self) -> list[float]:
        """At most a handful of round values."""
        if self._log:
            step = max(1, math.ceil((self.high - self.low) / 6))
            return [10.0**power for power in range(int(self.low), int(self.high) + 1, step)]
        return [self.low + share * (self.high - self.low) for share in (0.05, 0.5, 0.95)]
