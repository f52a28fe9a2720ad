"""docs/ladder.md quotes docs/ladder.json, docs/lab.md and what is measured here; nothing else."""

import json
import re

import pytest
from helpers.asv_house import ROOT

from harness.backends import open_decoder
from harness.guard.faults import seeded_prompts
from harness.lab.ladder import decoder_track, drift, oracle_track
from harness.lab.pictures import ladder_picture
from harness.lab.tables import ladder_lines
from harness.model import open_model
from harness.model.embedded import path as embedded_path
from harness.reference import Oracle

DOCS = ROOT / "docs"
CONCLUSIONS = (DOCS / "ladder.md").read_text().partition("## Conclusions")[2]
BY_CACHE = {"f32": "2.3e-07", "f16": "2.2e-05"}
TOP_1_OF_Q8_K = "98.63"
DATA = json.loads((DOCS / "ladder.json").read_text())


def test_the_table_and_the_picture_are_those_of_the_json():
    page = (DOCS / "ladder.md").read_text()
    assert "\n".join(ladder_lines(DATA)) in page
    assert (DOCS / "ladder.svg").read_text() == ladder_picture(DATA)


def test_it_was_measured_on_a_commit_as_committed():
    assert DATA["ran"]["dirty"] is False
    assert len(DATA["rungs"]) == 11
    assert DATA["model"]["layers"] == 48


def test_every_figure_of_the_conclusions_stands_in_the_table_or_is_tested_below():
    table = "\n".join(ladder_lines(DATA))
    told = [float(figure) for figure in re.findall(r"\d+\.\d+", table)]
    told += [rung["drift"]["f32"]["median_rel_l2"] for rung in DATA["rungs"]]
    below = {"0.99", TOP_1_OF_Q8_K, *BY_CACHE.values()}
    for figure in re.findall(r"\b\d+\.\d+(?:e-\d+)?", CONCLUSIONS):
        digits = len(figure.partition(".")[2])
        near = {f"{value:.{digits}f}" for value in told} | below
        assert figure in near, figure


def test_what_the_page_says_of_float64_stable_top_k_and_the_widest_rungs():
    by_name = {rung["numerics"]: rung["drift"] for rung in DATA["rungs"]}
    f32, f64 = (by_name[name]["f32"] for name in ("f32", "f64"))
    assert f64["median_rel_l2"] >= f32["median_rel_l2"]
    for alone in ("weighted_sum_f64", "softmax_f64"):
        gap = by_name[alone]["f32"]["worst_cosine"] - f64["worst_cosine"]
        assert abs(gap) < (f64["worst_cosine"] - f32["worst_cosine"]) / 2
    assert by_name["stable_top_k"] == by_name["f32"]


@pytest.mark.parametrize("cache", ["f32", "f16"])
def test_a_float16_cache_moves_plain_float32_as_far_as_the_page_says(cache):
    model = open_model(embedded_path())
    ids = seeded_prompts(model.config.vocab, 1, 8)[0]
    decoder = open_decoder(model, backend="cpu", numerics="f32", capacity=8, cache=cache)
    truth = oracle_track(Oracle(model, capacity=8, cache=cache), ids)
    seen = drift(decoder_track(decoder, ids), truth).median_rel_l2
    assert BY_CACHE[cache] in CONCLUSIONS
    assert seen == pytest.approx(float(BY_CACHE[cache]), rel=0.3)  # processors sum in other orders


def test_top_1_of_the_embedded_model_is_as_docs_lab_has_it():
    page = (DOCS / "lab.md").read_text()
    top_1 = dict(re.findall(r"\n\| `cuda:(\w+)` .* \| ([\d.]+) % \|", page))
    assert set(top_1) == {rung["numerics"] for rung in DATA["rungs"]}
    assert top_1.pop("q8_k") == TOP_1_OF_Q8_K
    assert set(top_1.values()) == {"100.00"}


def test_every_float_rung_is_as_far_from_the_cpus_format_as_the_page_says():
    by_name = {rung["numerics"]: rung["drift"] for rung in DATA["rungs"]}
    floats = {name: drifts for name, drifts in by_name.items() if name != "q8_k"}
    for drifts in floats.values():
        seen = drifts["q8_k"]
        assert (seen["experts_swapped"], seen["layers_below_floor"]) == (36, 16)
        assert (drifts["f32"]["experts_swapped"], drifts["f32"]["layers_below_floor"]) == (0, 0)
    seen = by_name["q8_k"]["q8_k"]
    assert (seen["experts_swapped"], seen["layers_below_floor"]) == (23, 9)
    for drifts in by_name.values():
        assert drifts["f32"]["argmax_changed"] == drifts["q8_k"]["argmax_changed"] == 0
    worst = [drifts["q8_k"]["worst_cosine"] for drifts in floats.values()]
    assert (f"{min(worst):.6f}", f"{max(worst):.6f}") == ("0.935200", "0.935232")
