"""Logits ahead of what they follow from: folded matrices, and what a block announces."""

from types import SimpleNamespace

import gguf
import numpy as np
import pytest

from harness.model import FORMATS as GGUF_FORMATS
from kernels.experts import Choosing, Experts
from kernels.family import POINTER, Family, Heads, Variant, struct
from kernels.fold import Fold
from kernels.launch import ANNOUNCER_BYTES, Device
from kernels.matvec import Announcing, Matvec, row_stream
from kernels.pack import Pack
from kernels.weights import matrix, pack

I24 = Variant(activation="i24")
ABSENT = 0xFFFFFFFF


def quantised(fmt, rows, columns, rng):
    """Blocks of random values, and those values as GGUF has them."""
    values = (rng.standard_normal((rows, columns)) * 0.05).astype(np.float32)
    if fmt in ("F32", "F16", "BF16", "Q8_0"):
        blocks = gguf.quants.quantize(values, GGUF_FORMATS[fmt].gguf_type)
        return blocks, gguf.quants.dequantize(blocks, GGUF_FORMATS[fmt].gguf_type)
    size = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210}[fmt]
    blocks = rng.integers(0, 256, (rows, columns // 256, size), dtype=np.uint8)
    at = (208,) if fmt == "Q6_K" else (0, 2)
    for where in at:
        scales = (rng.random(blocks.shape[:2]) * 1e-3).astype(np.float16)
        blocks[..., where : where + 2] = scales[..., None].view(np.uint8)
    flat = gguf.quants.dequantize(blocks.reshape(-1, size), GGUF_FORMATS[fmt].gguf_type)
    return blocks, flat.reshape(rows, columns)


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("fmt", ["F32", "F16", "BF16", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
@pytest.mark.parametrize(("experts", "hidden", "width"), [(8, 32, 256), (13, 48, 512)])
def test_a_folded_matrix_is_the_product_rounded_once(place, fmt, experts, hidden, width):
    rng = np.random.default_rng(experts)
    blocks, o = quantised(fmt, hidden, width, rng)
    router, norm = floats(rng, experts, hidden), floats(rng, hidden)
    folded = np.full((experts + 1, width), 7, np.float32)  # a row more than there are
    packed = pack(blocks.view(np.uint8), fmt)
    address = place.put(folded)
    Fold(place.program(I24, Heads())).fold(
        matrix(place.put(router), "F32", router.shape, router.nbytes),
        matrix(place.put(packed), fmt, o.shape, packed.nbytes),
        norm=place.put(norm),
        folded=address,
        stream=place.stream,
    )
    place.get(address, folded)
    expected = (router.astype(np.float64) * norm) @ o.astype(np.float64)
    np.testing.assert_allclose(folded[:-1], expected, rtol=1.2e-7, atol=1e-12)
    assert (folded[-1] == 7).all()


@pytest.fixture
def announced(place):
    """Run ``attention_output`` over tiles, of 12 blocks at most; what it leaves, and the truth."""

    def run(experts, hidden, width, *, wrong=None):
        rng = np.random.default_rng(hidden)
        blocks, o = quantised("Q4_K", hidden, width, rng)
        program = place.program(I24, Heads())
        tiles = np.zeros(blocks.size, np.uint8)
        to = matrix(place.put(tiles), "Q4_K_TILED", o.shape, blocks.size)
        Pack(program).pack(place.put(blocks), hidden, to, first_row=0, stream=place.stream)
        router, norm = floats(rng, experts, hidden), floats(rng, hidden)
        residual, mixed = floats(rng, hidden), floats(rng, width)
        folded = ((router.astype(np.float64) * norm) @ o.astype(np.float64)).astype(np.float32)
        left = SimpleNamespace(
            logits=np.full(experts + 3, ABSENT, np.uint32).view(np.float32),
            total=np.zeros(hidden, np.float32),
        )
        given = {"residual": residual.copy(), "mixed": mixed.copy(), "folded": folded}
        if wrong:
            given[wrong].reshape(-1)[-1] += 1
        at = {name: place.put(array) for name, array in {**given, **vars(left)}.items()}
        Matvec(program).attention_output(
            to,
            mixed=at["mixed"],
            residual=at["residual"],
            total=at["total"],
            stream=place.stream,
            announcing=Announcing(
                place.put(router), place.put(norm), at["folded"], at["logits"], experts, hidden
            ),
        )
        for name, array in vars(left).items():
            place.get(at[name], array)
        place.get(at["residual"], given["residual"])
        assert (given["residual"] == residual).all() or wrong == "residual"
        behind = residual.astype(np.float64) + o.astype(np.float64) @ mixed.astype(np.float64)
        truth = (router.astype(np.float64) * norm) @ behind
        return left, behind, truth

    return run


# Fewer experts than blocks and more; inputs and residuals of fewer groups than warps and of more.
SHAPES = [(5, 64, 256), (12, 192, 4096), (40, 256, 512), (130, 64, 4352), (14, 4352, 256)]


@pytest.mark.parametrize(("experts", "hidden", "width"), SHAPES)
def test_every_expert_s_logit_is_announced_beside_the_sum(announced, experts, hidden, width):
    left, behind, truth = announced(experts, hidden, width)
    scale = np.abs(truth).max()
    np.testing.assert_allclose(left.logits[:experts], truth, rtol=0, atol=2e-6 * scale)
    assert (left.logits[experts:].view(np.uint32) == ABSENT).all()
    np.testing.assert_allclose(left.total, behind, rtol=0, atol=2e-6 * np.abs(behind).max())


@pytest.mark.parametrize("wrong", ["residual", "mixed", "folded"])
def test_a_logit_depends_on_all_that_it_is_made_of(announced, wrong):
    left, _, truth = announced(12, 192, 4096, wrong=wrong)
    off = np.abs(left.logits[:12] - truth) / np.abs(truth).max()
    assert off.max() > 1e-3


def test_logits_are_announced_over_tiles_alone(place):
    given = np.zeros((16, 256), np.float32)
    with pytest.raises(ValueError, match="only over tiles"):
        Matvec(place.program(I24, Heads())).attention_output(
            matrix(place.put(given), "F32", given.shape, given.nbytes),
            mixed=1,
            residual=1,
            total=1,
            stream=place.stream,
            announcing=Announcing(1, 1, 1, 1, 1, 16),
        )


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("forgets", [False, True])
def test_qkv_forgets_the_last_layer_s_logits(place, tiled, forgets):
    rng = np.random.default_rng(0)
    program = place.program(I24, Heads())
    blocks, _ = quantised("Q4_K", 32, 256, rng)
    memory = np.zeros(blocks.size, np.uint8) if tiled else pack(blocks, "Q4_K")
    m = matrix(place.put(memory), "Q4_K_TILED" if tiled else "Q4_K", (32, 256), blocks.size)
    if tiled:
        Pack(program).pack(place.put(blocks), 32, m, first_row=0, stream=place.stream)
    logits = np.arange(13, dtype=np.float32)
    given, out = floats(rng, 256), np.zeros(96, np.float32)
    address = place.put(logits)
    Matvec(program).qkv(
        m,
        m,
        m,
        x=place.put(given),
        norm=place.put(given),
        eps=1e-6,
        out=place.put(out),
        stream=place.stream,
        announced=address if forgets else 0,
        experts=10,
    )
    place.get(address, logits)
    kept = 10 if forgets else 0
    assert (logits[:kept].view(np.uint32) == ABSENT).all()
    np.testing.assert_array_equal(logits[kept:], np.arange(kept, 13))


PEEKED = struct(("logits", POINTER), ("four", POINTER), ("absent", POINTER), ("left", np.int32))
PEEKING = """
#include "announce.cuh"
struct PeekArgs { const float* logits; float4* four; int* absent; int left; };
extern "C" __global__ void __launch_bounds__(32) peek_once(const PeekArgs a) {
  if (threadIdx.x != 0) return;
  *a.four = peek(a.logits, a.left);
  *a.absent = some_absent(*a.four);
}
"""


@pytest.mark.parametrize("left", [1, 2, 3, 4, 9])
def test_a_logit_that_is_absent_is_seen_wherever_it_is(place, left, tmp_path):
    family = Family("peeking", {"peek_once": PEEKED}, folder=tmp_path)
    family.path.write_text(PEEKING)
    kernel = place.program(I24, Heads()).kernel(family, "peek_once")
    for missing in (None, *range(min(left, 4))):
        logits = np.array([1, np.nan, -np.inf, 4], np.float32)
        if missing is not None:
            logits.view(np.uint32)[missing] = ABSENT
        four, absent = np.full(4, 7, np.float32), np.full(1, -1, np.int32)
        at = {"four": place.put(four), "absent": place.put(absent)}
        kernel.launch(
            {"logits": place.put(logits), **at, "left": left},
            grid=(1,),
            threads=32,
            stream=place.stream,
        )
        place.get(at["four"], four)
        place.get(at["absent"], absent)
        there = min(left, 4)
        assert four.view(np.uint32)[:there].tolist() == logits.view(np.uint32)[:there].tolist()
        assert not four[there:].any()
        assert absent[0] == (missing is not None)


def test_announced_logits_are_chosen_by_over_tiles_alone(place):
    """Over plain rows nobody would know their scale."""
    given = np.zeros((2, 16, 256), np.float32)
    plain = matrix(place.put(given), "F32", given.shape, given.nbytes)
    with pytest.raises(ValueError, match="logits are announced"):
        Experts(place.program(I24, Heads())).gate_up(
            plain,
            plain,
            Choosing(1, 1, 2, 1, announced=True),
            x=1,
            norm=1,
            eps=1e-6,
            gated=1,
            stream=place.stream,
        )


def test_what_announcing_takes_is_planned():
    o = matrix(0, "Q4_K_TILED", (2048, 4096), 1)
    device = Device(132, 227 << 10)
    with_it = row_stream(o, depth=1, besides=ANNOUNCER_BYTES, device=device)
    assert with_it.shared - row_stream(o, depth=1, device=device).shared == 64
