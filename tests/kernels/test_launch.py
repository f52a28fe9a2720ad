"""How kernels are launched: which form, how much shared memory, how tiles are streamed."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from harness.backends.cuda.decoder import variant_of
from harness.numerics import CUDA_NUMERICS
from kernels import attention
from kernels.attention import shared_bytes
from kernels.compiler import CompileError
from kernels.experts import CHOOSING, Choosing, down_stream, gate_up_stream
from kernels.family import Heads
from kernels.launch import (
    Device,
    Kernel,
    RowKernel,
    TileStream,
    blocks_for,
    choose_bytes,
    fixed_bytes,
    input_bytes,
)
from kernels.matvec import row_stream
from kernels.weights import MATRIX, matrix

H200 = Device(multiprocessors=132, shared_bytes=227 << 10)


def tiles(fmt="Q6_K", shape=(16, 256)):
    return matrix(0, f"{fmt}_TILED", shape, 0)


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


def test_blocks_cover_the_rows_and_no_more_than_fit():
    device = Device(multiprocessors=10, shared_bytes=1 << 16)
    assert [blocks_for(rows, 16, device, 3) for rows in (0, 1, 16, 17, 480, 481)] == [
        *(1, 1, 1, 2, 30, 30)
    ]


# -- a kernel's first launch -----------------------------------------------------------------------


class Attributes:
    """A function of PyCUDA's that notes what is set on it, and when it runs."""

    def __init__(self):
        self.noted = []

    def set_attribute(self, attribute, value):
        self.noted.append((attribute, value))

    def __call__(self, _arguments, *, shared, **_):
        self.noted.append(("run", shared))


@pytest.fixture
def fake_driver(monkeypatch):
    driver = ModuleType("pycuda.driver")
    driver.function_attribute = SimpleNamespace(
        PREFERRED_SHARED_MEMORY_CARVEOUT="carveout", MAX_DYNAMIC_SHARED_SIZE_BYTES="most"
    )
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)


@pytest.mark.usefixtures("fake_driver")
def test_a_kernel_asks_for_shared_memory_before_its_first_launch_and_for_more_alone():
    function = Attributes()
    kernel = Kernel(function, "rows", MATRIX)
    for shared in (0, 0, 48 << 10, 60_000, 50_000, 60_001):
        kernel.launch({}, grid=(1,), stream=None, shared=shared)
    assert function.noted == [
        *(("carveout", 100), ("run", 0)),
        ("run", 0),
        *(("carveout", 100), ("run", 48 << 10)),  # which every block may have
        *(("carveout", 100), ("most", 60_000), ("run", 60_000)),
        ("run", 50_000),
        *(("carveout", 100), ("most", 60_001), ("run", 60_001)),
    ]


@pytest.mark.usefixtures("fake_driver")
def test_a_kernel_that_is_left_out_asks_for_nothing():
    function = Attributes()
    kernel = Kernel(function, "rows", MATRIX)
    kernel.left_out = True
    kernel.launch({}, grid=(1,), stream=None, shared=60_000)
    assert function.noted == []


# -- shared memory, as the sources have it ---------------------------------------------------------


@pytest.mark.parametrize(("columns", "f32"), [(1, 20), (64, 288), (2048, 8720)])
def test_shared_memory_of_an_input(columns, f32):
    assert input_bytes(columns, "f32") == input_bytes(columns, "i24") == f32
    assert input_bytes(columns, "q8_k") == f32 + 260 * (columns // 256)


@pytest.mark.parametrize("columns", [256, 768, 2048, 6144])
def test_shared_memory_of_an_input_in_fixed_point(columns):
    limbs, sums, units, squares = 3 * columns, columns // 32, columns // 256, columns // 256
    least = 256 + limbs + 4 * (sums + units + squares)  # zeros before them
    assert least < fixed_bytes(columns) < least + 3 * 32 + 32  # padding of limbs, of the whole
    assert fixed_bytes(columns) % 16 == 0


@pytest.mark.parametrize(
    ("experts", "top_k", "nbytes"), [(128, 8, 1088), (1, 1, 144), (16, 1, 144), (17, 3, 288)]
)
def test_shared_memory_of_a_choice(experts, top_k, nbytes):
    assert choose_bytes(experts, top_k) == nbytes
    assert Choosing(0, 0, experts, top_k).shared_bytes == nbytes


COLUMNS = (1, 63, 64, 250, 256, 768, 2048, 6144)
CHOICES = ((1, 1), (6, 2), (15, 3), (16, 1), (17, 17), (128, 8), (130, 9))


def asserted(*equal):
    return "".join(f'static_assert({left} == {right}, "");\n' for left, right in equal)


@pytest.mark.slow
@pytest.mark.parametrize("numerics", ["f32", "q8_k", "i24"])
def test_the_sources_stage_an_input_in_as_much(build_source, numerics):
    variant = variant_of(CUDA_NUMERICS[numerics])
    equal = [(f"input_bytes({n})", input_bytes(n, variant.activation)) for n in COLUMNS]
    source = f'#include "input.cuh"\n{asserted(*equal)}'
    build_source(source, ("activation",), variant)


@pytest.mark.slow
def test_the_sources_have_the_same_tiles_streams_and_choices(build_source):
    equal = [(f"fixed_bytes({n})", fixed_bytes(n)) for n in COLUMNS if n % 256 == 0]
    equal += [(f"choose_bytes({n}, {k})", choose_bytes(n, k)) for n, k in CHOICES]
    # One item of one tile on one multiprocessor: a slot, its products twice, nothing besides.
    for fmt in ("Q4_K", "Q6_K"):
        one = TileStream.of(
            tiles(fmt), items=1, parts=1, besides=0, depth=1, device=Device(1, 1 << 20)
        )
        equal.append((f"kTile{fmt} + 2 * 4 * kTileRows", one.shared))
    equal += [("sizeof(Matrix)", MATRIX.itemsize), ("sizeof(Choosing)", CHOOSING.itemsize)]
    seen = launched(TileStream(1, 1, 0))
    equal.append(("kTiledThreads", seen["threads"]))
    # Lanes for each row of a batch.
    equal.append(("kTiledThreads / kTileRows / kRowLanes", 8))
    build_source(f'#include "choose.cuh"\n#include "stream.cuh"\n{asserted(*equal)}')


@pytest.mark.slow
@pytest.mark.parametrize(
    "heads", [Heads(2, 1), Heads(34, 3), Heads(128, 8), Heads(160, 12), Heads(384, 8)], ids=str
)
def test_the_source_attends_in_as_much(build_source, heads):
    clustered, single = (shared_bytes(heads, arch, 3) for arch in ("sm_90", "sm_89"))
    equal = [
        (
            f"sizeof(Shared) + 16 * 3 * kBlockWarps * kSlot + {attention._DECLARED}",
            f"(kCluster > 1 ? {clustered} : {single})",
        ),
    ]
    build_source(
        f"#define HEAD_DIM {heads.head_dim}\n#define GROUP {heads.group}\n"
        f"#define ATTEND_ARGS_BYTES {attention.ATTEND.itemsize}\n"
        f'#include "attention.cu"\n{asserted(*equal)}'
    )


@pytest.mark.slow
def test_a_size_that_differs_from_the_sources_is_seen(build_source):
    wrong = asserted(("choose_bytes(128, 8)", choose_bytes(128, 8) + 16))
    with pytest.raises(CompileError):
        build_source(f'#include "choose.cuh"\n{wrong}')


# -- streams of tiles ------------------------------------------------------------------------------


def launched(stream):
    """What a kernel is launched with."""
    seen = {}
    kernel = SimpleNamespace(launch=lambda values, **how: seen.update(how, values=values))
    stream.launch(kernel, {"m": 1}, None)
    return seen


def test_a_stream_is_launched_as_it_is_planned():
    seen = launched(TileStream(blocks=7, batch=3, shared=99))
    assert seen == {
        "values": {"m": 1, "batch": 3},
        "grid": (7,),
        "threads": 512,
        "shared": 99,
        "stream": None,
    }


def plan(items, parts, besides=0, depth=2, device=H200, fmt="Q6_K"):
    return TileStream.of(
        tiles("Q4_K"),
        tiles(fmt),
        items=items,
        parts=parts,
        besides=besides,
        depth=depth,
        device=device,
    )


def room(batch, parts, slots, besides=0):
    """Slots of the larger tile; products of two batches."""
    return 3360 * slots + 2 * batch * parts * 64 + besides


@pytest.mark.parametrize(
    ("items", "blocks", "batch"),
    # No more blocks than items; a block's share; the rest of a division is a whole item more.
    [(1, 1, 1), (131, 131, 1), (132, 132, 1), (133, 132, 2), (264, 132, 2), (265, 132, 3)],
)
def test_items_are_dealt_out_to_a_block_a_multiprocessor(items, blocks, batch):
    planned = plan(items, parts=8)
    assert (planned.blocks, planned.batch) == (blocks, batch)
    assert planned.shared == room(batch, 8, batch * 8)
    assert planned.blocks * planned.batch >= items


def test_a_batch_has_no_more_items_than_rows_have_lanes():
    assert plan(10_000, parts=1).batch == 8
    assert plan(10_000, parts=2).batch == 8


@pytest.mark.parametrize(("parts", "batch"), [(9, 7), (16, 4), (33, 1), (64, 1), (65, 1)])
def test_a_batch_has_no_more_tiles_than_products_are_kept_unless_an_item_has(parts, batch):
    planned = plan(10_000, parts)
    assert planned.batch == batch
    assert planned.shared == room(batch, parts, 32)


def test_warps_ask_for_the_next_batch_where_there_is_one():
    """They do so while others still hold tiles of this one: each needs room of its own."""
    assert plan(8 * 132, parts=1).shared == room(8, 1, 8)
    assert plan(8 * 132 + 1, parts=1).shared == room(8, 1, 32)


def test_the_larger_of_the_tiles_counts():
    assert plan(132, 8, fmt="Q4_K").shared == 2304 * 8 + 2 * 8 * 64
    assert plan(132, 8, fmt="Q6_K").shared == 3360 * 8 + 2 * 8 * 64


def test_warps_hold_up_to_their_depth_and_one_tile_where_there_is_little_memory():
    for depth in (1, 2, 3):
        assert plan(528, 16, depth=depth).shared == room(4, 16, 16 * depth)
        assert plan(10_000, 16, depth=depth).shared == room(4, 16, 16 * depth)
    for shared, slots in ((227 << 10, 48), (163 << 10, 32), ((112 << 10) - 1, 16), (99 << 10, 16)):
        assert plan(132, 64, depth=3, device=Device(132, shared)).shared == room(1, 64, slots)


def test_the_kernels_plan_their_own_items():
    """Of Qwen3-30B-A3B, on an H200."""
    choosing = Choosing(0, 0, 128, 8)
    gate = up = tiles("Q4_K", (128, 768, 2048))
    planned = gate_up_stream(gate, up, choosing, H200)
    assert planned.batch == -(-8 * 48 // 132)
    tiles_there = planned.batch * 16
    assert planned.shared == (
        2304 * min(tiles_there, 48) + 128 * tiles_there + fixed_bytes(2048) + choose_bytes(128, 8)
    )
    planned = down_stream(tiles("Q6_K", (128, 2048, 768)), choosing, H200)
    assert (planned.blocks, planned.batch) == (128, 1)
    assert planned.shared == room(1, 24, 24, fixed_bytes(8 * 768) + choose_bytes(128, 8))
    q, kv = tiles("Q4_K", (4096, 2048)), tiles("Q6_K", (512, 2048))
    planned = row_stream(q, kv, kv, device=H200)
    assert (planned.blocks, planned.batch) == (132, 3)  # 256 + 2 * 32 items
    assert planned.shared == room(3, 8, 24, fixed_bytes(2048))


# -- choosing --------------------------------------------------------------------------------------


def test_a_choice_is_described_as_the_kernels_read_it():
    described = Choosing(
        1 << 40, 1 << 41, 128, 8, announced=True, trace_ids=16, trace_weights=32
    ).argument
    assert CHOOSING.itemsize == 48
    assert {name: int(described[name]) for name in CHOOSING.names} == {
        "logits": 1 << 40,
        "weights": 1 << 41,
        "trace_ids": 16,
        "trace_weights": 32,
        "experts": 128,
        "top_k": 8,
        "announced": 1,
        "padding": 0,
    }
    assert int(Choosing(1, 1, 2, 1).argument["trace_ids"]) == 0
    assert np.frombuffer(described.tobytes(), CHOOSING)[0] == described
