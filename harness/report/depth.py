"""A picture of its own: how a decode's time grows with what is cached before, beside its floor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.draw.chart import Box, Chart, Line, Mark, draw, legend, line_keys
from harness.draw.drawing import Drawing
from harness.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.report.model import Report
    from harness.report.sidecars import Decode

_WIDTH, _HEIGHT, _MARGIN = 760, 420, 28
_BOX = Box(_MARGIN + 32, 112, _WIDTH - _MARGIN, _HEIGHT - 52)
_SHORT = 8


@dataclass(frozen=True)
class DepthPoint:
    """A decode with ``depth`` positions cached before it: ms/token, measured and at the least.

    ``floor_ms`` is the time that the token's bytes take at the measured read bandwidth.
    """

    depth: int
    ms: float
    floor_ms: float


def depth_picture(report: Report, machine: str, benchmark: str) -> str:
    """Draw the newest accepted decodes of a benchmark on a machine: SVG.

    Raises
    ------
    BadInput
        Where the report has none whose bandwidth was measured.

    """
    decodes = [
        decode
        for each in report.machines
        if each.name == machine
        for decode in each.decodes
        if decode.origin.benchmark.startswith(f"{benchmark} ")
    ]
    points = [point for decode in decodes if (point := _point(decode)) is not None]
    if not points:
        raise BadInput(
            f"no accepted decode of {benchmark} on {machine} in results/ with a share of the read "
            "bandwidth; asv run makes some"
        )
    return depth_curve(points, _heading(decodes))


def depth_curve(points: Sequence[DepthPoint], ran: str) -> str:
    """Draw ms/token over depth, and the floor: SVG. ``ran`` says what ran on what.

    Depths double by the same width, so that small ones stay apart; 0, for which such an axis has no
    place, stands one step before the first.
    """
    points = sorted(points, key=lambda point: point.depth)
    across = _across([point.depth for point in points])
    measured = Line("measured, and times the floor", [_measured(across, each) for each in points])
    floor = Line("floor: bytes / read bandwidth", [_floor(across, each) for each in points])
    places = [(across[point.depth], f"{point.depth:,}") for point in points]
    drawing = Drawing(_WIDTH, _HEIGHT, f"Time of a token over depth: {ran}")
    drawing.text(_MARGIN, 36, "Time of a token over depth", size=17, bold=True)
    drawing.text(_MARGIN, 56, ran, colour="quiet")
    drawing.text(_MARGIN, 88, "ms/token", colour="quiet")
    legend(drawing, _WIDTH - _MARGIN, 88, line_keys(drawing, (measured, floor)))
    below = "positions cached before, logarithmic; 0 set apart"
    draw(drawing, Chart((measured, floor), places, below, from_zero=True), _BOX)
    return drawing.render()


def _point(decode: Decode) -> DepthPoint | None:
    """None where no bandwidth was measured. The share is the floor's of the time, by definition."""
    share = decode.roofline_fraction
    if share is None:
        return None
    return DepthPoint(decode.depth, decode.ms_median, decode.ms_median * share)


def _across(depths: Sequence[int]) -> dict[int, float]:
    """Where each depth stands, in doublings."""
    places = {depth: math.log2(depth) for depth in depths if depth}
    steps = max(1, len(places) - 1)
    first, last = (end(places.values(), default=0.0) for end in (min, max))
    return {0: first - ((last - first) / steps or 1.0)} | places


def _measured(across: dict[int, float], point: DepthPoint) -> Mark:
    times = point.ms / point.floor_ms
    told = f"{point.depth:,} cached: {point.ms:.3f} ms/token, {times:.2f} times the floor"
    return Mark(across[point.depth], point.ms, told, word=f"{point.ms:.2f}, {times:.1f} ×")


def _floor(across: dict[int, float], point: DepthPoint) -> Mark:
    told = f"{point.depth:,} cached: floor {point.floor_ms:.3f} ms/token"
    return Mark(across[point.depth], point.floor_ms, told, word=f"{point.floor_ms:.2f}")


def _heading(decodes: Sequence[Decode]) -> str:
    """Say what ran: all of it, where the newest figures of the depths are of several commits."""
    said = (
        {decode.model for decode in decodes},
        {f"on {decode.origin.device}" for decode in decodes},
        {decode.numerics for decode in decodes},
        {decode.origin.commit[:_SHORT] for decode in decodes},
    )
    model, *rest = (" and ".join(sorted(each)) for each in said)
    return f"{model} {', '.join(rest)}"
