"""The roofline of a token: how fast each kernel moves its bytes, and how far that is from the roof.

A batch of one is bound by memory, so the roof is flat: this device's measured read bandwidth. The
abscissa is bytes a launch, which tells why a kernel stays below it: a launch that moves little is
bound by its own length, along the slanted lines of equal time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.draw.drawing import DOTTED, text_width
from harness.draw.scales import Scale, powers
from harness.profile.heading import COLOURS, MARGIN, headed

if TYPE_CHECKING:
    from harness.draw.drawing import Drawing
    from harness.profile.summary import Profile, Row

_WIDTH, _HEIGHT = 960, 560
_LEFT, _BOTTOM = 84, 56
_LARGEST = 46  # radius of the kernel that takes longest
_LABEL = 12
_ROOM = 1.3  # above the largest value

_Box = tuple[float, float, float, float]  # left, top, right, bottom


class _Axes:
    """Bytes a launch and bytes a second, both logarithmic, on the picture."""

    def __init__(self, rows: list[Row], roof: float, top: float, height: float) -> None:
        moved = [row.bytes / row.calls for row in rows]
        rates = [roof, *(row.bytes_per_second or 1 for row in rows)]
        self.left, self.right = _LEFT, _WIDTH - MARGIN
        self.top, self.bottom = top + 8, height - _BOTTOM
        self.moved, self.rates = (
            powers(min(values), max(values) * _ROOM) for values in (moved, rates)
        )
        self.x = _scale(self.moved, self.left, self.right)
        self.y = _scale(self.rates, self.bottom, self.top)


def _scale(whole: range, start: float, stop: float) -> Scale:
    return Scale(10.0 ** whole[0], 10.0 ** whole[-1], start, stop, log=True)


def roofline(profile: Profile) -> str:
    """Draw it: SVG. A disc's area is the time that its kernel takes of a token."""
    recording, path = profile.recording, profile.path
    roof = recording.read_bandwidth
    picture, top = headed(
        recording,
        "Roofline of one token",
        f"token {path.undisturbed_us:,.0f} µs, floor {path.floor_us:,.0f} µs "
        f"({sum(recording.bytes) / 1e6:,.1f} MB at {roof / 1e9:,.0f} GB/s): "
        f"{path.distance:.2f} times the floor; a disc's area is its kernel's time",
        width=_WIDTH,
        height=_HEIGHT,
    )
    rows = [row for row in profile.rows if row.bytes_per_second]
    if not rows:
        return picture.render()
    axes = _Axes(rows, roof, top, picture.height)
    _grid(picture, axes)
    _roof(picture, axes, roof)
    longest = rows[0].adds_us
    radii = [max(3, _LARGEST * math.sqrt(max(0.0, row.adds_us) / longest)) for row in rows]
    for row, radius in zip(rows, radii, strict=True):
        picture.circle(*_place(axes, row), radius, COLOURS[row.kind.part], _words(row))
    # The roof's own words come first: no label may cover them.
    roof_y = axes.y(roof)
    taken: list[_Box] = [(axes.left, roof_y - 20, axes.left + 300, roof_y + 2)]
    for row, radius in zip(rows, radii, strict=True):
        _label(picture, axes, row, radius, taken)
    return picture.render()


def _grid(picture: Drawing, axes: _Axes) -> None:
    for power in axes.moved:
        x = axes.x(10.0**power)
        picture.line((x, axes.top), (x, axes.bottom), "rule")
        picture.text(x, axes.bottom + 18, _bytes(power), colour="quiet", anchor="middle")
    for power in axes.rates:
        y = axes.y(10.0**power)
        picture.line((axes.left, y), (axes.right, y), "rule")
        picture.text(axes.left - 8, y + 4, _bytes(power) + "/s", colour="quiet", anchor="end")
    middle = (axes.left + axes.right) / 2
    picture.text(middle, axes.bottom + 40, "bytes a launch moves", colour="quiet", anchor="middle")
    for power in range(-1, 5):  # lines of equal time, in microseconds
        _equal_time(picture, axes, 10.0**power)


def _equal_time(picture: Drawing, axes: _Axes, us: float) -> None:
    """Draw bytes = rate x time, as far as it crosses the axes."""
    start = max(axes.x.low, axes.y.low * us * 1e-6)
    end = min(axes.x.high, axes.y.high * us * 1e-6)
    if start >= end:
        return
    first = axes.x(start), axes.y(start / (us * 1e-6))
    last = axes.x(end), axes.y(end / (us * 1e-6))
    picture.line(first, last, "quiet", dashes=DOTTED)  # dotted, so as not to pass for the grid
    picture.text(last[0] - 6, last[1] + 14, f"{us:g} µs", colour="quiet", size=11, anchor="end")


def _roof(picture: Drawing, axes: _Axes, roof: float) -> None:
    y = axes.y(roof)
    picture.line((axes.left, y), (axes.right, y), "ink", width=2)
    picture.text(
        axes.left + 8, y - 7, f"measured read bandwidth, {roof / 1e9:,.0f} GB/s", bold=True
    )


def _label(picture: Drawing, axes: _Axes, row: Row, radius: float, taken: list[_Box]) -> None:
    """Write a kernel's name where no other stands: in its disc, above it, below it, further."""
    x, y = _place(axes, row)
    words = f"{row.kind.name} {100 * (row.bandwidth_share or 0):.0f} %"
    half = text_width(words, _LABEL) / 2
    column = min(max(x, axes.left + half + 4), axes.right - half - 4)
    shifts = [sign * (radius + 10 + 17 * step) for step in range(8) for sign in (-1, 1)]
    if half < radius * 0.95:
        shifts.insert(0, 0.0)
    for shift in shifts:
        box = (column - half, y + shift - 8, column + half, y + shift + 8)
        if axes.top < box[1] and box[3] < axes.bottom and not any(_meet(box, o) for o in taken):
            break
    else:  # no room anywhere: rather over another than off the paper
        shift = 0.0
        box = (column - half, y - 8, column + half, y + 8)
    taken.append(box)
    if abs(shift) > radius + 12:
        picture.line((x, y), (column, y + shift), COLOURS[row.kind.part])
    picture.text(column, y + shift + 4, words, size=_LABEL, anchor="middle", bold=True, over=True)


def _meet(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _place(axes: _Axes, row: Row) -> tuple[float, float]:
    return axes.x(row.bytes / row.calls), axes.y(row.bytes_per_second or 1)


def _words(row: Row) -> str:
    rate = (row.bytes_per_second or 0) / 1e9
    return (
        f"{row.kind.name}: {row.calls} launches, {row.adds_us:.1f} µs, {row.bytes / 1e6:.2f} MB, "
        f"{rate:.1f} GB/s"
    )


def _bytes(power: int) -> str:
    unit, rest = divmod(power, 3)
    if unit > 5 or unit < 0:
        return f"1e{power} B"
    return f"{10**rest} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[unit]}"
