"""Weights as the kernels read them, held against gguf's own dequantisation; what is compiled."""

import gguf
import numpy as np
import pytest

from harness.model import FORMATS as GGUF_FORMATS
from kernels import FAMILIES
from kernels.family import ACCUMULATORS, Family, Heads, Variant, struct
from kernels.launch import Device, Kernel, RowKernel, blocks_for, input_bytes
from kernels.weights import FORMATS, MATRIX, can_be_tiled, is_tiled, matrix, pack

BYTES = {"F32": 4, "F16": 2, "BF16": 2, "Q8_0": 34, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}


def random_blocks(fmt, shape, seed=0):
    """Any bytes are blocks; only the scales are made finite."""
    blocks = np.random.default_rng(seed).integers(0, 256, (*shape, BYTES[fmt]), dtype=np.uint8)
    at = {"Q6_K": 208, "Q8_0": 0}[fmt]
    scales = np.random.default_rng(seed).standard_normal(shape).astype(np.float16)
    blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    return blocks


def dequantised(blocks, fmt):
    return gguf.quants.dequantize(
        blocks.reshape(-1, BYTES[fmt]), GGUF_FORMATS[fmt].gguf_type
    ).reshape(*blocks.shape[:-1], -1)


def planes(packed, *sizes):
    """Cut packed bytes into planes of so many bytes a block."""
    count = len(packed) // sum(sizes)
    ends = np.cumsum([count * size for size in sizes])
    parts = np.split(packed, ends[:-1])
    return [part.reshape(count, size) for part, size in zip(parts, sizes, strict=True)]


# Rows of blocks; experts of rows of blocks.
SHAPES = [(1, 1), (5, 3), (4, 6, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_q6_k_read_out_of_its_planes_is_what_gguf_says(shape):
    blocks = random_blocks("Q6_K", shape)
    quants, scales, d = planes(pack(blocks, "Q6_K"), 192, 16, 2)
    # As Q6_K::value of formats.cuh, every column of a block.
    k = np.arange(256)
    half, run, column = k >> 7, (k >> 5) & 3, k & 31
    low = quants[:, 64 * half + 32 * (run & 1) + column] >> np.where(run & 2, 4, 0) & 15
    upper = quants[:, 128 + 32 * half + column] >> (2 * run) & 3
    scale = scales.view(np.int8)[:, 8 * half + 2 * run + (column >> 4)].astype(np.float32)
    values = (low | upper << 4).astype(np.float32) - 32
    got = values * (d.view(np.float16).astype(np.float32) * scale)
    assert got.reshape(*shape, 256).tobytes() == dequantised(blocks, "Q6_K").tobytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_q8_0_read_out_of_its_planes_is_what_gguf_says(shape):
    blocks = random_blocks("Q8_0", shape)
    quants, d = planes(pack(blocks, "Q8_0"), 32, 2)
    got = quants.view(np.int8).astype(np.float32) * d.view(np.float16).astype(np.float32)
    assert got.reshape(*shape, 32).tobytes() == dequantised(blocks, "Q8_0").tobytes()


@pytest.mark.parametrize("fmt", [fmt for fmt in BYTES if fmt not in ("Q6_K", "Q8_0")])
def test_aligned_formats_keep_gguf_s_bytes(fmt):
    blocks = np.random.default_rng(0).integers(0, 256, (3, 4, BYTES[fmt]), dtype=np.uint8)
    assert pack(blocks, fmt).tobytes() == blocks.tobytes()
    assert pack(blocks, fmt).ndim == 1


@pytest.mark.parametrize("fmt", BYTES)
def test_a_slice_of_memory_is_packed_as_its_copy(fmt):
    whole = np.random.default_rng(0).integers(0, 256, (6, 4, BYTES[fmt]), dtype=np.uint8)
    assert pack(whole[::2], fmt).tobytes() == pack(whole[::2].copy(), fmt).tobytes()
    assert len(pack(whole[::2], fmt)) == whole[::2].size


def test_every_format_of_a_model_has_a_code_and_the_size_that_gguf_gives_it():
    assert set(GGUF_FORMATS) <= set(FORMATS)
    for fmt, size in BYTES.items():
        values, blocks = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[fmt]]
        assert blocks == size
        described = matrix(0, fmt, (2, 3 * values), 2 * 3 * size)
        assert int(described["blocks"]) == 6


def test_a_matrix_is_described_as_the_kernels_read_it():
    described = matrix(0x7F00_0000_1230, "Q6_K", (128, 768, 2048), 128 * 768 * 8 * 210)
    assert MATRIX.itemsize == 32
    assert int(described["base"]) == 0x7F00_0000_1230
    assert int(described["blocks"]) == 128 * 768 * 8  # of all experts
    assert (int(described["rows"]), int(described["columns"])) == (768, 2048)  # of one
    assert FORMATS[int(described["format"])] == "Q6_K"
    assert int(described["padding"]) == 0
    assert not is_tiled(described)
    tiled = matrix(0, "Q6_K_TILED", (128, 768, 2048), 128 * 768 * 8 * 210)
    assert is_tiled(tiled)
    assert int(tiled["blocks"]) == 128 * 768 * 8


@pytest.mark.parametrize(
    ("fmt", "shape", "can"),
    [
        ("Q4_K", (16, 256), True),
        ("Q6_K", (128, 768, 2048), True),
        ("Q4_K", (17, 256), False),
        ("Q4_K", (8, 256), False),
        ("Q4_K", (16, 8, 256), False),  # a tile has rows of one expert
        ("Q5_K", (16, 256), False),
        ("Q8_0", (16, 256), False),
        ("F32", (16, 256), False),
        ("Q4_K_TILED", (16, 256), False),
    ],
)
def test_what_can_be_tiled(fmt, shape, can):
    assert can_be_tiled(fmt, shape) is can


@pytest.mark.parametrize("fmt", ["Q3_K", "q4_k", ""])
def test_unknown_formats_are_refused(fmt):
    with pytest.raises((KeyError, ValueError)):
        matrix(0, fmt, (16, 256), 0)


# -- which form of a kernel reads them -------------------------------------------------------------


def test_the_form_of_a_kernel_follows_the_matrices():
    plain, tiles = (matrix(0, fmt, (16, 256), 16 * 144) for fmt in ("Q4_K", "Q4_K_TILED"))
    forms = [Kernel(None, name, MATRIX) for name in ("rows", "rows_tiled")]
    both, one = RowKernel(*forms), RowKernel(forms[0], None)
    assert both.of(plain, plain) is one.of(plain) is forms[0]
    assert both.of(tiles, tiles) is forms[1]
    assert (both.kernels, one.kernels) == ((*forms,), (forms[0],))
    for mixed, kernel in (((plain, tiles), both), ((tiles,), one)):
        with pytest.raises(ValueError, match="tiled in part, or this numerics has none"):
            kernel.of(*mixed)


@pytest.mark.parametrize(("columns", "f32"), [(1, 20), (64, 288), (2048, 8720)])
def test_shared_memory_of_an_input(columns, f32):
    assert input_bytes(columns, "f32") == f32
    whole = columns // 256
    assert input_bytes(columns, "q8_k") == f32 + 260 * whole
    limbs = 3 * (columns + 32) + 4 * whole + 36 * 8 * whole if columns % 256 == 0 else 0
    assert input_bytes(columns, "i24") == f32 + limbs


def test_blocks_cover_the_rows_and_no_more_than_fit():
    device = Device(multiprocessors=10, shared_bytes=1 << 16)
    assert [blocks_for(rows, 16, device, 3) for rows in (0, 1, 16, 17, 480, 481)] == [
        *(1, 1, 1, 2, 30, 30)
    ]


# -- what is compiled ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("accumulator", "f16"),
        ("accumulator", ""),
        ("activation", "q8_0"),
        ("softmax", "kahan"),
        ("weighted_sum", None),
        ("swiglu", "F64"),
        ("top_k_epsilon", -1e-6),
        ("top_k_epsilon", float("nan")),
        ("top_k_epsilon", float("inf")),
    ],
)
def test_a_variant_that_does_not_exist_is_refused(attribute, value):
    with pytest.raises(ValueError, match=f"{attribute} .*expected"):
        Variant(**{attribute: value})


def test_every_choice_has_an_option_of_its_own():
    choices = [
        ("accumulator", ACCUMULATORS),
        ("activation", ("f32", "q8_k", "i24")),
        ("softmax", ("f32", "f64")),
        ("weighted_sum", ("f32", "f64")),
        ("swiglu", ("f32", "f64")),
        ("top_k_epsilon", (0.0, 1e-5, 1e-3)),
    ]
    for name, values in choices:
        options = {Variant(**{name: value}).define(name) for value in values}
        assert len(options) == len(values)
        assert all(option.startswith("-D") for option in options)


def test_a_family_is_compiled_with_what_it_reads_alone():
    family = Family("own", {"own": struct(("x", np.float32))}, ("swiglu",), ("nan",))
    options = family.options(Variant("kahan", plant="wrong_expert"), Heads(64, 2))
    assert "-DOWN_ARGS_BYTES=4" in options
    assert "-DSWIGLU_F64=0" in options
    assert not [o for o in options if "ACCUMULATOR" in o or "PLANT" in o or "HEAD" in o]
    assert "-DPLANT_NAN" in family.options(Variant(plant="nan"), Heads())


def test_a_family_that_reads_what_no_variant_has_is_refused():
    with pytest.raises(KeyError, match="cache"):
        Family("own", {}, choices=("cache",)).options(Variant(), Heads())


def test_the_families_are_what_lies_in_the_folder():
    assert {family.path for family in FAMILIES} == set(FAMILIES[0].folder.glob("*.cu"))
    plants = [plant for family in FAMILIES for plant in family.plants]
    assert len(plants) == len(set(plants))


def test_structs_are_laid_out_as_c_does():
    laid = struct(("a", np.int32), ("p", np.uint64), ("m", MATRIX), ("b", np.float32))
    assert [laid.fields[name][1] for name in laid.names] == [0, 8, 16, 48]
    assert laid.itemsize == 56
