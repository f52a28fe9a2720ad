"""The drawing room: escaping, scales, charts, and a palette that is the same in light and dark."""

import math
import xml.etree.ElementTree as ET

import pytest

from harness.draw import colours
from harness.draw.chart import Box, Chart, Line, Mark, draw, legend, line_keys
from harness.draw.drawing import Drawing
from harness.draw.markup import Markup, join, tag, text
from harness.draw.scales import Scale, few, powers, round_ticks

SVG = "{http://www.w3.org/2000/svg}"
BOX = Box(50, 10, 450, 200)


def drawn(chart):
    drawing = Drawing(460, 230, "t")
    draw(drawing, chart, BOX)
    return ET.fromstring(drawing.render())  # noqa: S314 - our own


def marks(root):
    return [node for node in root.iter() if "mark" in node.get("class", "")]


def words(root):
    return [node.text for node in root.iter(f"{SVG}text")]


def test_markup_escapes_text_and_attributes_and_keeps_markup():
    inner = tag("b", "<&>\"'", title='"><script>')
    assert inner == '<b title="&quot;&gt;&lt;script&gt;">&lt;&amp;&gt;&quot;&#x27;</b>'
    assert tag("p", inner, "<", class_="x", data_of=None) == f'<p class="x">{inner}&lt;</p>'
    assert isinstance(text("a"), Markup)
    assert len(text("x" * 10_000)) < 1000
    assert text("a\nb\tc") == "a\nb\tc"
    assert join("<", None, "b", between="\n") == "&lt;\nb"


@pytest.mark.parametrize("most", [0, 1e-9, 0.03, 0.99, 1, 3.1, 97, 12345, 9e12])
def test_ticks_are_few_and_reach_the_top(most):
    ticks = round_ticks(0, most)
    assert ticks[0] == 0
    assert ticks[-1] >= most * (1 - 1e-9)
    assert 3 <= len(ticks) <= 6


@pytest.mark.parametrize(
    ("low", "high"), [(0.99, 0.9999998), (-3, 5), (102, 103), (1e-7, 9e-7), (-2, -1), (5, 5)]
)
def test_ticks_hold_their_range_between_them(low, high):
    ticks = round_ticks(low, high)
    assert ticks[0] <= low + 1e-9
    assert high <= ticks[-1] + 1e-9
    assert 3 <= len(ticks) <= 7
    assert len({f"{tick:.6g}" for tick in ticks}) == len(ticks)


def test_values_too_near_to_be_written_apart_have_ticks_from_zero():
    assert round_ticks(1 - 1e-12, 1)[0] == 0


def test_powers_are_a_decade_at_least_and_few_begin_with_the_first():
    assert list(powers(3e-5, 0.2)) == [-5, -4, -3, -2, -1, 0]
    assert list(powers(10, 10)) == [1, 2]
    assert list(few(range(48), 8)) == [0, 6, 12, 18, 24, 30, 36, 42]
    assert list(few(range(3), 8)) == [0, 1, 2]
    assert len(few(range(0), 8)) == 0


def test_a_logarithmic_scale_gives_each_decade_the_same_room():
    scale = Scale(1e-4, 1, 200, 0, log=True)
    assert [scale(10.0**-power) for power in range(5)] == pytest.approx([0, 50, 100, 150, 200])
    assert Scale(0, 10, 0, 100)(2.5) == 25


def test_a_chart_leaves_out_what_cannot_be_drawn():
    values = (1.0, math.inf, math.nan, 0.0)
    line = Line("a & b", [Mark(x, value, "") for x, value in enumerate(values)])
    assert len(marks(drawn(Chart([line], [], log=True)))) == 1
    assert len(marks(drawn(Chart([line], [])))) == 2
    assert words(drawn(Chart([Line("none", [])], []))) == ["nothing to draw"]
    nothing = Chart([Line("a", [Mark(0, -1.0, "")])], [], log=True, limit=(1.0, "limit"))
    assert words(drawn(nothing)) == ["nothing to draw"]


def test_a_line_ends_at_a_failure_that_has_its_own_mark():
    values = (1.0, 2.0, None, 3.0, 4.0)
    chart = Chart([Line("a", [Mark(x, value, "") for x, value in enumerate(values)])], [])
    root = drawn(chart)
    assert len(root.findall(f"{SVG}polyline")) == 2
    assert len(marks(root)) == 4
    failed = [node for node in root.iter(f"{SVG}path") if "failed" in node.get("class")]
    assert len(failed) == 1
    only_failures = drawn(Chart([Line("a", [Mark(0, None, "")])], []))
    assert "nothing to draw" not in words(only_failures)


def test_a_line_of_many_points_is_drawn_to_its_end():
    line = Line("a", [Mark(x, 1.0 + x % 7, "") for x in range(500)])
    (path,) = drawn(Chart([line], [])).findall(f"{SVG}polyline")
    assert len(path.get("points").split()) == 500


def test_everything_of_a_chart_lies_within_its_box():
    line = Line("a", [Mark(x, 10.0**-x, "", 10.0**-x / 2, 10.0**-x * 2) for x in range(9)])
    for log in (False, True):
        for mark in marks(drawn(Chart([line], [], log=log, limit=(30.0, "far above")))):
            assert BOX.left < float(mark.get("cx")) < BOX.right
            assert BOX.top <= float(mark.get("cy")) <= BOX.bottom


def test_an_interval_is_drawn_where_both_its_ends_have_a_place():
    for low, whiskers in ((0.5, 1), (0.0, 0), (None, 0)):
        line = Line("a", [Mark(0, 1.0, "", low, 2.0)])
        root = drawn(Chart([line], [], log=True))
        assert sum(node.get("class") == "s-c1" for node in root.iter(f"{SVG}line")) == whiskers


def test_a_legend_names_each_line_beside_a_mark_of_its_own():
    drawing = Drawing(460, 20, "t")
    lines = [Line(name, []) for name in ("one", "two", "three", "four")]
    legend(drawing, 450, 15, line_keys(drawing, lines))
    root = ET.fromstring(drawing.render())  # noqa: S314 - our own
    assert sorted(words(root)) == sorted(line.name for line in lines)
    looks = {(node.tag, node.get("class"), len(node.get("points", ""))) for node in marks(root)}
    assert len(looks) == 4


def test_a_drawing_is_reproducible_and_escaped():
    one, two = (Drawing(10, 10, "a & b") for _ in range(2))
    for drawing in (one, two):
        drawing.rect(1 / 3, 0, 2, 2, "ink", "tip < tip")
    assert one.render() == two.render()
    assert 'x="0.33"' in one.render()
    assert "<title>tip &lt; tip</title>" in one.render()
    assert "<title>a &amp; b</title>" in one.render()
    assert 'aria-label="a &amp; b. &quot;said&quot;"' in one.inline('"said"')


def test_light_and_dark_have_the_same_colours():
    for written in (colours.rules(), colours.variables()):
        light, dark = written.split("@media (prefers-color-scheme:dark)")
        for name in ("paper", "ink", "quiet", "rule", "warn", "c1", "c6"):
            assert f"-{name}" in light
            assert f"-{name}" in dark
    assert colours.series_colour(0) == colours.series_colour(6) == "c1"
