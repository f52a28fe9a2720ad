"""The pictures: well-formed, within their paper, with every kernel, in light and in dark."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from harness.errors import BadInput
from harness.profile import Profile
from harness.profile.roofline import roofline
from harness.profile.timeline import power_chart, timeline

from .conftest import LAYER, made

SVG = "{http://www.w3.org/2000/svg}"


def parsed(picture):
    return ET.fromstring(picture)  # noqa: S314 - of our own making


def texts(picture):
    return [element.text or "" for element in parsed(picture).iter(f"{SVG}text")]


def within_paper(picture):
    root = parsed(picture)
    width, height = float(root.get("width")), float(root.get("height"))
    for element in root.iter(f"{SVG}rect"):
        x, y = float(element.get("x", 0)), float(element.get("y", 0))
        w, h = (float(element.get(key)) for key in ("width", "height"))
        assert w >= 0
        assert h >= 0
        assert -1 <= x <= x + w <= width + 1
        assert -1 <= y <= y + h <= height + 1
    for element in root.iter(f"{SVG}text"):
        assert 0 <= float(element.get("x")) <= width
        assert 0 <= float(element.get("y")) <= height


def test_the_roofline_names_every_kernel_that_moves_bytes(recorded):
    profile = Profile(recorded)
    picture = roofline(profile)
    within_paper(picture)
    for row in profile.rows:
        named = [text for text in texts(picture) if text.startswith(f"{row.kind.name} ")]
        assert len(named) == (1 if row.bytes else 0)
    assert any("measured read bandwidth" in text for text in texts(picture))


def test_area_is_time(recorded):
    profile = Profile(recorded)
    radii = {}
    for circle in parsed(roofline(profile)).iter(f"{SVG}circle"):
        radii[circle.find(f"{SVG}title").text.split(":")[0]] = float(circle.get("r"))
    moved = [row for row in profile.rows if row.bytes]
    first, second = moved[0], moved[1]
    ratio = (radii[first.kind.name] / radii[second.kind.name]) ** 2
    assert ratio == pytest.approx(first.us / second.us, rel=0.01)


def test_the_timeline_shows_every_launch_and_one_layer_from_near(recorded):
    profile = Profile(recorded)
    picture = timeline(profile, 1)
    within_paper(picture)
    root = parsed(picture)
    tips = [t.text for rect in root.iter(f"{SVG}rect") for t in rect.iter(f"{SVG}title")]
    assert len(tips) == len(profile.nodes) + len(LAYER)
    shown = texts(picture)
    assert "layer 1" in shown
    assert set(LAYER) <= set(shown)
    with pytest.raises(BadInput, match="layer 99"):
        timeline(profile, 99)


def test_light_and_dark_have_the_same_classes(recorded):
    style = parsed(timeline(Profile(recorded))).find(f"{SVG}style").text
    light, dark = style.split("@media (prefers-color-scheme:dark)")
    for name in ("f-paper", "f-ink", "s-rule", "f-c1", "f-c2"):
        assert f".{name}{{" in light
        assert f".{name}{{" in dark


def test_what_is_written_is_escaped():
    names = ["embed", *LAYER, "logits"]
    starts = [[100 * i for i in range(len(names))]]
    ran = {"backend": "cuda", "device": "<b>&", "numerics": "f32", "model": '"</svg>', "commit": ""}
    recording = made(starts, [[s + 50 for s in starts[0]]], names, 1, ran=ran)
    for picture in (roofline(Profile(recording)), timeline(Profile(recording))):
        assert any("<b>&" in text for text in texts(picture))


def test_many_layers_fit():
    names = ["embed", *(LAYER * 94), "logits", "argmax"]
    starts = [[100 * i for i in range(len(names))]]
    recording = made(starts, [[s + 50 for s in starts[0]]], names, 94)
    within_paper(timeline(Profile(recording)))
    within_paper(roofline(Profile(recording)))


def test_power_is_drawn_where_it_was_read(recorded):
    assert power_chart(Profile(recorded)) is None
    power = [[0.05 * i, 300.0 + i % 7, 1980] for i in range(40)]
    told = replace(recorded, energy={"joules_per_token": 0.5, "power": power})
    picture = power_chart(Profile(told))
    within_paper(picture)
    line = parsed(picture).find(f"{SVG}polyline").get("points")
    assert len(line.split()) == 40
