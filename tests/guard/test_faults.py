"""Each tolerance rejects the faults that it ships with, on every shape it is proved for."""

import json

import pytest

from harness.backends import PLANTS, open_decoder
from harness.guard.faults import FAULTS, Proof, prove, seeded_prompts
from harness.model import open_model
from harness.model.embedded import path as embedded_path
from harness.numerics import NUMERICS
from harness.reference import Oracle

POSITIONS = 12
CLEAN_RUNS = 4  # the `faults` command makes 20


def proof_on(model, numerics):
    return prove(
        model,
        lambda given, plant: open_decoder(
            given, backend="cpu", numerics=numerics, capacity=POSITIONS, plant=plant
        ),
        Oracle(model, activation=NUMERICS[numerics].activation, capacity=POSITIONS),
        seeded_prompts(model.config.vocab, CLEAN_RUNS, POSITIONS, seed=5),
    )


@pytest.mark.parametrize("numerics", NUMERICS)
def test_small_model(small_model, numerics):
    proof = proof_on(small_model, numerics)
    assert proof.holds, proof.to_json()
    assert not proof.inapplicable
    assert not proof.invisible


@pytest.mark.parametrize("numerics", NUMERICS)
def test_embedded_model(numerics):
    proof = proof_on(open_model(embedded_path()), numerics)
    assert proof.holds, proof.to_json()
    assert not proof.inapplicable
    assert not proof.invisible


@pytest.mark.parametrize("numerics", NUMERICS)
def test_odd_shapes(odd_shapes, numerics):
    for path in odd_shapes.values():
        proof = proof_on(open_model(path), numerics)
        assert proof.holds, proof.to_json()
        assert proof.inapplicable
        assert not proof.invisible


def test_every_plant_of_the_backend_is_a_fault_and_the_other_way_round():
    assert {fault.plant for fault in FAULTS if fault.plant} == set(PLANTS)


def test_a_proof_of_nothing_does_not_hold():
    assert not Proof().holds
    assert not Proof(planted=[("a", 9.0, "")]).holds
    assert not Proof(clean=[0.1]).holds
    assert not Proof(planted=[("a", 0.5, "")], clean=[0.1], survivors=["a"]).holds
    assert not Proof(planted=[("a", 9.0, "")], clean=[2.0], false_rejections=["x"]).holds
    assert Proof(planted=[("a", 9.0, "")], clean=[0.1]).holds


def test_an_invisible_fault_is_not_a_rejected_one_and_infinities_are_plain_data():
    worst = float("inf")
    proof = Proof(planted=[("a", 0.5, ""), ("b", worst, "")], clean=[0.1, worst])
    proof.invisible.append(("a", 0.5, worst))
    data = json.loads(json.dumps(proof.to_json(), allow_nan=False))
    assert (data["planted"], data["rejected"]) == (2, 1)
    assert data["invisible"] == [["a", 0.5, None]]
    assert data["worst_clean_distance"] is None
