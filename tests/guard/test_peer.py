"""A peer in the oracle's place: a cache like the candidate's, replay, and teeth."""

import numpy as np
import pytest

from harness.backends import open_decoder
from harness.backends.cpu.decoder import CpuDecoder
from harness.decoder import Instructed
from harness.guard import guard
from harness.guard.faults import FAULTS, seeded_prompts
from harness.guard.peer import PeerReference
from harness.numerics import CUDA_NUMERICS, NUMERICS
from harness.stages import Capture, Plan
from harness.suite import open_pair

POSITIONS = 8
HALVES = CUDA_NUMERICS["quad"]  # what a GPU computes with, here in the CPU decoder


@pytest.fixture(scope="module")
def ids(small_model):
    return seeded_prompts(small_model.config.vocab, 1, POSITIONS)[0]


def jittered(model):
    """Every norm's weights one float32 step off: as far as another order of sums would be."""
    rng = np.random.default_rng(0)
    blocks = {}
    for name, tensor in model.tensors.items():
        if "norm" in name:
            values = tensor.values()
            way = np.where(rng.integers(0, 2, values.shape), np.inf, -np.inf).astype(np.float32)
            blocks[name] = np.nextafter(values, way).view(np.uint8).reshape(tensor.blocks.shape)
    return model.replacing(blocks)


def peer_of(model, *, told=True):
    peer = open_decoder(model, backend="cpu", numerics="f32", capacity=POSITIONS, cache="f16")
    return PeerReference(peer if told else Untold(peer), POSITIONS)


class Untold:
    """A decoder that cannot be told: as a GPU's."""

    def __init__(self, decoder):
        self.model, self.numerics, self.backend = decoder.model, decoder.numerics, decoder.backend
        self.reset, self.rewind, self.step = decoder.reset, decoder.rewind, decoder.step


def test_a_cpu_peer_keeps_its_cache_as_the_candidate_does_and_replays_it(small_model, ids):
    candidate = CpuDecoder(jittered(small_model), HALVES, POSITIONS)
    evidence = guard(candidate, peer_of(small_model), ids)
    assert evidence.reference == "cpu:f32:f16 cache"
    assert evidence.judged == ("free", "forced")
    assert evidence.verdict.accepted, evidence.verdict.reasons
    assert evidence.free.cached_values
    assert evidence.free.cached_replayed  # some did fall the other way, and were followed


def test_without_replay_the_same_pair_is_judged_forced(small_model, ids):
    reference = peer_of(small_model, told=False)
    assert not isinstance(reference.decoder, Instructed)
    evidence = guard(CpuDecoder(jittered(small_model), HALVES, POSITIONS), reference, ids)
    assert evidence.judged == ("forced",)
    assert evidence.verdict.accepted, evidence.verdict.reasons


@pytest.mark.parametrize("told", [True, False])
def test_a_peers_tolerance_has_teeth(small_model, ids, told):
    reference = peer_of(small_model, told=told)
    accepted = []
    for fault in FAULTS:
        given = (
            small_model
            if fault.blocks is None
            else small_model.replacing(fault.blocks(small_model))
        )
        evidence = guard(CpuDecoder(given, HALVES, POSITIONS, fault.plant), reference, ids)
        if evidence.verdict.accepted:
            accepted.append(fault.name)
    assert accepted == []


def test_the_tolerance_of_a_peer_is_the_sum_where_the_formats_are_one(small_model):
    reference = peer_of(small_model)
    own, other = HALVES.tolerance, NUMERICS["f32"].tolerance
    both = reference.tolerance(HALVES)
    assert both.free.rel_l2 == own.free.rel_l2 + other.free.rel_l2
    assert both.tie_epsilon == own.tie_epsilon + other.tie_epsilon
    assert reference.tolerance(NUMERICS["q8_k"]) is NUMERICS["q8_k"].tolerance


def test_open_pair_takes_another_numerics_of_the_same_backend(small_model):
    _, reference = open_pair(
        small_model, backend="cpu", numerics="q8_k", device=0, against="cpu:f32", capacity=1
    )
    assert reference.name == "cpu:f32"


def test_a_decoder_that_is_told_takes_those_experts_with_its_own_weights(small_model):
    decoder = open_decoder(small_model, backend="cpu", capacity=1)
    c = small_model.config
    plan = Plan(frozenset({"moe_router", "moe_router_indices", "moe_ffn_out"}))
    plain, seen = Capture(plan), Capture(plan)
    before = decoder.step(3, plain)

    class Told:  # has no word on the cache: a float32 one has nothing to decide
        def experts(self, layer, normed, chosen):
            assert normed.shape == (c.hidden,)
            other = next(e for e in range(c.experts) if e not in chosen)
            return np.array([other, *chosen[:-1]]) if layer == 1 else None

    decoder.reset()
    decoder.decisions = Told()
    decoder.step(3, seen)
    own, told = plain["moe_router_indices", 1], seen["moe_router_indices", 1]
    assert set(told) - set(own)
    assert set(own[:-1]) < set(told)
    weights = seen["moe_router", 1]
    assert weights.sum() == pytest.approx(1)
    assert (np.diff(weights) <= 0).all()
    assert (seen["moe_ffn_out", 0] == plain["moe_ffn_out", 0]).all()
    decoder.decisions = None
    decoder.reset()
    assert decoder.step(3).tobytes() == before.tobytes()
