"""Replay of what a float16 cache keeps: near the middle of two steps, and nowhere else."""

import numpy as np
import pytest

from harness.guard.faults import seeded_prompts
from harness.guard.replay import CandidateReplay
from harness.model import open_model
from harness.model.embedded import path as embedded_path
from harness.numerics import CUDA_NUMERICS
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
