"""The one palette, of light and of dark screens: pictures in files and those on the report page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.draw.markup import Markup

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Paper, ink, quiet ink, lines, what a bar lies in, a warning, and the series. Each ink's contrast
# with its paper is above 4.5 (WCAG 2).
_LIGHT = {
    "paper": "#ffffff",
    "ink": "#16191d",
    "quiet": "#565e68",
    "rule": "#dfe3e8",
    "groove": "#e8ebef",
    "warn": "#b3261e",
    "c1": "#0b62b4",
    "c2": "#b4480c",
    "c3": "#17783f",
    "c4": "#7c3fa8",
    "c5": "#a3295c",
    "c6": "#4a5a68",
}
_DARK = {
    "paper": "#181c22",
    "ink": "#e7eaee",
    "quiet": "#a1abb6",
    "rule": "#2b323a",
    "groove": "#262c34",
    "warn": "#f59a92",
    "c1": "#6fb1f4",
    "c2": "#f0975c",
    "c3": "#66c68b",
    "c4": "#c59af0",
    "c5": "#f08ab4",
    "c6": "#a9b8c6",
}
_SERIES = 6  # c1 to c6
_FORMS = (
    "text{font-variant-numeric:tabular-nums}"
    ".glass{fill-opacity:.28;stroke-width:1.5}"
    ".halo{paint-order:stroke;stroke-width:3px;stroke-linejoin:round}"
)


def series_colour(number: int) -> str:
    """Name of a series' colour, from 0 on; the seventh has the first one's again."""
    return f"c{number % _SERIES + 1}"


def rules() -> Markup:
    """CSS of a drawing's classes: ``f-NAME`` fills, ``s-NAME`` strokes."""
    return Markup(_FORMS + _in_both(_classes))


def variables() -> Markup:
    """CSS variables of the same colours, ``--NAME``, for the page around drawings."""
    return Markup(_in_both(_variables))


def _in_both(written: Callable[[Mapping[str, str]], str]) -> str:
    return f"{written(_LIGHT)}@media (prefers-color-scheme:dark){{{written(_DARK)}}}"


def _classes(palette: Mapping[str, str]) -> str:
    # Written out, not by variables: not every program that shows an SVG file knows these.
    named = "".join(
        f".f-{name}{{fill:{colour}}}.s-{name}{{stroke:{colour}}}"
        for name, colour in palette.items()
    )
    return f"{named}.halo,.mark{{stroke:{palette['paper']}}}"


def _variables(palette: Mapping[str, str]) -> str:
    return f":root{{{''.join(f'--{name}:{colour};' for name, colour in palette.items())}}}"
