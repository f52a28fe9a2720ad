"""What stands above every picture: what ran, where, and whether a guard accepted it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.profile.kinds import ATTENTION, ENDS, EXPERTS
from harness.profile.svg import Drawing, text_width
from harness.profile.table import warning

if TYPE_CHECKING:
    from harness.profile.recording import Recording

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
        _legend(picture, y)
    return picture, y + 56


def _legend(picture: Drawing, y: float) -> None:
    x = float(picture.width - MARGIN)
    for part in (ENDS, EXPERTS, ATTENTION):
        x -= text_width(part, 12)
        picture.text(x, y, part, colour="quiet")
        picture.rect(x - 16, y - 9, 10, 10, part)
        x -= 34
