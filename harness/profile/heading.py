"""What stands above every picture: what ran, where, and whether a guard accepted it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.draw.chart import legend as write_legend
from harness.draw.drawing import Drawing
from harness.profile.kinds import ATTENTION, ENDS, EXPERTS
from harness.profile.table import warning

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.profile.recording import Recording

COLOURS = {ATTENTION: "c1", EXPERTS: "c2", ENDS: "c6"}  # of the parts of the model
MARGIN = 28
_WIDEST = 150  # letters of a line


def headed(
    recording: Recording, what: str, below: str, *, width: int, height: int, legend: bool = True
) -> tuple[Drawing, float]:
    """Begin a picture; returns it and where its own part begins."""
    ran, warned = recording.ran, warning(recording)
    height += 0 if warned is None else 22
    picture = Drawing(width, height, f"{what}: {ran['model']}")
    y = 36.0
    if warned is not None:
        picture.text(MARGIN, y - 6, warned[:_WIDEST], colour="warn", size=13, bold=True)
        y += 22
    picture.text(MARGIN, y, what, size=17, bold=True)
    commit = str(ran.get("commit", ""))[:8]
    where = f"{ran['model']} on {ran['device']}, {ran['backend']}:{ran['numerics']}"
    if commit:
        where += f", {commit}"
    picture.text(MARGIN, y + 20, where, colour="quiet")
    picture.text(MARGIN, y + 37, below, colour="quiet")
    if legend:
        keys = [(part, _square(picture, COLOURS[part])) for part in (ATTENTION, EXPERTS, ENDS)]
        write_legend(picture, width - MARGIN, y, keys)
    return picture, y + 56


def _square(picture: Drawing, colour: str) -> Callable[[float, float], None]:
    return lambda x, y: picture.rect(x - 5, y - 5, 10, 10, colour)
