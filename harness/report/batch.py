"""A picture of its own: how a step's time grows with the sequences decoded at once, and its floor.

A step decodes a token of each sequence. One sequence is a decode by itself, at the same depth.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import BadInput
from harness.report.curve import Names, Point, curve, heading
from harness.report.depth import newest_decodes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.report.model import Report

_NAMES = Names(
    "Time of a step over batch",
    "ms/step",
    "sequences decoded at once, each a token in a step; logarithmic",
    "measured, and tok/s of all sequences",
)


class BatchPoint(NamedTuple):
    """Sequences decoded at once: ms/step, measured and at the least.

    ``floor_ms`` is the time that the step's bytes take at the measured read bandwidth: what all
    sequences read alike once, the union of their experts, and the cache of each.
    """

    size: int
    ms: float
    floor_ms: float


def batch_picture(report: Report, machine: str, alone: str, together: str) -> str:
    """Draw the newest accepted batches of a benchmark on a machine, and one sequence alone: SVG.

    ``alone`` names the benchmark of single sequences, ``together`` that of batches; whichever has
    figures is drawn.

    Raises
    ------
    BadInput
        Where neither has any at depth 0 whose bandwidth was measured.

    """
    single = [
        each
        for each in newest_decodes(report, machine, alone)
        if each.depth == 0 and each.roofline_fraction is not None
    ]
    several = [
        batch
        for each in report.machines
        if each.name == machine
        for batch in each.batches
        if batch.origin.benchmark.startswith(f"{together} ") and batch.depth == 0
    ]
    points = [
        BatchPoint(1, each.ms_median, each.ms_median * (each.roofline_fraction or 0.0))
        for each in single
    ]
    points += [
        BatchPoint(each.size, each.ms_median, each.ms_median * each.roofline_fraction)
        for each in several
    ]
    if not points:
        raise BadInput(
            f"no accepted decode of {alone} or {together} on {machine} at depth 0 in results/; asv "
            "run makes some"
        )
    return batch_curve(points, heading([*single, *several]))


def batch_curve(points: Sequence[BatchPoint], ran: str) -> str:
    """Draw ms/step over batch, and the floor: SVG. ``ran`` says what ran on what."""
    shown = [
        Point(
            math.log2(point.size),
            point.ms,
            point.floor_ms,
            f"{point.size:,}",
            f"batch {point.size:,}",
            f"{1000 * point.size / point.ms:,.0f} tok/s",
        )
        for point in sorted(points)
    ]
    return curve(shown, _NAMES, ran)
