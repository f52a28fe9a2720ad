"""One token on a line: all its layers, and one of them from near."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.draw.drawing import text_width
from harness.draw.scales import Scale, round_ticks
from harness.errors import BadInput
from harness.profile.heading import COLOURS, MARGIN, headed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.draw.drawing import Drawing
    from harness.profile.summary import Node, Profile

_WIDTH, _HEIGHT = 960, 376
_STRIP, _BAR = 34, 46
_EDGE = 1.5  # between two launches that touch
_SPACE = _WIDTH - 2 * MARGIN


class _Placed:
    """A token's launches at their median times: start and end in microseconds from 0 on.

    One that overlaps with the launch before starts where that one ends: then it is alone, and no
    longer waiting.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes, self.times = nodes, []
        now = 0.0
        for index, node in enumerate(nodes):
            start = now + max(0.0, node.gap_us) if index else 0.0
            now = max(start, start + min(node.us, node.adds_us)) if index else node.us
            self.times.append((start, now))
        self.end = max(end for _, end in self.times)

    def of_layer(self, layer: int) -> list[tuple[Node, float, float]]:
        """Launches of a layer."""
        return [
            (node, start, end)
            for node, (start, end) in zip(self.nodes, self.times, strict=True)
            if node.layer == layer
        ]


def timeline(profile: Profile, layer: int | None = None) -> str:
    """Draw it: SVG. ``layer`` is the one seen from near, the middle one unless given.

    Raises
    ------
    BadInput
        For a layer that does not exist.

    """
    recording, path = profile.recording, profile.path
    layer = recording.layers // 2 if layer is None else layer
    if not 0 <= layer < recording.layers:
        raise BadInput(f"layer {layer} does not exist, expected 0 to {recording.layers - 1}")
    placed = _Placed(profile.nodes)
    picture, top = headed(
        recording,
        "One token",
        f"{len(profile.nodes)} launches: {path.kernels_us:,.0f} µs in kernels, "
        f"{path.gaps_us:,.0f} µs in gaps, {path.host_us:,.1f} µs to the next token; medians of "
        f"{len(recording.traced.starts)} tokens, {recording.traced.tracer}",
        width=_WIDTH,
        height=_HEIGHT,
    )
    near = placed.of_layer(layer)
    start, end = near[0][1], max(stop for *_, stop in near)
    top += 14
    _strip(picture, placed, recording.layers, top)
    _funnel(picture, placed, (start, end), top + _STRIP + 22)
    _near(picture, near, layer, top + _STRIP + 84)
    return picture.render()


def _strip(picture: Drawing, placed: _Placed, layers: int, y: float) -> None:
    scale = _SPACE / placed.end
    picture.rect(MARGIN, y, _SPACE, _STRIP, "rule")
    for node, (start, end) in zip(placed.nodes, placed.times, strict=True):
        where = "" if node.layer is None else f" of layer {node.layer}"
        tip = f"{node.kind.name}{where}: {end - start:.2f} µs"
        width = max((end - start) * scale, 0.2)
        picture.rect(MARGIN + start * scale, y, width, _STRIP, COLOURS[node.kind.part], tip)
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64, 1 << 30) if layers / step <= 16)
    for layer in range(0, layers, every):
        x = MARGIN + placed.of_layer(layer)[0][1] * scale
        picture.line((x, y + _STRIP), (x, y + _STRIP + 5), "quiet")
        words, anchor = (str(layer), "middle") if layer else ("layer 0", "start")
        picture.text(x, y + _STRIP + 17, words, colour="quiet", size=11, anchor=anchor)
    picture.text(
        _WIDTH - MARGIN, y - 6, f"{placed.end:,.0f} µs", colour="quiet", size=11, anchor="end"
    )


def _funnel(picture: Drawing, placed: _Placed, span: tuple[float, float], y: float) -> None:
    scale = _SPACE / placed.end
    left, right = MARGIN + span[0] * scale, MARGIN + span[1] * scale
    picture.area([(left, y), (right, y), (_WIDTH - MARGIN, y + 46), (MARGIN, y + 46)], "rule")


def _near(picture: Drawing, near: list[tuple[Node, float, float]], layer: int, y: float) -> None:
    """A layer's launches, each with its name and times under it, as far as there is room."""
    start, end = near[0][1], max(stop for *_, stop in near)
    scale = _SPACE / max(end - start, 1e-9)
    picture.rect(MARGIN, y, _SPACE, _BAR, "rule")
    picture.text(MARGIN, y - 6, f"layer {layer}", bold=True)
    picture.text(
        _WIDTH - MARGIN, y - 6, f"{end - start:.1f} µs", colour="quiet", size=11, anchor="end"
    )
    ends = [-1.0, -1.0, -1.0]  # of the last label on each line
    for node, begin, stop in near:
        x, width = MARGIN + (begin - start) * scale, max((stop - begin) * scale, 0.5)
        tip = f"{node.kind.name}: {stop - begin:.2f} µs, {node.bytes / 1e6:.3f} MB"
        picture.rect(x, y, max(width - _EDGE, 0.5), _BAR, COLOURS[node.kind.part], tip)
        words = (node.kind.name, f"{stop - begin:.1f} µs")
        label = text_width(max(words, key=len), 13)  # bold is wider
        left = min(x, _WIDTH - MARGIN - label)
        line = next((i for i, free in enumerate(ends) if free < left), len(ends) - 1)
        ends[line] = left + label + 8
        below = y + _BAR + 18 + 34 * line
        picture.line((left, y + _BAR), (left, below - 10), "rule")
        picture.text(left, below, words[0], bold=True)
        picture.text(left, below + 15, words[1], colour="quiet", size=11)


def power_chart(profile: Profile) -> str | None:
    """Draw power over time: SVG; None where none was read."""
    energy = profile.recording.energy
    if energy is None or len(energy["power"]) < 2:
        return None
    readings = energy["power"]
    joules = energy["joules_per_token"]
    picture, top = headed(
        profile.recording,
        "Power while decoding",
        "of the whole board, as NVML reads it"
        + ("" if joules is None else f"; {joules:.3f} J/token"),
        width=_WIDTH,
        height=300,
        legend=False,
    )
    seconds, ticks = max(readings[-1][0], 1e-9), round_ticks(0, max(w for _, w, _ in readings))
    left, right, bottom = MARGIN + 36, _WIDTH - MARGIN, picture.height - 40
    across, up = Scale(0, seconds, left, right), Scale(0, ticks[-1], bottom, top + 10)
    for watts in ticks:
        y = up(watts)
        picture.line((left, y), (right, y), "rule")
        picture.text(left - 6, y + 4, f"{watts:.0f} W", colour="quiet", anchor="end")
    picture.path([(across(at), up(watts)) for at, watts, _ in readings], "c2", width=2)
    for at, words, anchor in ((0, "0", "start"), (seconds, f"{seconds:.1f} s", "end")):
        picture.text(across(at), bottom + 18, words, colour="quiet", anchor=anchor)
    return picture.render()
