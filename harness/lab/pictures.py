"""Pictures of the laboratory's results, out of their JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.draw.chart import Box, Chart, Line, Mark, draw, legend, line_keys
from harness.draw.drawing import Drawing
from harness.draw.scales import few

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Panel = tuple[str, Chart]  # a title and what is below it

_ROUNDING = 2.0**-53  # a cosine of exactly 1 is drawn there: a log axis has no zero
_WIDTH, _HEIGHT = 760, 250  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM, _SLANTED = 76, 24, 38, 48, 72
_MOST_LAYERS = 12  # that are named


def parity_picture(data: Mapping[str, Any]) -> str:
    """Draw cosine by layer, error born against inherited, and routing margins."""
    layers = data["layers"]
    errors = {error["layer"]: error for error in data["layer_errors"]}
    places = [(layer, str(layer)) for layer in _named(layers)]

    def series(name: str, key: str) -> Line:
        return _line(name, [(line["layer"], line[key]) for line in layers])

    def error(name: str, key: str) -> Line:
        return _line(name, [(line["layer"], errors[line["layer"]][key]) for line in layers])

    def panel(title: str, *lines: Line, **look: Any) -> Panel:  # noqa: ANN401 - as Chart's
        return title, Chart(lines, places, "layer", **look)

    swaps = [(swap["layer"], swap["margin"]) for swap in data["swaps"] if swap["layer"] in errors]
    who = f"{data['backend']}:{data['numerics']} against {data['reference']}"
    return panels(
        [
            panel(
                "cosine of moe_ffn_out, worst position",
                series("free-running", "moe_ffn_out_cosine"),
                series("forced", "forced_cosine"),
                limit=(0.99, "floor 0.99"),
            ),
            panel(
                "relative error of moe_ffn_out",
                error("born", "born_rel_l2"),
                error("inherited", "inherited_rel_l2"),
                log=True,
            ),
            panel(
                "routing margin, logits",
                series("smallest of the layer", "routing_margin"),
                _line("of swapped sets", swaps, joined=False),
                log=True,
            ),
        ],
        f"Parity by layer: {who}",
    )


def ladder_picture(data: Mapping[str, Any]) -> str:
    """Draw each rung's distance from both references, and its time."""
    rungs = data["rungs"]
    places = [(at, rung["numerics"]) for at, rung in enumerate(rungs)]

    def drift(name: str) -> Line:
        losses = [max(_ROUNDING, 1 - rung["drift"][name]["worst_cosine"]) for rung in rungs]
        return _line(f"from {name}", enumerate(losses), joined=False)

    times = [rung["us_per_token"] and rung["us_per_token"]["median"] for rung in rungs]
    lines = drift("f32"), drift("q8_k")
    timed = (_line("median", enumerate(times), joined=False),)
    return panels(
        [
            (
                "1 - worst cosine",
                Chart(lines, places, log=True, limit=(0.01, "floor 0.99"), slanted=True),
            ),
            ("µs per token", Chart(timed, places, slanted=True)),
        ],
        f"Drift ladder of {data['model']['name']} on {data['backend']}",
    )


def panels(shown: Sequence[Panel], title: str) -> str:
    """Return an SVG of charts, one below the other."""
    drawing = Drawing(_WIDTH, _HEIGHT * len(shown), title)
    for number, (name, chart) in enumerate(shown):
        top = _HEIGHT * number
        drawing.text(_LEFT, top + 20, name, size=13, bold=True)
        legend(drawing, _WIDTH - _RIGHT, top + 20, line_keys(drawing, chart.lines))
        below = _SLANTED if chart.slanted else _BOTTOM
        draw(drawing, chart, Box(_LEFT, top + _TOP, _WIDTH - _RIGHT, top + _HEIGHT - below))
    return drawing.render()


def _named(layers: Sequence[Mapping[str, Any]]) -> range:
    numbers = [line["layer"] for line in layers]
    return few(range(min(numbers), max(numbers) + 1), _MOST_LAYERS)


def _line(name: str, points: Iterable[tuple[int, float | None]], *, joined: bool = True) -> Line:
    """Leave out what there is not: None is no failure here."""
    marks = [Mark(x, y, f"{name}: {y:.4g}") for x, y in points if y is not None]
    return Line(name, marks, joined)
