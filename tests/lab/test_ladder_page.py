"""docs/ladder.md quotes docs/ladder.json, and nothing else."""

import json
import re

from helpers.asv_house import ROOT

from harness.lab.pictures import ladder_picture
from harness.lab.tables import ladder_lines

DOCS = ROOT / "docs"
DATA = json.loads((DOCS / "ladder.json").read_text())


def test_the_table_and_the_picture_are_those_of_the_json():
    page = (DOCS / "ladder.md").read_text()
    assert "\n".join(ladder_lines(DATA)) in page
    assert (DOCS / "ladder.svg").read_text() == ladder_picture(DATA)


def test_it_was_measured_on_a_commit_as_committed():
    assert DATA["ran"]["dirty"] is False
    assert len(DATA["rungs"]) == 11
    assert DATA["model"]["layers"] == 48


def test_every_figure_of_the_conclusions_stands_in_the_table():
    conclusions = (DOCS / "ladder.md").read_text().partition("## Conclusions")[2]
    table = "\n".join(ladder_lines(DATA))
    told = [float(figure) for figure in re.findall(r"\d+\.\d+", table)]
    for figure in re.findall(r"\b\d+\.\d+", conclusions):
        digits = len(figure.partition(".")[2])
        near = {f"{value:.{digits}f}" for value in told} | {"0.99"}
        assert figure in near, figure


def test_every_float_rung_is_as_far_from_the_cpus_format_as_the_page_says():
    by_name = {rung["numerics"]: rung["drift"] for rung in DATA["rungs"]}
    floats = {name: drift for name, drift in by_name.items() if name != "q8_k"}
    for drift in floats.values():
        seen = drift["q8_k"]
        assert (seen["experts_swapped"], seen["layers_below_floor"]) == (36, 16)
        assert (drift["f32"]["experts_swapped"], drift["f32"]["layers_below_floor"]) == (0, 0)
    seen = by_name["q8_k"]["q8_k"]
    assert (seen["experts_swapped"], seen["layers_below_floor"]) == (23, 9)
    for drift in by_name.values():
        assert drift["f32"]["argmax_changed"] == drift["q8_k"]["argmax_changed"] == 0
    worst = [drift["q8_k"]["worst_cosine"] for drift in floats.values()]
    assert (f"{min(worst):.6f}", f"{max(worst):.6f}") == ("0.935200", "0.935232")
