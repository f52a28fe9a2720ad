"""A planted cause of each kind is named, and nothing else is; what is none of the seven is left."""

from dataclasses import replace

import numpy as np
import pytest

from harness.backends import open_decoder
from harness.backends.cpu.decoder import CpuDecoder
from harness.backends.cpu.faults import CAUSES
from harness.guard import guard
from harness.guard.faults import seeded_prompts
from harness.guard.peer import PeerReference
from harness.guard.run import tolerance_against
from harness.lab.explain import explain
from harness.lab.hypotheses import CONFIRMED, FALSIFIED, HYPOTHESES
from harness.lab.layers import first_divergent, layer_errors
from harness.model import FORMATS, Tensor
from harness.model.quantise import quantise
from harness.numerics import NUMERICS
from harness.reference import Oracle

POSITIONS = 5


@pytest.fixture(scope="module")
def ids(small_model):
    return seeded_prompts(small_model.config.vocab, 1, POSITIONS)[0]


def explained(candidate, reference, ids):
    evidence = guard(candidate, reference, ids)
    errors = layer_errors(evidence, tolerance_against(candidate.numerics, reference))
    return explain(candidate, reference, ids, evidence, errors), evidence, errors


def with_type(model, name, fmt, blocks):
    """The model with one tensor in another quant type."""
    tensor = Tensor(name, FORMATS[fmt], model[name].shape, np.ascontiguousarray(blocks))
    return replace(model, tensors={**model.tensors, name: tensor})


def requantised(model):
    """``ffn_down_exps`` of layer 2 in Q4_K, where the file has Q6_K."""
    tensor = model.layer(2, "ffn_down_exps")
    rows = tensor.values().reshape(-1, tensor.shape[-1])
    blocks = quantise(rows, "Q4_K").reshape(*tensor.shape[:-1], -1)
    return with_type(model, tensor.name, "Q4_K", blocks)


def misread(model):
    """The bytes of ``attn_v`` of layer 2, which are Q6_K, read as Q4_K."""
    tensor = model.layer(2, "attn_v")
    blocks = tensor.blocks[:, : FORMATS["Q4_K"].row_bytes(tensor.shape[-1])]
    return with_type(model, tensor.name, "Q4_K", blocks)


PLANTED = {  # cause: (how the candidate is made, the layer where it is born)
    "softmax_f16": ("softmax precision", 0),
    "weighted_sum_f16": ("weighted-sum precision", 0),
    "swiglu_f16": ("SwiGLU precision", 0),
    "reduction_f16": ("reduction order", 0),
    "last_expert_at_tie": ("routing diverges", 0),
    "wrong_expert": ("routing diverges", 0),
    "requantised": ("quant types differ", 2),
    "misread": ("quant types differ", 2),
    "q8_k": ("activation format", 0),
}


def planted(model, cause):
    if cause in ("requantised", "misread"):
        model = {"requantised": requantised, "misread": misread}[cause](model)
        return open_decoder(model, backend="cpu", capacity=POSITIONS)
    if cause == "q8_k":
        return open_decoder(model, backend="cpu", numerics="q8_k", capacity=POSITIONS)
    return open_decoder(model, backend="cpu", capacity=POSITIONS, plant=cause)


@pytest.mark.parametrize("cause", PLANTED)
def test_a_planted_cause_is_named_and_no_other(small_model, ids, cause):
    name, born = PLANTED[cause]
    candidate = planted(small_model, cause)
    explanation, evidence, errors = explained(candidate, Oracle(small_model), ids)
    assert not evidence.verdict.accepted
    assert explanation.causes == [name], explanation.lines()
    assert first_divergent(errors).layer == born
    assert not explanation.left or cause == "wrong_expert"
    assert name in explanation.conclusion
    for finding in explanation.findings:
        if finding.status == CONFIRMED and name != "quant types differ" and cause != "wrong_expert":
            assert finding.measured > finding.threshold > 0
        elif finding.status == FALSIFIED and finding.name != "routing diverges":
            assert finding.measured <= finding.threshold or finding.name == "reduction order"


def test_every_cause_of_the_backend_is_in_the_table():
    assert set(CAUSES) <= set(PLANTED)
    assert {name for name, _ in PLANTED.values()} == set(HYPOTHESES)


@pytest.mark.parametrize(
    ("plant", "step"),
    [("stale_kv", "attention"), ("no_qk_norm", "q_post_rope"), ("uniform_weights", "moe_router")],
)
def test_what_is_none_of_the_seven_is_named_by_its_step(small_model, ids, plant, step):
    explanation, *_ = explained(planted(small_model, plant), Oracle(small_model), ids)
    assert explanation.causes == []
    assert any(f" {step} " in line for line in explanation.left)
    assert "none of the seven" in explanation.conclusion


def test_a_peer_in_another_activation_format_is_told_from_one_in_the_same(small_model, ids):
    candidate = open_decoder(small_model, backend="cpu", capacity=POSITIONS)
    peer = open_decoder(small_model, backend="cpu", numerics="q8_k", capacity=POSITIONS)
    explanation, *_ = explained(candidate, PeerReference(peer, POSITIONS), ids)
    assert explanation.causes == ["activation format"]
    assert explanation.case.reference.name == "cpu:q8_k"


def test_a_sound_decoder_of_a_float16_cache_has_no_step_off(small_model, ids):
    numerics = replace(NUMERICS["f32"], cache="f16")
    candidate = CpuDecoder(small_model, numerics, POSITIONS)
    explanation, *_ = explained(candidate, Oracle(small_model, cache="f16"), ids)
    assert explanation.left == ()
    assert all(finding.status == FALSIFIED for finding in explanation.findings)
    off = [r.step for r in explanation.case.candidate.residuals if not r.sound]
    assert off == []
    # A cache that is not what the decoder says is seen at the attention that reads it.
    explanation, *_ = explained(
        CpuDecoder(small_model, NUMERICS["f32"], POSITIONS), Oracle(small_model), ids
    )
    steps = explanation.case.candidate.residuals
    assert max(r.error for r in steps if r.step == "attention") < 1e-6
