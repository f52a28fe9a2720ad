"""Weights as the kernels read them, held against gguf's own dequantisation; what is compiled."""

import gguf
import numpy as np
import pytest

from harness.model import FORMATS as GGUF_FORMATS
from kernels import FAMILIES
from kernels.family import ACCUMULATORS, Family, Heads, Variant, struct
from kernels.pack import Pack
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


# -- tiles -----------------------------------------------------------------------------------------

LANES, WORDS, BYTE = np.arange(32), np.arange(4), np.arange(4)
# Where the byte of a lane's word lies in a chunk of low bits: which row, which of 32 columns.
ROW = ((LANES >> 2)[:, None] + 8 * (WORDS & 1))[..., None] + 0 * BYTE
COLUMN = (8 * (LANES & 3)[:, None] + 4 * (WORDS >> 1))[..., None] + BYTE


def packed_tiles(place, blocks, fmt):
    """What ``pack`` makes of experts' rows, tile by tile, handed over in two parts."""
    experts, rows, superblocks, size = blocks.shape
    tiles = experts * rows // 16 * superblocks
    nbytes = {"Q4_K": 2304, "Q6_K": 3360}[fmt]
    memory = np.full(tiles * nbytes + 64, 0xA5, np.uint8)
    address = place.put(memory)
    launcher = Pack(place.program(Variant(), Heads()))
    to = matrix(address, f"{fmt}_TILED", (experts, rows, 256 * superblocks), blocks.size)
    flat = blocks.reshape(-1, superblocks, size)
    for first, last in ((0, 16), (16, experts * rows)):
        part = np.ascontiguousarray(flat[first:last])
        given = place.put(part)
        launcher.pack(given, last - first, to, first_row=first, stream=place.stream)
        place.stream.synchronize()
    place.get(address, memory)
    assert (memory[tiles * nbytes :] == 0xA5).all()
    return memory[: tiles * nbytes].reshape(experts * rows // 16, superblocks, nbytes)


def nibbles(tile):
    """Low four bits ``[4, 2, 16, 32]``: of a chunk's even and odd group, row and column."""
    chunks = tile[:2048].reshape(4, 32, 4, 4)
    low = np.zeros((4, 2, 16, 32), np.uint8)
    for chunk in range(4):
        low[chunk, 0, ROW, COLUMN] = chunks[chunk] & 15
        low[chunk, 1, ROW, COLUMN] = chunks[chunk] >> 4
    return low


def six_bits(tile):
    """Upper six bits of signed bytes ``[8, 16, 32]``: of a group, row and column."""
    words = tile[:3072].reshape(2, 3, 32, 4, 4)  # of four groups: word, lane, row and column
    six = np.zeros((8, 16, 32), np.uint8)
    for half in range(2):
        fourth = np.zeros((32, 4, 4), np.uint8)
        for word in range(3):
            six[4 * half + word, ROW, COLUMN] = words[half, word] & 0xFC
            fourth |= (words[half, word] & 3) << (6 - 2 * word)
        six[4 * half + 3, ROW, COLUMN] = fourth
    return six.view(np.int8)


def by_row(tail):
    """Words ``[16, 4, 4]`` by row: behind the quants those of rows r and r + 8 lie side by side."""
    return tail.reshape(8, 4, 2, 4).transpose(2, 0, 1, 3).reshape(16, 4, 4)


def heads(tile):
    """The first 16 bytes of the rows' blocks, as GGUF has them."""
    words = by_row(tile[2048:])
    scales = (words[:, :2] & 63).transpose(0, 2, 1).reshape(16, 8)
    low = np.stack([words[:, 2] & 15, words[:, 2] >> 4], axis=-1)
    mins = (low | (words[:, :2] >> 6 << 4).transpose(0, 2, 1)).reshape(16, 8)
    first = [six[:, :4] | six[:, 4:] >> 4 << 6 for six in (scales, mins)]
    last = scales[:, 4:] & 15 | (mins[:, 4:] & 15) << 4
    return np.concatenate([words[:, 3], *first, last], axis=1)


TILED_SHAPE = (3, 32, 2)  # experts, rows, superblocks


def test_a_tile_of_q4_k_holds_its_blocks_in_one_run(place):
    blocks = np.random.default_rng(0).integers(0, 256, (*TILED_SHAPE, 144), dtype=np.uint8)
    tiles = packed_tiles(place, blocks, "Q4_K")
    wanted = blocks.reshape(-1, 16, 2, 144)
    for row, superblock in np.ndindex(tiles.shape[:2]):
        tile = tiles[row, superblock]
        low = nibbles(tile)
        quants = (low[:, 0] | low[:, 1] << 4).transpose(1, 0, 2).reshape(16, 128)
        got = np.concatenate([heads(tile), quants], axis=1)
        np.testing.assert_array_equal(got, wanted[row, :, superblock])


def test_a_tile_of_q6_k_read_in_the_order_of_an_operand_is_what_gguf_says(place):
    blocks = random_blocks("Q6_K", TILED_SHAPE)
    tiles = packed_tiles(place, blocks, "Q6_K")
    wanted = dequantised(blocks, "Q6_K").reshape(-1, 16, 2, 256)
    for row, superblock in np.ndindex(tiles.shape[:2]):
        tile = tiles[row, superblock]
        quants = six_bits(tile).astype(np.float32) / 4  # two's complement, four times as large
        # Of each four groups first those of the first 16 columns, then those of the last.
        sides = by_row(tile[3072:3328].view(np.int8)).reshape(16, 2, 2, 4)
        scales = sides.transpose(0, 1, 3, 2).reshape(16, 16).astype(np.float32)
        d = tile[3328:].view(np.float16).astype(np.float32)
        of_column = np.repeat(scales, 16, axis=1)  # a scale for each 16 columns
        got = quants.transpose(1, 0, 2).reshape(16, 256) * (d[:, None] * of_column)
        assert got.tobytes() == wanted[row, :, superblock].tobytes()


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
