"""A little SVG: what the pictures need, light or dark as the reader's screen is."""

from __future__ import annotations

from html import escape

from harness.profile.kinds import ATTENTION, ENDS, EXPERTS

# Of light and dark screens: paper, ink, quiet ink, lines, a warning, and the parts of the model.
_LIGHT = {
    "paper": "#ffffff",
    "ink": "#1f2328",
    "quiet": "#656d76",
    "rule": "#d8dee4",
    "warn": "#b42318",
    ATTENTION: "#2f6fb3",
    EXPERTS: "#c2571a",
    ENDS: "#768390",
}
_DARK = {
    "paper": "#0d1117",
    "ink": "#e6edf3",
    "quiet": "#9198a1",
    "rule": "#30363d",
    "warn": "#ff7b72",
    ATTENTION: "#6cb0f5",
    EXPERTS: "#f0945a",
    ENDS: "#8b949e",
}
_FONT = "system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif"
LETTER = 0.56  # mean width of a letter, in font sizes: enough to see whether a text fits


class Drawing:
    """Shapes on paper of a size in pixels; ``colour`` is a key of the palettes."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self._title = width, height, title
        self._shapes: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, colour: str, tip: str = ""
    ) -> None:
        """Draw a filled rectangle; ``tip`` shows under the pointer."""
        self._shapes.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" '
            f'class="f-{colour}"{_tip("rect", tip)}'
        )

    def circle(self, x: float, y: float, radius: float, colour: str, tip: str = "") -> None:
        """Draw a disc, through which others are seen."""
        self._shapes.append(
            f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" '
            f'class="f-{colour} s-{colour} glass"{_tip("circle", tip)}'
        )

    def line(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        colour: str,
        *,
        width: float = 1,
        dotted: bool = False,
    ) -> None:
        """Draw a straight line."""
        dots = ' stroke-dasharray="1 5" stroke-linecap="round"' if dotted else ""
        self._shapes.append(
            f'<line x1="{_n(start[0])}" y1="{_n(start[1])}" x2="{_n(end[0])}" y2="{_n(end[1])}" '
            f'class="s-{colour}" stroke-width="{_n(width)}"{dots}/>'
        )

    def path(self, points: list[tuple[float, float]], colour: str, *, width: float = 1.5) -> None:
        """Draw a line through points."""
        line = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        self._shapes.append(
            f'<polyline points="{line}" fill="none" class="s-{colour}" stroke-width="{_n(width)}" '
            'stroke-linejoin="round"/>'
        )

    def area(self, points: list[tuple[float, float]], colour: str) -> None:
        """Fill a polygon, thinly."""
        line = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        self._shapes.append(f'<polygon points="{line}" class="f-{colour}" fill-opacity="0.35"/>')

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        colour: str = "ink",
        size: float = 12,
        anchor: str = "start",
        bold: bool = False,
        over: bool = False,
    ) -> None:
        """Write a line; ``anchor`` is start, middle or end; ``over`` other shapes if need be."""
        weight = ' font-weight="600"' if bold else ""
        halo = " halo" if over else ""
        self._shapes.append(
            f'<text x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}" text-anchor="{anchor}"{weight} '
            f'class="f-{colour}{halo}">{escape(words)}</text>'
        )

    def render(self) -> str:
        """Return the file."""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" '
                f'height="{self.height}" viewBox="0 0 {self.width} {self.height}" role="img" '
                f'font-family="{_FONT}">',
                f"<title>{escape(self._title)}</title>",
                f"<style>{_style()}</style>",
                f'<rect width="{self.width}" height="{self.height}" class="f-paper"/>',
                *self._shapes,
                "</svg>\n",
            ]
        )


def text_width(words: str, size: float) -> float:
    """Width of a line, roughly."""
    return LETTER * size * len(words)


def _style() -> str:
    def rules(palette: dict[str, str]) -> str:
        return "".join(
            f".f-{name}{{fill:{colour}}}.s-{name}{{stroke:{colour}}}"
            for name, colour in palette.items()
        )

    def halo(palette: dict[str, str]) -> str:
        return f".halo{{stroke:{palette['paper']}}}"

    dark = f"@media (prefers-color-scheme:dark){{{rules(_DARK)}{halo(_DARK)}}}"
    forms = (
        ".glass{fill-opacity:.28;stroke-width:1.5}"
        ".halo{paint-order:stroke;stroke-width:3px;stroke-linejoin:round}"
    )
    return f"{rules(_LIGHT)}{halo(_LIGHT)}{forms}{dark}"


def _tip(element: str, tip: str) -> str:
    return f"><title>{escape(tip)}</title></{element}>" if tip else "/>"


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
