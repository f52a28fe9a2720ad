"""The CPU decoder against itself: tracing, reruns, threads, caches; and its products."""

import numpy as np
import pytest

from harness.backends.cpu.decoder import CpuDecoder
from harness.backends.cpu.kernels import FAMILIES, ProductKernel
from harness.errors import BadInput, Rejected
from harness.guard.product import Product, guard_products
from harness.meter.stopping import StoppingRule
from harness.model import FORMATS, Tensor
from harness.numerics import NUMERICS
from harness.reference.product import product
from harness.stages import Capture, Plan
from harness.suite import guarded_kernel

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def logits(decoder, ids=IDS, plan=None):
    decoder.reset()
    captures = [None if plan is None else Capture(plan) for _ in ids]
    return np.stack([decoder.step(t, c) for t, c in zip(ids, captures, strict=True)])


@pytest.fixture(params=NUMERICS)
def decoder(request, small_model):
    return CpuDecoder(small_model, NUMERICS[request.param], len(IDS))


def test_traced_is_bit_identical_and_so_is_a_rerun(decoder):
    plain = logits(decoder)
    assert logits(decoder, plan=Plan.parse("all")).tobytes() == plain.tobytes()
    logits(decoder, [7] * len(IDS))
    assert logits(decoder).tobytes() == plain.tobytes()


def test_threads_change_nothing(small_model, decoder):
    one = CpuDecoder(small_model, decoder.numerics, len(IDS), threads=1)
    assert logits(one).tobytes() == logits(decoder).tobytes()


def test_generate_is_greedy(decoder):
    tokens = decoder.generate(IDS[:3], 4)
    rows = logits(decoder, [*IDS[:3], *tokens])
    assert [int(row.argmax()) for row in rows[2:-1]] == tokens


def test_rewinding_keeps_what_lies_before(decoder):
    rows = logits(decoder)
    decoder.rewind(3)
    again = np.stack([decoder.step(token) for token in IDS[3:]])
    assert again.tobytes() == rows[3:].tobytes()
    for position in (-1, len(IDS) + 1):
        with pytest.raises(ValueError, match="not behind"):
            decoder.rewind(position)


def test_a_sibling_computes_the_same(decoder):
    rows = logits(decoder)
    assert logits(decoder.sibling(len(IDS) + 5)).tobytes() == rows.tobytes()


def test_a_cache_that_does_not_fit_is_refused(decoder):
    c = decoder.model.config
    shape = (c.layers, 4, c.kv_heads, c.head_dim)
    good = np.zeros(shape, dtype=np.float32)
    decoder.fill_cache(good, good)
    assert decoder.position == 4
    with pytest.raises(ValueError, match="cache of"):
        decoder.fill_cache(good, good[:, :, :, 1:])
    long = np.zeros((c.layers, len(IDS) + 1, c.kv_heads, c.head_dim), dtype=np.float32)
    with pytest.raises(BadInput, match="do not fit"):
        decoder.fill_cache(long, long)


def test_bad_ids_and_a_full_cache(decoder):
    for token in (-1, decoder.model.config.vocab, 10**12):
        with pytest.raises(BadInput, match="vocabulary"):
            decoder.step(token)
    logits(decoder)
    with pytest.raises(BadInput):
        decoder.step(1)


@pytest.mark.parametrize("numerics", NUMERICS)
@pytest.mark.parametrize("family", FAMILIES)
def test_products_are_accepted(small_model, family, numerics):
    rule = StoppingRule(least_seconds=0.0, time_out=0.0)
    measured = guarded_kernel(small_model, family, numerics, rule)
    assert measured.time.evidence.verdict.accepted
    assert measured.time.median > 0


@pytest.mark.parametrize("numerics", NUMERICS)
@pytest.mark.parametrize("family", FAMILIES)
def test_faults_in_products_are_rejected(small_model, family, numerics):
    kernel = ProductKernel(small_model, family, NUMERICS[numerics])
    for copy in range(kernel.distinct):
        kernel.launch(copy)
    good = [result for copy in range(kernel.distinct) for result in kernel.results(copy)]
    products = [Product(*o) for copy in range(kernel.distinct) for o in kernel.operands[copy]]

    def verdict(results):
        return guard_products(family, kernel.numerics, results, products, {}).verdict

    assert verdict(good).accepted
    row = int(np.abs(good[0]).argsort()[len(good[0]) // 2])  # a row of usual size
    for fault in (
        lambda r: r.__setitem__(row, 0),
        lambda r: r.__setitem__(row, np.nan),
        lambda r: r.__setitem__(slice(None), np.roll(r, 1)),
        lambda r: r.__imul__(1.05),
        lambda r: r.__setitem__(slice(None), 0),
    ):
        bad = [good[0].copy(), *good[1:]]
        fault(bad[0])
        assert not verdict(bad).accepted


def test_a_launch_that_computes_something_else_later_is_rejected(small_model, monkeypatch):
    launch, calls = ProductKernel.launch, []

    def drifting(self, copy):
        launch(self, copy)
        calls.append(copy)
        if len(calls) > self.copies:
            self._out[copy, 0] += 1

    monkeypatch.setattr(ProductKernel, "launch", drifting)
    with pytest.raises(Rejected, match="something else"):
        guarded_kernel(small_model, "attention_output", "f32", StoppingRule(0.0, 0.0, 1, 0.0))


def test_no_products_is_no_comparison():
    with pytest.raises(ValueError, match="nothing to compare"):
        guard_products("x", NUMERICS["f32"], [], [], {})


def test_q8_k_reference_rounds_as_the_format_does():
    blocks = np.eye(256, dtype=np.float32).view(np.uint8)
    x = np.linspace(-3, 3, 256, dtype=np.float32)
    assert np.allclose(product(blocks, FORMATS["F32"], x, "q8_k"), x)  # F32 meets no rounding
    assert Tensor("t", FORMATS["F32"], (256, 256), blocks).nbytes == blocks.size
