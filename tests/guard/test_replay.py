"""Replay of what a float16 cache keeps: near the middle of two steps, and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest

from harness.backends.cpu.decoder import CpuDecoder
from harness.guard.faults import seeded_prompts
from harness.guard.replay import CandidateReplay, cached_errors
from harness.guard.run import guard
from harness.model import open_model
from harness.model.embedded import path as embedded_path
from harness.numerics import CUDA_NUMERICS, NUMERICS
from harness.reference import Oracle
from harness.stages import Capture, Plan

TOLERANCE = CUDA_NUMERICS["i24"].tolerance
PLAN = Plan.parse("k_post_rope,qkv_matmul,attn_out,embedding,moe_router_indices")


def kept(own, given):
    """What the oracle keeps of one head's key, where the candidate's is ``given``."""
    capture = Capture(PLAN)
    capture.put("k_post_rope", 0, given.astype(np.float32))
    capture.put("qkv_matmul", 0, np.tile(given, 3).astype(np.float32))
    replay = CandidateReplay([capture], TOLERANCE, 5)
    head = own.reshape(1, 1, -1)
    keys, values = replay.cached(0, np.stack([head, head]), 5)
    assert np.array_equal(keys, values)
    assert replay.cached_values == 2 * own.size
    return keys.reshape(-1), replay.cached_replayed // 2


def test_a_value_at_the_middle_follows_the_candidate_and_one_away_from_it_does_not():
    step = 2.0**-10  # between float16 numbers from 1 to 2
    own = np.array([1 + step / 2 - 1e-7, 1.0, 1.5])
    assert np.float16(own[0]) == 1
    given = own + np.array([2e-7, 0, 0])
    taken, replayed = kept(own, given)
    assert (taken[0], replayed) == (1 + step, 1)
    # The same candidate, but an oracle that is clearly below the middle.
    own = np.array([1 + step / 2 - 3 * TOLERANCE.cache_epsilon, 1.0, 1.5])
    taken, replayed = kept(own, given)
    assert (taken[0], replayed) == (1, 0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0, 1.25, 0.0])
def test_a_wrong_value_is_not_taken(wrong):
    own = np.array([1.0, 2.0, 1.5])
    taken, replayed = kept(own, np.array([wrong, 2.0, 1.5]))
    assert np.array_equal(taken, own)
    assert replayed == 0


def test_without_a_bound_or_without_the_stages_the_oracle_rounds_its_own():
    own = np.ones((2, 1, 1, 4))
    capture = Capture(Plan.parse("moe_router"))
    assert CandidateReplay([capture], TOLERANCE, 0).cached(0, own, 0) is None
    assert CandidateReplay(None, TOLERANCE, 0).cached(0, own, 0) is None
    assert CandidateReplay([capture], CUDA_NUMERICS["q8_k"].tolerance, 0).cached(0, own, 0) is None


def kept_by(decoder, scale, *, seen):
    """Make a CPU decoder scale its values, where the trace sees it or behind its back."""
    kv_width = decoder.model.config.kv_width
    if not seen:
        kept = decoder._kept
        decoder._kept = lambda layer, k, v: kept(layer, k, v * np.float32(scale))
        return decoder
    product, matrices = decoder._product, [layer.qkv for layer in decoder._layers]

    def scaled(matrix, x):
        out = product(matrix, x)
        if any(matrix is qkv for qkv in matrices):
            out[-kv_width:] *= np.float32(scale)
        return out

    decoder._product = scaled
    return decoder


@pytest.mark.parametrize("scale", [1, 1.00005])
@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("mode", ["forced", "both"])
def test_replay_does_not_excuse_values_that_are_off_as_a_whole(mode, seen, scale):
    """Each value is within what is replayed; the head is not within what is tolerated."""
    model = open_model(embedded_path())
    numerics = replace(NUMERICS["f32"], cache="f16", tolerance=TOLERANCE)
    ids = seeded_prompts(model.config.vocab, 1, 12)[0]
    candidate = kept_by(CpuDecoder(model, numerics, 12), scale, seen=seen)
    evidence = guard(candidate, Oracle(model, capacity=12, cache="f16"), ids, mode=mode)
    assert evidence.verdict.accepted is (scale == 1), evidence.verdict.reasons
    if scale == 1:
        assert 0 < evidence.forced.cached_rel_l2["values"].max() < 2e-6
    elif seen:
        assert any("cached values" in reason for reason in evidence.verdict.reasons)


def test_what_is_replayed_is_bounded_by_its_number_too():
    """Noise that each limit of a vector lets pass decides more roundings than rounding would."""
    model = open_model(embedded_path())
    numerics = replace(NUMERICS["f32"], cache="f16", tolerance=TOLERANCE)
    ids = seeded_prompts(model.config.vocab, 1, 12)[0]
    candidate = CpuDecoder(model, numerics, 12)
    rng, product = np.random.default_rng(0), candidate._product
    matrices = [layer.qkv for layer in candidate._layers]

    def noisy(matrix, x):
        out = product(matrix, x)
        if any(matrix is qkv for qkv in matrices):
            values = out[-model.config.kv_width :].reshape(-1, model.config.head_dim)
            noise = rng.standard_normal(values.shape, dtype=np.float32)
            size = np.linalg.norm(values, axis=1, keepdims=True) / np.sqrt(values.shape[1])
            values += np.float32(1.5e-5) * size * noise
        return out

    candidate._product = noisy
    oracle = Oracle(model, capacity=12, cache="f16")
    evidence = guard(candidate, oracle, ids, mode="forced")
    assert 0.01 < evidence.forced.cached_replayed / evidence.forced.cached_values < 0.05
    [reason] = evidence.verdict.reasons
    assert reason.startswith("teacher-forced cached values replayed")


def test_values_that_are_all_zero_on_both_sides_are_equal():
    zero = Capture(PLAN)
    zero.put("k_post_rope", 0, np.zeros(8, np.float32))
    zero.put("qkv_matmul", 0, np.zeros(32, np.float32))
    found = cached_errors([zero], [zero], 0, head_dim=4)
    assert (found["keys"][0], found["values"][0]) == (0, 0)


def test_keys_of_another_length_or_not_finite_are_infinitely_far_and_not_taken():
    good = Capture(PLAN)
    good.put("k_post_rope", 0, np.ones(8, np.float32))
    good.put("qkv_matmul", 0, np.ones(32, np.float32))
    for keys in (np.ones(6, np.float32), np.full(8, np.nan, np.float32)):
        bad = Capture(PLAN)
        bad.put("k_post_rope", 0, keys)
        bad.put("qkv_matmul", 0, np.ones(32, np.float32))
        found = cached_errors([bad], [good], 0, head_dim=4)
        assert (found["keys"][0], found["values"][0]) == (np.inf, 0)
    own = np.ones((2, 1, 2, 4))
    short = Capture(PLAN)
    short.put("k_post_rope", 0, np.ones(6, np.float32))
    short.put("qkv_matmul", 0, np.ones(32, np.float32))
    assert CandidateReplay([short], TOLERANCE, 0).cached(0, own, 0) is None


def test_half_way_rounding_is_what_sets_two_right_caches_apart():
    """Inputs that differ by 1e-6 come out 100 times farther apart, and with replay they do not."""
    model = open_model(embedded_path())
    c = model.config
    ids = seeded_prompts(c.vocab, 1, 24)[0]
    oracle = Oracle(model, capacity=24, cache="f16")
    run = oracle.run(ids, PLAN)
    inputs = np.stack(
        [[seen["embedding", layer] for layer in range(c.layers)] for seen in run.captures]
    )
    noise = np.random.default_rng(0).standard_normal(inputs.shape)
    oracle.reset()
    other = oracle.run(ids, PLAN, inputs * (1 + 1e-6 * noise)).captures
    worst = []
    for replayed in (None, other):
        oracle.reset()
        truth = oracle.run(ids, PLAN, inputs, CandidateReplay(replayed, TOLERANCE, 0)).captures
        worst.append(
            max(
                np.linalg.norm(a["attn_out", layer] - b["attn_out", layer])
                / np.linalg.norm(b["attn_out", layer])
                for a, b in zip(other, truth, strict=True)
                for layer in range(c.layers)
            )
        )
    assert worst[0] > 1e-4
    assert worst[1] < 3e-6
