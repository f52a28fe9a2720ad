"""The ladder: drift of each rung, time only where the guard accepts; one layer; the pictures."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from harness import backends, laboratory
from harness.backends import open_decoder
from harness.guard import guard
from harness.guard.faults import seeded_prompts
from harness.lab.ladder import decoder_track, drift, oracle_track
from harness.lab.layers import layer_errors
from harness.lab.microscope import EDGES, look_at
from harness.lab.pictures import ladder_picture
from harness.lab.tables import ladder_lines
from harness.meter.stopping import StoppingRule
from harness.reference import Oracle

POSITIONS = 6
RULE = StoppingRule(least_seconds=0.0, time_out=0.0)


def parsed(picture):
    return ET.fromstring(picture)  # noqa: S314 - our own


@pytest.fixture(scope="module")
def ids(small_model):
    return seeded_prompts(small_model.config.vocab, 1, POSITIONS)[0]


@pytest.fixture(scope="module")
def climbed(small_model, ids):
    return laboratory.ladder(small_model, ids, backend="cpu", tokens=3, rule=RULE)


def test_each_rung_is_near_the_reference_of_its_own_format_alone(climbed):
    data = json.loads(json.dumps(climbed, allow_nan=False))
    assert data["schema"] == "moe-harness/ladder/1"
    rungs = {rung["numerics"]: rung for rung in data["rungs"]}
    assert set(rungs) == {"f32", "q8_k"}
    for own, other in (("f32", "q8_k"), ("q8_k", "f32")):
        near, far = (rungs[own]["drift"][name]["median_rel_l2"] for name in (own, other))
        assert near < far / 10
    f32 = rungs["f32"]["drift"]["f32"]
    assert f32["worst_cosine"] > 0.999999
    assert (f32["experts_swapped"], f32["argmax_changed"], f32["layers_below_floor"]) == (0, 0, 0)
    assert f32["expert_sets"] == 6 * POSITIONS
    assert rungs["q8_k"]["judged"] == ["forced"]
    for rung in rungs.values():
        assert rung["verdict"]["accepted"]
        assert rung["us_per_token"]["median"] > 0
    assert data["ran"]["backend"] == "cpu"


def test_a_rung_that_the_guard_rejects_has_its_drift_and_no_time(small_model, ids, monkeypatch):
    def planted(*args, **kwargs):
        return open_decoder(*args, **{**kwargs, "plant": "drop_top_expert"})

    monkeypatch.setattr(backends, "open_decoder", planted)
    data = laboratory.ladder(small_model, ids, backend="cpu", tokens=3, rule=RULE)
    for rung in data["rungs"]:
        assert rung["us_per_token"] is None
        assert rung["verdict"]["reasons"]
        assert rung["drift"]["f32"]["worst_cosine"] < 0.99
    assert "rejected" in "\n".join(ladder_lines(data))
    parsed(ladder_picture(data))


def test_the_table_and_the_picture_show_every_rung(climbed):
    lines = ladder_lines(climbed)
    assert sum(line.startswith(("f32 ", "q8_k ")) for line in lines) == 2
    assert "plain kernels" in lines[0]
    labels = [node.text for node in parsed(ladder_picture(climbed)).iter() if node.text]
    assert labels.count("q8_k") == 2


def test_drift_counts_swaps_and_argmaxes_and_nan_is_no_agreement(small_model, ids):
    truth = oracle_track(Oracle(small_model), ids)
    assert drift(truth, truth).swapped == 0
    bad = open_decoder(small_model, backend="cpu", capacity=POSITIONS, plant="last_expert_at_tie")
    seen = drift(decoder_track(bad, ids), truth)
    assert seen.swapped == seen.sets
    nan = open_decoder(small_model, backend="cpu", capacity=POSITIONS, plant="nan")
    seen = drift(decoder_track(nan, ids), truth)
    assert seen.cosines[-1] == -1
    assert seen.argmax_changed >= 1


def test_a_layer_that_is_special_is_told_from_one_that_is_not(small_model, ids):
    norm = small_model.layer(3, "ffn_norm")
    values = norm.values().copy()
    values[7] = 40.0
    special = small_model.replacing({norm.name: values.view(np.uint8).reshape(norm.blocks.shape)})
    view = look_at(Oracle(special), ids, 3)
    assert "peak/rms of ffn_norm" in view.to_json()["special"]
    assert "peak/rms of ffn_norm" not in look_at(Oracle(special), ids, 2).to_json()["special"]
    for tensor in view.tensors:
        assert sum(tensor.counts) == tensor.sampled
        assert len(tensor.counts) == len(EDGES) - 1
    k = small_model.config.top_k
    assert sum(expert.tokens for expert in view.experts) == k * POSITIONS
    assert all(expert.norm > 0 and expert.down_condition >= 1 for expert in view.experts)
    json.dumps(view.to_json(), allow_nan=False)
    assert view.lines()[-1].startswith("layer 3 is special by")


def test_born_and_inherited_are_the_two_passes(small_model, ids):
    raw = small_model.layer(2, "ffn_down_exps")
    blocks = raw.blocks.copy()
    blocks[:, ::7] = 0  # some rows of every expert of layer 2
    given = small_model.replacing({raw.name: blocks})
    candidate = open_decoder(given, backend="cpu", capacity=POSITIONS)
    evidence = guard(candidate, Oracle(small_model), ids)
    errors = layer_errors(evidence, candidate.numerics.tolerance)
    assert [error.layer for error in errors if error.born > 1e-2] == [2]
    assert [error.diverges for error in errors[:3]] == [False, False, True]
    assert all(error.inherited > 1e-3 for error in errors[3:])
    assert errors[2].inherited < 1e-4
