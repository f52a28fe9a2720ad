"""The CUDA decoder's own kernels, compiled for this CPU (helpers/emulated): the guard accepts them,
and rejects what is planted in them. On a GPU, test_cuda.py asks the same of the real thing."""

import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from helpers import emulated

from harness.backends.cuda.decoder import CudaDecoder
from harness.backends.cuda.forward import TOKEN_FAMILIES
from harness.backends.cuda.memory import DeviceMemory
from harness.backends.cuda.weights import weight_sizes
from harness.decoder import COPIES
from harness.guard import guard
from harness.guard.faults import prove, seeded_prompts
from harness.model import open_model
from harness.numerics import CUDA_NUMERICS
from harness.reference import Oracle
from harness.stages import Capture, Plan

IDS = [3, 1, 4]
# Each compiles the kernels once more; the others differ from f32 in few lines (test_numerics.py).
NUMERICS = ("i24", "f32", "q8_k", "quad")
LAYER_FAMILIES = TOKEN_FAMILIES[1:-2]

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ here")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    with emulated.installed(tmp_path_factory.mktemp("emulated")) as gpu:
        yield gpu


def open_emulated(model, numerics="i24", capacity=8, plant=None):
    return CudaDecoder(model, CUDA_NUMERICS[numerics], capacity, plant=plant)


def oracle_of(model, numerics, capacity=8):
    chosen = CUDA_NUMERICS[numerics]
    return Oracle(model, "cpu", chosen.oracle_activation, capacity, chosen.cache)


def logits(decoder, plan=None):
    decoder.reset()
    captures = [None if plan is None else Capture(plan) for _ in IDS]
    return np.stack([decoder.step(t, c) for t, c in zip(IDS, captures, strict=True)])


@pytest.mark.parametrize("numerics", NUMERICS)
def test_the_kernels_are_accepted(here, small_model, numerics):
    decoder = open_emulated(small_model, numerics)
    evidence = guard(decoder, oracle_of(small_model, numerics), IDS)
    assert evidence.verdict.accepted, evidence.verdict.reasons
    assert evidence.ran["device"] == here.name
    decoder.close()


@pytest.mark.usefixtures("here")
def test_odd_shapes_are_accepted(odd_shapes):
    for path in odd_shapes.values():
        model = open_model(path)
        decoder = open_emulated(model)
        evidence = guard(decoder, oracle_of(model, "i24"), IDS)
        assert evidence.verdict.accepted, (path, evidence.verdict.reasons)
        decoder.close()


@pytest.mark.usefixtures("here")
def test_a_router_that_is_not_folded_runs_by_itself_over_tiles(small_model, monkeypatch):
    folded = open_emulated(small_model)
    monkeypatch.setattr("harness.backends.cuda.weights._folded_layers", lambda *_: [])
    decoder = open_emulated(small_model)
    layers = small_model.config.layers
    for each, launches in ((folded, 0), (decoder, layers)):
        logits(each)
        with closing(each.family_clock(IDS[-1])) as clock:
            assert clock.launches["route"] == launches
    evidence = guard(decoder, oracle_of(small_model, "i24"), IDS)
    assert evidence.verdict.accepted, evidence.verdict.reasons
    decoder.close()
    folded.close()


@pytest.mark.usefixtures("here")
def test_weights_take_as_much_as_was_said_and_lie_in_one_piece(small_model, monkeypatch):
    pieces = []  # whose, and how many bytes
    allocate = DeviceMemory._allocate

    def noted(self, nbytes):
        pieces.append((self, nbytes))
        return allocate(self, nbytes)

    monkeypatch.setattr(DeviceMemory, "_allocate", noted)
    for numerics in ("i24", "f32"):
        pieces.clear()
        decoder = open_emulated(small_model, numerics)
        sizes = weight_sizes(small_model, tiles=numerics == "i24")
        taken = sum(decoder.weights_memory.values())
        assert taken == sum(sizes)
        memory, nbytes = pieces[0]
        assert taken <= nbytes < taken + 256 * len(sizes)
        assert [owner is memory for owner, _ in pieces].count(True) == 1
        folded = decoder.weights_memory.get("weights folded router", 0)
        assert (folded > 0) == (numerics == "i24")
        decoder.close()


@pytest.mark.usefixtures("here")
def test_traced_is_bit_identical_and_so_is_what_the_device_decodes_by_itself(small_model):
    decoder = open_emulated(small_model, capacity=16)
    plain = logits(decoder)
    assert logits(decoder, Plan.parse("all")).tobytes() == plain.tobytes()
    decoder.reset()
    tokens = decoder.generate(IDS, 4)
    decoder.reset()
    rows = [decoder.step(token) for token in (*IDS, *tokens)]
    assert [int(row.argmax()) for row in rows[len(IDS) - 1 : -1]] == tokens


@pytest.mark.usefixtures("here")
def test_a_long_cache_is_split_and_merged(small_model):
    c = small_model.config
    rng = np.random.default_rng(0)
    shape = (c.layers, 600, c.kv_heads, c.head_dim)
    cache = tuple(rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    decoder = open_emulated(small_model, capacity=608)
    evidence = guard(decoder, oracle_of(small_model, "i24", 608), IDS, cache=cache)
    assert evidence.verdict.accepted, evidence.verdict.reasons


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("room", [1, 64])
def test_families_are_timed_alone_in_as_many_copies_as_fit_and_leave_the_same_bits(
    small_model, room
):
    copies = min(COPIES, 1 + room)
    decoder = open_emulated(small_model, capacity=len(IDS) + room)
    before = logits(decoder)
    with closing(decoder.family_clock(IDS[-1])) as clock:
        for family in TOKEN_FAMILIES:
            launches = small_model.config.layers if family in LAYER_FAMILIES else 1
            # The logits are announced; no router runs by itself.
            assert clock.launches[family] == (0 if family == "route" else launches), family
        for family in ("embed", "argmax"):  # which are those of one launch, and copied
            assert clock.milliseconds(family, 1) == [1 / copies]
            first = clock.left()
            clock.milliseconds(family, 1)
            assert clock.left() == first, family
        position = np.frombuffer(clock.left(), np.int32)[-2 - decoder.capacity]
        assert position == len(IDS) - 1 + copies
        assert clock.logits().tobytes() == before[-1].tobytes()
    assert logits(decoder).tobytes() == before.tobytes()
    decoder.close()


@pytest.mark.usefixtures("here")
def test_faults_in_the_kernels_are_rejected(small_model):
    proof = prove(
        small_model,
        lambda given, plant: open_emulated(given, plant=plant),
        oracle_of(small_model, "i24"),
        seeded_prompts(small_model.config.vocab, 2, 3, seed=5),
    )
    assert proof.holds, proof.to_json()
    assert not proof.inapplicable
    assert not proof.invisible


RUN = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
import numpy as np
from helpers.emulated import EmulatedProgram, Stream
from kernels.family import Family, Heads, Variant
from kernels.launch import Device
arguments = {{"odd": np.dtype([("a", np.int32)])}}
family = Family("odd", arguments, folder=Path({folder!r}))
program = EmulatedProgram(Variant(), Heads(), "sm_90", Device(1, 1 << 16), Path({folder!r}))
program.kernel(family, "odd").launch({{"a": 1}}, grid=(1,), threads=64, stream=Stream())
"""


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("if (threadIdx.x < 31) __shfl_xor_sync(kAllLanes, 1, 1);", "wait for its value"),
        ("if (threadIdx.x != 0) __shfl_xor_sync(kAllLanes, 1, 1);", "a warp of 31 lanes"),
        ("if (threadIdx.x == 0) __syncthreads(); else __syncwarp();", "wait for others"),
        ("if (threadIdx.x == 0) __syncwarp(); else __syncthreads();", "wait for others"),
    ],
)
def test_what_would_hang_a_gpu_or_is_undefined_there_ends_with_a_line(tmp_path, body, told):
    kernel = 'extern "C" __global__ void __launch_bounds__(kThreads) odd(const int a)'
    (tmp_path / "odd.cu").write_text(f'#include "common.cuh"\n{kernel} {{\n  {body}\n}}\n')
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(path=sys.path, folder=str(tmp_path))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert told in done.stderr, done.stderr
