"""Kernel families timed by themselves, on a real GPU."""

import json

import pytest

from harness.backends import open_decoder
from harness.backends.cuda.forward import TOKEN_FAMILIES
from harness.errors import BadInput, Rejected
from harness.family_suite import FamilySession
from harness.meter.stopping import StoppingRule

RULE = StoppingRule(most_deviation=10, least_seconds=0, time_out=1)
PROMPT = [3, 1, 4, 1]
LAYER = ("qkv", "attend", "attention_output", "route", "gate_up", "down")

pytestmark = pytest.mark.gpu


def logits(decoder, ids=PROMPT):
    decoder.reset()
    return [decoder.step(token).tobytes() for token in ids]


def test_all_families_are_timed_in_several_numerics_and_at_a_depth(small_model):
    layers = small_model.config.layers
    with FamilySession(small_model) as session:
        for numerics, depth in (("i24", 0), ("f32", 0), ("kahan", 0), ("q8_k", 0), ("i24", 200)):
            timed = session.measure_families(
                PROMPT, TOKEN_FAMILIES, numerics=numerics, depth=depth, rule=RULE
            )
            assert timed.ran["numerics"] == numerics
            assert timed.ran["backend"] == "cuda"
            routed = {"route"} if numerics == "i24" else set()  # whose logits are announced
            assert timed.families.keys() == {*TOKEN_FAMILIES} - routed
            for name, family in timed.families.items():
                assert family.launches == (layers if name in LAYER else 1), name
                assert min(family.time.samples) > 0, name
                assert family.time.median < 1e4, name
                share = timed.roofline_fraction(name)
                assert (share is None) == (name == "argmax")
                assert share is None or 0 < share < 1.5, name  # a small model stays in the L2
            data = json.loads(json.dumps(timed.to_json(), allow_nan=False))
            assert data["verdict"]["accepted"]
            assert data["evidence"]["cached_positions"] == depth


@pytest.mark.parametrize("numerics", ["i24", "f32", "q8_k"])
def test_the_clock_leaves_the_decoder_as_it_was_and_every_replay_the_same_bits(
    small_model, numerics
):
    # No more positions than the prompt has: a replay that moved on would run past the cache.
    decoder = open_decoder(small_model, backend="cuda", numerics=numerics, capacity=len(PROMPT))
    before = logits(decoder)
    clock = decoder.family_clock(PROMPT[-1])
    assert clock.logits().tobytes() == before[-1]
    for family in [family for family, launches in clock.launches.items() if launches]:
        assert len(clock.milliseconds(family, 1)) == 1
        first = clock.left()
        clock.milliseconds(family, 7)
        assert clock.left() == first, family
        assert clock.logits().tobytes() == before[-1], family
    clock.close()
    assert logits(decoder) == before
    decoder.close()


def test_a_family_alone_does_what_it_does_in_a_token(small_model):
    decoder = open_decoder(small_model, backend="cuda", capacity=16)
    logits(decoder)
    clock = decoder.family_clock(PROMPT[-1])
    seen = {}
    for family in [family for family, launches in clock.launches.items() if launches]:
        clock.logits()
        step = clock.left()
        clock.milliseconds(family, 1)
        seen[family] = clock.left() != step
    # What reads the residual reads the final one, not its layer's. What reads the last layer's
    # heads, its sum of residual and attention, or the last residual, leaves what it left.
    unchanged = {family for family, changed in seen.items() if not changed}
    assert unchanged == {"attend", "gate_up", "down", "logits"}
    clock.close()
    decoder.close()


def test_a_family_that_there_is_not_and_a_clock_before_any_step(small_model):
    decoder = open_decoder(small_model, backend="cuda", capacity=16)
    with pytest.raises(ValueError, match="no step was made"):
        decoder.family_clock(1)
    logits(decoder)
    clock = decoder.family_clock(PROMPT[-1])
    with pytest.raises(KeyError, match="no family 'norm'; there are embed, qkv"):
        clock.milliseconds("norm", 1)
    clock.close()
    decoder.close()


@pytest.mark.parametrize("plant", ["drop_lowest_expert", "cached_output", "nan", "stale_kv"])
def test_a_planted_fault_gives_no_number(small_model, plant):
    with FamilySession(small_model, plant=plant) as session:
        for numerics in ("i24", "f32"):
            with pytest.raises(Rejected) as rejected:
                session.measure_families(PROMPT, ["qkv"], numerics=numerics, rule=RULE)
            assert rejected.value.evidence["layers"]


def test_weights_are_shared_by_numerics_of_one_form_alone(small_model):
    decoder = open_decoder(small_model, backend="cuda", numerics="f32", capacity=16)
    other = open_decoder(small_model, backend="cuda", numerics="i24", capacity=16)
    assert decoder.shares_weights_with(decoder.sibling(8).numerics)
    assert not decoder.shares_weights_with(other.numerics)
    with pytest.raises(ValueError, match="share no weights"):
        decoder.sibling(8, other.numerics)
    with pytest.raises(BadInput, match="numerics 'f8'"):
        open_decoder(small_model, backend="cuda", numerics="f8", capacity=8)
