"""The page: one HTML file that needs nothing else."""

from __future__ import annotations

from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from harness import __version__
from harness.draw import colours
from harness.draw.markup import join, tag
from harness.report import sections

if TYPE_CHECKING:
    from harness.report.model import Report

_SECTIONS = (
    ("figures", "Newest accepted figures", sections.figures),
    ("commits", "Over commits", sections.over_commits),
    ("layers", "Layer by layer", sections.layer_cosines),
    ("roofline", "Roofline of the kernels", sections.roofline),
    ("peers", "Peers beside us", sections.peers),
    ("rejected", "Rejected", sections.rejected),
    ("contract", "Contract", sections.contracts),
)


def render(report: Report) -> str:
    """Return the page's HTML."""
    links = (tag("li", tag("a", title, href=f"#{name}")) for name, title, _section in _SECTIONS)
    shown = (
        tag(
            "section",
            tag("h2", title, id=f"{name}-title"),
            section(report),
            id=name,
            aria_labelledby=f"{name}-title",
        )
        for name, title, section in _SECTIONS
    )
    body = join(
        tag(
            "header",
            tag("h1", "moe-harness report"),
            tag("p", sections.summary(report), class_="lead"),
            tag("nav", tag("ul", *links), aria_label="Sections"),
        ),
        tag("main", sections.unreadable(report), *shown),
        tag(
            "footer",
            "A figure is here only if a guard accepted the very run that was timed, by the "
            "evidence stored beside it. Medians; whiskers are 99 % intervals. ",
            f"Written by moe-harness {__version__} from results/ alone; measures nothing.",
        ),
    )
    room = files("harness.report")
    template = Template((room / "page.html").read_text(encoding="utf-8"))
    own = (room / "page.css").read_text(encoding="utf-8")
    style = join(colours.variables(), "\n", colours.rules(), "\n") + own
    return template.substitute(style=style, body=body)
