"""Shapes that the kernels can have: what fits a block's shared memory, and what just does not."""

from dataclasses import replace

import pytest

from harness.backends.cuda.gpu import Gpu
from harness.backends.cuda.shape import check_shape, plain_bytes, tiled_bytes
from harness.errors import BadInput
from harness.model.config import Config
from harness.numerics import CUDA_NUMERICS

QWEN3 = Config(
    architecture="qwen3moe",
    layers=48,
    hidden=2048,
    heads=32,
    kv_heads=4,
    head_dim=128,
    experts=128,
    top_k=8,
    expert_width=768,
    vocab=151936,
    rms_eps=1e-6,
    rope_base=1e6,
    context_length=40960,
    tied_output=False,
)
GPUS = {"sm_80": (108, 163 << 10), "sm_89": (128, 99 << 10), "sm_90": (132, 227 << 10)}


def gpu(arch="sm_90", shared_bytes=None):
    multiprocessors, there = GPUS[arch]
    return Gpu(
        ordinal=0,
        name="a GPU",
        uuid="",
        arch=arch,
        multiprocessors=multiprocessors,
        shared_bytes=there if shared_bytes is None else shared_bytes,
        l2_bytes=1 << 20,
        driver=(13, 0),
        compiler=(13, 0),
    )


def refusal(config, on, activation="f32", *, tiles=False):
    with pytest.raises(BadInput) as error:
        check_shape(config, on, activation, tiles=tiles)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("arch", GPUS)
@pytest.mark.parametrize("numerics", CUDA_NUMERICS.values(), ids=CUDA_NUMERICS)
def test_qwen3_fits_every_architecture(arch, numerics):
    activation = numerics.activation
    check_shape(QWEN3, gpu(arch), activation, tiles=activation == "i24")


@pytest.mark.parametrize(
    ("kernel", "shape"),
    [
        ("down", {"expert_width": 8 * 768}),
        ("attention_output", {"heads": 256}),
        ("gate_up", {"hidden": 40_000}),
        ("down", {"experts": 1 << 14}),
        ("attend", {"heads": 8, "kv_heads": 1, "head_dim": 384}),
    ],
)
@pytest.mark.parametrize("activation", ["f32", "q8_k"])
def test_what_just_fits_is_taken_and_one_byte_less_is_too_little(kernel, shape, activation):
    config = replace(QWEN3, **shape)
    needed = plain_bytes(config, activation, gpu())[kernel]
    check_shape(config, gpu(shared_bytes=needed), activation, tiles=False)
    told = refusal(config, gpu(shared_bytes=needed - 1), activation)
    assert told == (
        f"{kernel} takes {needed} bytes of shared memory for a model of this shape, "
        f"a GPU has {needed - 1}; use --backend cpu"
    )


@pytest.mark.parametrize("shape", [{"hidden": 2048 + 16}, {"experts": 129}, {"top_k": 9}])
def test_whatever_is_staged_counts(shape):
    config = replace(QWEN3, expert_width=32)
    larger = replace(config, **shape)

    def needed(of, activation):
        return plain_bytes(of, activation, gpu())["gate_up"]

    assert needed(larger, "f32") > needed(config, "f32")
    assert needed(config, "q8_k") > needed(config, "f32")


@pytest.mark.parametrize(
    ("kernel", "shape"),
    [
        ("gate_up_tiled", {"hidden": 16384}),
        ("down_tiled", {"expert_width": 12288}),
        ("attention_output_tiled", {"heads": 256}),
        # Without tiles of the others' shapes.
        ("qkv_tiled", {"hidden": 32768, "heads": 4, "expert_width": 24, "vocab": 151937}),
        ("logits_tiled", {"hidden": 32768, "heads": 4, "head_dim": 2, "expert_width": 24}),
    ],
)
def test_tiles_that_just_fit_are_taken_and_one_byte_less_is_too_little(kernel, shape):
    config = replace(QWEN3, **shape)
    # A GPU of that little plans warps that hold two tiles, as one with just enough does.
    needed = tiled_bytes(config, gpu(shared_bytes=112 << 10))[kernel]
    check_shape(config, gpu(shared_bytes=needed), "i24", tiles=True)
    told = refusal(config, gpu(shared_bytes=needed - 1), "i24", tiles=True)
    assert told == (
        f"{kernel} takes {needed} bytes of shared memory for a model of this shape, "
        f"a GPU has {needed - 1}; use --numerics f32 or --backend cpu"
    )
    check_shape(config, gpu(shared_bytes=needed - 1), "f32", tiles=False)


def test_shapes_that_cannot_be_cut_into_tiles_need_no_room_for_any():
    odd = replace(QWEN3, hidden=2050, head_dim=6, expert_width=72, vocab=151937)
    assert tiled_bytes(odd, gpu()) == {}
    check_shape(odd, gpu(), "i24", tiles=True)


def test_heads_larger_than_any_tried_are_refused():
    check_shape(replace(QWEN3, head_dim=384), gpu(), "i24", tiles=True)
    told = refusal(replace(QWEN3, head_dim=386), gpu())
    assert told == "heads of 386 values, expected at most 384; use --backend cpu"
