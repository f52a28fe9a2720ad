"""A picture of its own: how a decode's time grows with what is cached before, beside its floor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import BadInput
from harness.report.curve import Names, Point, curve, heading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.report.model import Report
    from harness.report.sidecars import Decode

_NAMES = Names(
    "Time of a token over depth",
    "ms/token",
    "positions cached before, logarithmic; 0 set apart",
    "measured, and times the floor",
)


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
    decodes = newest_decodes(report, machine, benchmark)
    points = [point for decode in decodes if (point := _point(decode)) is not None]
    if not points:
        raise BadInput(
            f"no accepted decode of {benchmark} on {machine} in results/ with a share of the read "
            "bandwidth; asv run makes some"
        )
    return depth_curve(points, heading(decodes))


def newest_decodes(report: Report, machine: str, benchmark: str) -> list[Decode]:
    """Accepted decodes of a benchmark on a machine, the newest of each choice of parameters."""
    return [
        decode
        for each in report.machines
        if each.name == machine
        for decode in each.decodes
        if decode.origin.benchmark.startswith(f"{benchmark} ")
    ]


def depth_curve(points: Sequence[DepthPoint], ran: str) -> str:
    """Draw ms/token over depth, and the floor: SVG. ``ran`` says what ran on what.

    Depths double by the same width, so that small ones stay apart; 0, for which such an axis has no
    place, stands one step before the first.
    """
    points = sorted(points, key=lambda point: point.depth)
    across = _across([point.depth for point in points])
    shown = [
        Point(
            across[point.depth],
            point.ms,
            point.floor_ms,
            f"{point.depth:,}",
            f"{point.depth:,} cached",
            "",
        )
        for point in points
    ]
    return curve(shown, _NAMES, ran)


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
