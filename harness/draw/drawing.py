"""The paper: shapes and words, as an SVG file or as part of a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.draw.colours import rules, series_colour
from harness.draw.markup import Markup, join, tag

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Point = tuple[float, float]

DOTTED, DASHED = "1 5", "4 3"  # dots and dashes of a line, with what is between them
_FONT = "system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif"
_LETTER = 0.56  # mean width of a letter, in font sizes: enough to see whether a text fits
_MARK = 4.2  # half the width of a mark
_CORNERS: tuple[Sequence[Point], ...] = (  # of the marks that are no disc
    ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    ((0, -1.3), (1.2, 0.9), (-1.2, 0.9)),
    ((0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)),
)


class Drawing:
    """Shapes on paper of a size in pixels.

    ``colour`` is a name of the palette; a ``tip`` shows under the pointer.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self._title = width, height, title
        self._shapes: list[Markup] = []

    @property
    def shapes(self) -> Markup:
        """What was drawn, one shape a line."""
        return join(*self._shapes, between="\n")

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colour: str,
        tip: str = "",
        *,
        corner: float | None = None,
    ) -> None:
        """Draw a filled rectangle; ``corner`` is the radius of its corners."""
        self._add(
            "rect",
            tip,
            x=_near(x),
            y=_near(y),
            width=_near(width),
            height=_near(height),
            rx=corner,
            class_=f"f-{colour}",
        )

    def circle(self, x: float, y: float, radius: float, colour: str, tip: str = "") -> None:
        """Draw a disc, through which others are seen."""
        look = f"f-{colour} s-{colour} glass"
        self._add("circle", tip, cx=_near(x), cy=_near(y), r=_near(radius), class_=look)

    def line(
        self, start: Point, end: Point, colour: str, *, width: float = 1, dashes: str | None = None
    ) -> None:
        """Draw a straight line; ``dashes`` is None, ``DOTTED`` or ``DASHED``."""
        self._add(
            "line",
            x1=_near(start[0]),
            y1=_near(start[1]),
            x2=_near(end[0]),
            y2=_near(end[1]),
            class_=f"s-{colour}",
            stroke_width=width,
            stroke_dasharray=dashes,
            stroke_linecap=dashes and "round",
        )

    def path(self, points: Iterable[Point], colour: str, *, width: float = 1.5) -> None:
        """Draw a line through points."""
        self._add(
            "polyline",
            points=_listed(points),
            fill="none",
            class_=f"s-{colour}",
            stroke_width=width,
            stroke_linejoin="round",
        )

    def area(self, points: Iterable[Point], colour: str) -> None:
        """Fill a polygon, thinly."""
        self._add("polygon", points=_listed(points), class_=f"f-{colour}", fill_opacity=0.35)

    def mark(self, number: int, x: float, y: float, tip: str = "") -> None:
        """Mark a value of series ``number``, in its own shape as well as in its own colour."""
        look = f"f-{series_colour(number)} mark"
        shape = number % (1 + len(_CORNERS))
        if shape == 0:
            self._add("circle", tip, cx=_near(x), cy=_near(y), r=_MARK, class_=look)
            return
        corners = ((x + dx * _MARK, y + dy * _MARK) for dx, dy in _CORNERS[shape - 1])
        self._add("polygon", tip, points=_listed(corners), class_=look)

    def cross(self, x: float, y: float, tip: str = "") -> None:
        """Mark what failed."""
        ways = " ".join(f"M{_near(x - 4):g} {_near(y + rise):g}l8 {-2 * rise}" for rise in (-4, 4))
        self._add("path", tip, d=ways, fill="none", class_="s-warn failed", stroke_width=2)

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
        turned: float = 0,
    ) -> None:
        """Write a line.

        ``anchor`` is start, middle or end; ``over`` other shapes if need be; ``turned`` about its
        anchor by degrees, clockwise.
        """
        x, y = _near(x), _near(y)
        self._add(
            "text",
            "",
            words,
            x=x,
            y=y,
            font_size=size,
            text_anchor=anchor,
            font_weight=600 if bold else None,
            transform=f"rotate({turned:g} {x:g} {y:g})" if turned else None,
            class_=f"f-{colour} halo" if over else f"f-{colour}",
        )

    def render(self) -> str:
        """Return the SVG file: on paper of its own, light or dark as the reader's screen is."""
        return (
            tag(
                "svg",
                "\n",
                join(
                    tag("title", self._title),
                    tag("style", rules()),
                    tag("rect", width=self.width, height=self.height, class_="f-paper"),
                    *self._shapes,
                    between="\n",
                ),
                "\n",
                xmlns="http://www.w3.org/2000/svg",
                width=self.width,
                height=self.height,
                viewBox=f"0 0 {self.width:g} {self.height:g}",
                role="img",
                font_family=_FONT,
            )
            + "\n"
        )

    def inline(self, said: str) -> Markup:
        """Return it for a page that has ``colours.rules``; ``said`` is for those who cannot see."""
        return tag(
            "svg",
            self.shapes,
            viewBox=f"0 0 {self.width:g} {self.height:g}",
            role="img",
            aria_label=f"{self._title}. {said}",
            class_="chart",
        )

    def _add(self, name: str, tip: str = "", *words: str, **attributes: str | float | None) -> None:
        told = tag("title", tip) if tip else None
        self._shapes.append(tag(name, told, *words, **attributes))


def text_width(words: str, size: float) -> float:
    """Width of a line, roughly."""
    return _LETTER * size * len(words)


def _listed(points: Iterable[Point]) -> Markup:
    """Markup, as there may be more of them than a text has letters at the most."""
    return Markup(" ".join(f"{_near(x):g},{_near(y):g}" for x, y in points))


def _near(value: float) -> float:
    """Hundredths of a pixel, lest files grow."""
    return round(value, 2)
