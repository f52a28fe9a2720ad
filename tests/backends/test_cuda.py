"""The CUDA decoder on a real GPU: accepted, deterministic, its faults rejected, its errors told."""

import numpy as np
import pytest

from harness.backends import open_decoder
from harness.backends.cuda.decoder import PLANTS
from harness.errors import BadInput
from harness.guard import guard
from harness.guard.faults import FAULTS, prove, seeded_prompts
from harness.model import open_model
from harness.model.embedded import path as embedded_path
from harness.numerics import CUDA_NUMERICS
from harness.stages import Capture, Plan
from harness.suite import open_oracle

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def open_cuda(model, numerics=None, capacity=64, plant=None):
    return open_decoder(model, backend="cuda", numerics=numerics, capacity=capacity, plant=plant)


def logits(decoder, ids=IDS, plan=None):
    decoder.reset()
    captures = [None if plan is None else Capture(plan) for _ in ids]
    return np.stack([decoder.step(t, c) for t, c in zip(ids, captures, strict=True)])


def test_every_plant_of_the_backend_is_a_fault_and_the_other_way_round():
    assert {fault.plant for fault in FAULTS if fault.plant} == set(PLANTS)


@pytest.mark.gpu
@pytest.mark.parametrize("numerics", CUDA_NUMERICS)
def test_every_numerics_is_accepted(small_model, numerics):
    decoder = open_cuda(small_model, numerics)
    evidence = guard(decoder, open_oracle(small_model, decoder.numerics, 64), IDS)
    assert evidence.verdict.accepted, evidence.verdict.reasons
    decoder.close()


@pytest.mark.gpu
def test_odd_shapes_are_accepted(odd_shapes):
    for numerics in ("i24", "f32", "f64", "quad", "q8_k"):
        for path in odd_shapes.values():
            model = open_model(path)
            decoder = open_cuda(model, numerics)
            evidence = guard(decoder, open_oracle(model, decoder.numerics, 64), IDS)
            assert evidence.verdict.accepted, (numerics, path, evidence.verdict.reasons)
            decoder.close()


@pytest.mark.gpu
@pytest.mark.parametrize("numerics", ["i24", "f32", "q8_k"])
def test_traced_is_bit_identical_and_so_is_a_rerun(small_model, numerics):
    decoder = open_cuda(small_model, numerics)
    plain = logits(decoder)
    assert logits(decoder, plan=Plan.parse("all")).tobytes() == plain.tobytes()
    logits(decoder, [7] * len(IDS))
    assert logits(decoder).tobytes() == plain.tobytes()
    again = open_cuda(small_model, numerics)
    assert logits(again).tobytes() == plain.tobytes()


@pytest.mark.gpu
def test_the_device_decodes_by_itself_what_the_host_decodes_step_by_step(small_model):
    decoder = open_cuda(small_model)
    tokens = decoder.generate(IDS[:3], 20)
    rows = logits(decoder, [*IDS[:3], *tokens])
    assert [int(row.argmax()) for row in rows[2:-1]] == tokens
    decoder.rewind(0)
    timed = decoder.timed_pass(IDS[:3], 19)
    assert timed.tokens == tokens
    assert timed.logits[19].tobytes() == rows[-2].tobytes()
    assert len(timed.milliseconds) == 19
    assert min(timed.milliseconds) > 0


@pytest.mark.gpu
def test_quad_reproduces_the_cpus_rounding(small_model):
    """Of the CPU's products, ``quad`` gives bit by bit more than any other order of sums."""
    plan = Plan.parse("qkv_matmul")
    model, c = small_model, small_model.config
    inputs = np.random.default_rng(0).standard_normal((c.layers, c.hidden), dtype=np.float32)
    cpu = Capture(plan)
    open_decoder(model, backend="cpu", capacity=1).step(3, cpu, inputs)
    equal = {}
    for numerics in ("quad", "f32", "f64", "kahan", "chunked", "i24"):
        decoder, seen = open_cuda(model, numerics, capacity=1), Capture(plan)
        decoder.step(3, seen, inputs)
        decoder.close()
        same = [cpu["qkv_matmul", n] == seen["qkv_matmul", n] for n in range(c.layers)]
        equal[numerics] = float(np.concatenate(same).mean())
    print("values equal to the CPU's, bit by bit:", equal)
    assert equal["quad"] == max(equal.values())
    assert equal["quad"] > 2 * equal["f32"]


@pytest.mark.gpu
def test_a_long_cache_is_split_and_merged(small_model):
    c = small_model.config
    rng = np.random.default_rng(0)
    shape = (c.layers, 3000, c.kv_heads, c.head_dim)
    cache = tuple(rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    decoder = open_cuda(small_model, capacity=3010)
    oracle = open_oracle(small_model, decoder.numerics, 3010)
    evidence = guard(decoder, oracle, IDS, cache=cache)
    assert evidence.verdict.accepted, evidence.verdict.reasons


@pytest.mark.gpu
@pytest.mark.parametrize("numerics", ["i24", "f32", "q8_k"])
@pytest.mark.parametrize("which", ["small", "embedded"])
def test_faults_in_the_kernels_are_rejected(small_model, which, numerics):
    model = small_model if which == "small" else open_model(embedded_path())
    clean = open_cuda(model, numerics)
    proof = prove(
        model,
        lambda given, plant: open_cuda(given, numerics, 12, plant),
        open_oracle(model, clean.numerics, 12),
        seeded_prompts(model.config.vocab, 4, 12, seed=5),
    )
    assert proof.holds, proof.to_json()
    assert not proof.inapplicable
    assert not proof.invisible


@pytest.mark.gpu
def test_bad_ids_a_full_cache_and_a_model_that_does_not_fit(small_model):
    decoder = open_cuda(small_model, capacity=2)
    for token in (-1, small_model.config.vocab, 10**12):
        with pytest.raises(BadInput, match="vocabulary"):
            decoder.step(token)
    logits(decoder, [1, 2])
    with pytest.raises(BadInput, match="cache is full"):
        decoder.step(1)
    with pytest.raises(BadInput, match="GB are needed"):
        open_cuda(small_model, capacity=1 << 29)
    with pytest.raises(KeyError, match="no fault"):
        open_cuda(small_model, plant="nonsense")
