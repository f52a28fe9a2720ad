"""The guard on real decoders: what it accepts, what it must not, and what it reports."""

import json

import numpy as np
import pytest

from harness.backends import open_decoder
from harness.backends.cpu.decoder import CpuDecoder
from harness.errors import BadInput
from harness.guard import guard
from harness.guard.drift import measure_drift
from harness.guard.faults import seeded_prompts
from harness.guard.peer import PeerReference
from harness.guard.replay import CandidateReplay
from harness.numerics import NUMERICS, find_numerics
from harness.reference import Oracle

POSITIONS = 10


@pytest.fixture(scope="module")
def ids(small_model):
    return seeded_prompts(small_model.config.vocab, 1, POSITIONS)[0]


def open_oracle(model, numerics, capacity):
    return Oracle(model, activation=find_numerics(numerics).activation, capacity=capacity)


def activation_drift(candidate, ids):
    model = candidate.model
    rounding, plain = (open_oracle(model, name, len(ids)) for name in ("q8_k", "f32"))
    return measure_drift(candidate, rounding, plain, ids)


def evidence_of(model, ids, numerics="f32", mode="both", plant=None):
    candidate = open_decoder(
        model, backend="cpu", numerics=numerics, capacity=len(ids), plant=plant
    )
    return guard(candidate, open_oracle(model, numerics, len(ids)), ids, mode=mode)


def test_f32_is_at_cosine_one_on_every_layer_and_position(small_model, ids):
    evidence = evidence_of(small_model, ids)
    assert evidence.verdict.accepted
    assert evidence.free.moe_cosine.shape == (small_model.config.layers, POSITIONS)
    assert evidence.free.moe_cosine.min() >= 0.999999
    assert evidence.forced.moe_cosine.min() >= 0.999999
    assert evidence.free.argmax_agree == POSITIONS


def test_q8_k_is_judged_forced_and_its_drift_owed_to_the_activation_format(small_model, ids):
    evidence = evidence_of(small_model, ids, "q8_k")
    assert evidence.reference == "oracle:q8_k"
    assert evidence.judged == ("forced",)
    assert evidence.verdict.accepted
    candidate = open_decoder(small_model, backend="cpu", numerics="q8_k", capacity=POSITIONS)
    drift = activation_drift(candidate, ids)
    assert drift.attribution == "activation format"
    assert min(drift.candidate_cosine) < 0.99999


def test_drift_that_the_format_does_not_explain_is_not_blamed_on_it(small_model, ids):
    plant = "silu_on_wrong_factor"
    candidate = open_decoder(
        small_model, backend="cpu", numerics="q8_k", capacity=POSITIONS, plant=plant
    )
    assert activation_drift(candidate, ids).attribution == "unexplained"


def test_the_drift_of_weights_that_are_not_finite_is_unexplained_and_plain_data(small_model, ids):
    norm = small_model.layer(1, "attn_norm")
    raw = norm.blocks.copy()
    raw.view(np.float32)[0] = np.inf
    broken = small_model.replacing({norm.name: raw})
    candidate = open_decoder(broken, backend="cpu", numerics="q8_k", capacity=POSITIONS)
    drift = activation_drift(candidate, ids)
    assert drift.attribution == "unexplained"
    data = json.loads(json.dumps(drift.to_json(), allow_nan=False))
    assert data["candidate_median_rel_l2"] is None
    assert data["candidate_worst_cosine"] == -1


def test_q8_k_free_running_alone_leaves_nothing_to_judge(small_model, ids):
    with pytest.raises(BadInput, match="judged teacher-forced only"):
        evidence_of(small_model, ids, "q8_k", mode="free")


def test_an_empty_prompt_is_no_evidence(small_model):
    with pytest.raises(BadInput, match="prompt is empty"):
        guard(open_decoder(small_model, backend="cpu", capacity=1), Oracle(small_model), [])


def test_the_candidate_runs_before_the_oracle(small_model, ids):
    order = []

    class Watching(Oracle):
        def run(self, *args, **kwargs):
            order.append("oracle")
            return super().run(*args, **kwargs)

    candidate = open_decoder(small_model, backend="cpu", capacity=POSITIONS)
    step = candidate.step

    def watched(*args, **kwargs):
        order.append("candidate")
        return step(*args, **kwargs)

    candidate.step = watched
    guard(candidate, Watching(small_model), ids, mode="free")
    assert order == ["candidate"] * POSITIONS + ["oracle"]


def test_a_shared_cache_is_decoded_upon(small_model, ids):
    c = small_model.config
    rng = np.random.default_rng(0)
    shape = (c.layers, 40, c.kv_heads, c.head_dim)
    cache = tuple(rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    candidate = open_decoder(small_model, backend="cpu", capacity=40 + POSITIONS)
    evidence = guard(candidate, Oracle(small_model), ids, cache=cache)
    assert evidence.verdict.accepted
    assert evidence.cached_positions == 40
    without = guard(candidate, Oracle(small_model), ids)
    assert not np.array_equal(evidence.candidate_logits, without.candidate_logits)


def near_tie(model, ids, layer, apart):
    """The model with an expert left out at position 0 lifted to within ``apart`` of a place.

    ``apart`` is relative to what the tie bound is made of: below ``tie_epsilon`` it is a tie.
    """
    noted = CandidateReplay(None, NUMERICS["f32"].tolerance, 0)
    Oracle(model, capacity=1).run(ids[:1], replay=noted)
    routing = noted.seen[layer, 0]
    order = np.argsort(-routing.logits, kind="stable")
    last, out = (int(i) for i in order[model.config.top_k - 1 : model.config.top_k + 1])
    reach = np.linalg.norm(routing.x) * np.linalg.norm(routing.weights[last] - routing.weights[out])
    wanted = routing.logits[last] + apart * reach
    router = model.layer(layer, "ffn_gate_inp")
    rows = routing.weights.copy()
    rows[out] += (wanted - routing.logits[out]) * routing.x / (routing.x @ routing.x)
    raw = np.ascontiguousarray(rows.astype(np.float32)).view(np.uint8)
    return model.replacing({router.name: raw}), last, out


@pytest.mark.parametrize(("apart", "tie"), [(3e-6, True), (1e-3, False)])
def test_a_tie_is_replayed_and_listed_and_a_fault_is_not(small_model, apart, tie):
    model = small_model
    ids = seeded_prompts(model.config.vocab, 1, POSITIONS)[0]
    layer = 1
    truth, last, out = near_tie(model, ids, layer, -apart)  # the oracle takes `last`
    given, *_ = near_tie(model, ids, layer, apart)  # the candidate takes `out`
    candidate = open_decoder(given, backend="cpu", capacity=POSITIONS)
    evidence = guard(candidate, Oracle(truth, capacity=POSITIONS), ids, mode="free")
    swap = next(swap for swap in evidence.free.swaps if (swap.layer, swap.position) == (layer, 0))
    assert (swap.only_candidate, swap.only_reference) == ((out,), (last,))
    assert swap.is_tie is tie
    replays = evidence.to_json()["replays"]
    assert [replay[:4] for replay in replays if replay[1] == 0] == (
        [[layer, 0, [out], [last]]] if tie else []
    )
    if tie:  # with the candidate's experts the oracle agrees again, all the way down
        assert evidence.free.moe_cosine[:, 0].min() > 0.999999
    else:
        assert not evidence.verdict.accepted
        assert any("expert set at layer 1" in reason for reason in evidence.verdict.reasons)


def test_a_peer_in_the_oracles_place(small_model, ids):
    candidate = open_decoder(small_model, backend="cpu", numerics="f32", capacity=POSITIONS)
    same = open_decoder(small_model, backend="cpu", numerics="f32", capacity=POSITIONS)
    evidence = guard(candidate, PeerReference(same, POSITIONS), ids)
    assert evidence.reference == "cpu:f32"
    assert evidence.verdict.accepted
    other = open_decoder(small_model, backend="cpu", numerics="q8_k", capacity=POSITIONS)
    evidence = guard(candidate, PeerReference(other, POSITIONS), ids)
    assert not evidence.verdict.accepted


def test_the_json_is_what_others_rely_on(small_model, ids):
    data = json.loads(json.dumps(evidence_of(small_model, ids).to_json(), allow_nan=False))
    assert data["verdict"] == {"accepted": True, "reasons": []}
    assert data["prompt_ids"] == ids
    assert len(data["layers"]) == small_model.config.layers
    assert set(data["layers"][0]) >= {
        "layer",
        "moe_ffn_out_cosine",
        "moe_ffn_out_rel_l2",
        "forced_rel_l2",
        "experts_equal",
        "experts_differ",
        "router_cosine",
    }
    assert data["argmax"] == {"positions": POSITIONS, "agree": POSITIONS, "ties": 0, "faults": 0}


class FreePathBroken(CpuDecoder):
    """Hands garbage on between layers, but not where it is teacher-forced."""

    def _step(self, token, see, forced):
        self.free = forced is None
        return super()._step(token, see, forced)


class GarbageSeen(FreePathBroken):
    def _attention(self, layer, weights, x, see):
        if self.free and layer > 0:
            x[:] = 0.01 * np.roll(x, 1)  # the stage is this very array: it shows what came in
        return super()._attention(layer, weights, x, see)


class GarbageUnseen(FreePathBroken):
    def _attention(self, layer, weights, x, see):
        if self.free and layer > 0:
            x = 0.01 * np.roll(x, 1)
        return super()._attention(layer, weights, x, see)


@pytest.mark.parametrize("broken", [GarbageSeen, GarbageUnseen])
@pytest.mark.parametrize("numerics", ["f32", "q8_k"])
def test_a_free_running_path_that_is_broken_is_rejected_in_every_numerics(
    small_model, ids, numerics, broken
):
    """It is what is timed; of q8_k its drift is not judged, so each layer of it must be."""
    candidate = broken(small_model, NUMERICS[numerics], POSITIONS)
    evidence = guard(candidate, open_oracle(small_model, numerics, POSITIONS), ids)
    assert not evidence.verdict.accepted
    if numerics == "q8_k":
        assert any(
            reason.startswith(("free-running, by layer", "values changed"))
            for reason in evidence.verdict.reasons
        )


@pytest.mark.parametrize("mode", ["forced", "both"])
def test_a_decoder_of_another_token_is_rejected_forced_too(small_model, ids, mode):
    candidate = CpuDecoder(small_model, NUMERICS["q8_k"], POSITIONS)
    step, vocab = candidate.step, small_model.config.vocab
    candidate.step = lambda token, *others: step((token + 1) % vocab, *others)
    oracle = open_oracle(small_model, "q8_k", POSITIONS)
    evidence = guard(candidate, oracle, ids, mode=mode)
    assert any("embedding" in reason for reason in evidence.verdict.reasons)
