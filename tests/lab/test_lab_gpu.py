"""The laboratory on a GPU: each numerics' steps are sound, and the CPU's format is named."""

import pytest

from harness import laboratory
from harness.backends import open_decoder
from harness.guard import guard
from harness.guard.faults import seeded_prompts
from harness.guard.run import tolerance_against
from harness.lab.explain import explain
from harness.lab.hypotheses import FALSIFIED
from harness.lab.layers import layer_errors
from harness.lab.text import BENIGN, canonical_argmaxes
from harness.meter.stopping import StoppingRule
from harness.model import open_model
from harness.model.embedded import path as embedded_path
from harness.numerics import CUDA_NUMERICS
from harness.reference import Oracle
from harness.suite import open_pair

pytestmark = pytest.mark.gpu

POSITIONS = 8


@pytest.fixture(scope="module")
def ids(small_model):
    return seeded_prompts(small_model.config.vocab, 1, POSITIONS)[0]


def explained(model, ids, numerics, against):
    candidate, reference = open_pair(
        model,
        backend="cuda",
        numerics=numerics,
        device=0,
        against=against,
        capacity=len(ids),
    )
    try:
        evidence = guard(candidate, reference, ids)
        errors = layer_errors(evidence, tolerance_against(candidate.numerics, reference))
        return explain(candidate, reference, ids, evidence, errors), evidence
    finally:
        candidate.close()
        reference.close()


@pytest.mark.parametrize("numerics", CUDA_NUMERICS)
def test_every_step_of_every_numerics_is_sound(small_model, ids, numerics):
    explanation, evidence = explained(small_model, ids, numerics, "oracle")
    assert evidence.verdict.accepted, evidence.verdict.reasons
    off = [r for r in explanation.case.candidate.residuals if not r.sound]
    assert off == []
    assert all(finding.status == FALSIFIED for finding in explanation.findings)


@pytest.mark.parametrize("numerics", ["i24", "f32"])
def test_a_cpu_of_the_same_format_is_accepted_and_of_another_is_named(small_model, ids, numerics):
    explanation, evidence = explained(small_model, ids, numerics, "cpu:f32")
    assert evidence.verdict.accepted, evidence.verdict.reasons
    assert evidence.reference == "cpu:f32:f16 cache"
    explanation, evidence = explained(small_model, ids, numerics, "cpu:q8_k")
    assert not evidence.verdict.accepted
    assert explanation.causes == ["activation format"], explanation.lines()


def test_two_numerics_of_the_gpu_are_judged_forced(small_model, ids):
    _, evidence = explained(small_model, ids, "i24", "cuda:f64")
    assert evidence.judged == ("forced",)
    assert evidence.verdict.accepted, evidence.verdict.reasons


def test_canonical_prompts_are_benign_in_every_float_numerics():
    model = open_model(embedded_path())
    oracle = Oracle(model, capacity=8)
    for numerics in CUDA_NUMERICS:
        if CUDA_NUMERICS[numerics].oracle_activation == "f32":
            candidate = open_decoder(model, backend="cuda", numerics=numerics, capacity=8)
            assert canonical_argmaxes(candidate, oracle).ruling == BENIGN
            candidate.close()


def test_the_ladder_has_a_time_for_every_rung(small_model, ids):
    rule = StoppingRule(least_seconds=0.0, time_out=0.0)
    data = laboratory.ladder(small_model, ids, backend="cuda", tokens=4, rule=rule)
    assert [rung["numerics"] for rung in data["rungs"]] == list(CUDA_NUMERICS)
    for rung in data["rungs"]:
        assert rung["verdict"]["accepted"], rung["verdict"]
        assert rung["us_per_token"]["median"] > 0
