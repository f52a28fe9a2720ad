"""Attention beside float64 on the same float16 cache: compiled for this CPU (helpers/emulated), and
on a GPU where there is one."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kernels import attention
from kernels.attention import Attention
from kernels.family import Family, Heads, Variant, struct

TOLERANCE = 2e-6  # of the largest output
EPS = 1e-6
KV_HEADS = 2
UNSPLIT = 128  # kUnsplit


def attention_of(place, heads, plant=None):
    """Launcher at a place, and the place."""
    return Attention(place.program(Variant(plant=plant), heads), KV_HEADS), place


@dataclass
class Case:
    """A position's heads, and a cache that is NaN from that position on."""

    heads: Heads
    position: int
    qkv: np.ndarray  # [heads + 2 kv_heads, head_dim]
    norms: np.ndarray  # [2, head_dim]: of queries, of keys
    rotation: np.ndarray  # [2, 2, head_dim / 2]
    cached: np.ndarray  # [2, capacity, kv_heads, head_dim]: keys, values

    @classmethod
    def of(cls, heads, position, seed=0):
        rng = np.random.default_rng((seed, heads.head_dim, heads.group, position))
        size, queries = heads.head_dim, KV_HEADS * heads.group
        angles = position * 1e6 ** (-np.arange(size // 2) * 2 / size)
        turn = np.stack([np.cos(angles), np.sin(angles)])
        cached = rng.standard_normal((2, position + 3, KV_HEADS, size)).astype(np.float16)
        cached[:, position:] = np.nan
        return cls(
            heads,
            position,
            rng.standard_normal((queries + 2 * KV_HEADS, size)).astype(np.float32),
            rng.uniform(0.5, 2, (2, size)).astype(np.float32),
            np.stack([turn, turn]).astype(np.float32),
            cached,
        )

    def run(self, at, times=1):
        """What the kernel leaves, launched ``times`` times on the same memory."""
        launcher, place = at
        queries, size = KV_HEADS * self.heads.group, self.heads.head_dim
        left = {
            "mixed": np.full((queries, size), np.nan, np.float32),
            "trace_q": np.full((queries, size), np.nan, np.float32),
            "trace_k": np.full((KV_HEADS, size), np.nan, np.float32),
            "keys": self.cached[0].copy(),
            "values": self.cached[1].copy(),
            "arrived": np.zeros(queries, np.uint32),
        }
        given = {
            "qkv": self.qkv,
            "q_norm": self.norms[0],
            "k_norm": self.norms[1],
            "rotation": self.rotation,
            "state": np.array([self.position, 0], np.int32),
            "partial": np.full(launcher.partial_values, np.nan, np.float32),
        }
        addresses = {name: place.put(array) for name, array in (given | left).items()}
        for _ in range(times):
            launcher.attend(**addresses, eps=EPS, stream=place.stream)
        for name, array in left.items():
            place.get(addresses[name], array)
        assert not left["arrived"].any()
        return SimpleNamespace(
            mixed=left["mixed"],
            q=left["trace_q"],
            k=left["trace_k"],
            cached=np.stack([left["keys"], left["values"]]),
        )

    def turned(self):
        """Queries and keys, normed and rotated, float64."""
        queries, half = KV_HEADS * self.heads.group, self.heads.head_dim // 2
        found = []
        for x, norm, (cosine, sine) in (
            (self.qkv[:queries], self.norms[0], self.rotation[0]),
            (self.qkv[queries:-KV_HEADS], self.norms[1], self.rotation[1]),
        ):
            mean = np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)
            low, high = np.split(x / np.sqrt(mean + EPS) * norm, [half], axis=-1)
            turned = [low * cosine - high * sine, high * cosine + low * sine]
            found.append(np.concatenate(turned, axis=-1))
        return found

    def scores(self, keys):
        """Of every position so far, float64 ``[kv_heads, group, positions]``."""
        q = self.turned()[0].reshape(KV_HEADS, self.heads.group, -1)
        scores = np.einsum("hgd,phd->hgp", q, keys[: self.position + 1].astype(np.float64))
        return scores / np.sqrt(self.heads.head_dim)

    def mixed(self, keys, values):
        """The output, float64, of a cache that holds the position."""
        scores = self.scores(keys)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hgp,phd->hgd", weights, values[: self.position + 1].astype(np.float64))
        return mixed.reshape(-1, self.heads.head_dim)


def error(got, expected):
    """Largest difference in a head, of its largest expected value; infinite for a NaN."""
    found = np.abs(got - expected).max(axis=-1) / np.abs(expected).max(axis=-1)
    return float("inf") if np.isnan(found).any() else float(found.max())


def appended(case, left):
    """The cache as it was, and the position's row: its key rounded once, and its value."""
    cached = case.cached.copy()
    cached[:, case.position] = left.k, case.qkv[-KV_HEADS:]
    return cached


def agrees(case, at, tolerance=TOLERANCE):
    left = case.run(at)
    for got, exact in zip((left.q, left.k), case.turned(), strict=True):
        assert error(got, exact) < 4e-7
    np.testing.assert_array_equal(left.cached, appended(case, left))
    assert error(left.mixed, case.mixed(*left.cached)) < tolerance


@pytest.mark.parametrize(
    "position", [0, 1, 15, 16, 17, 31, 127, 128, 129, 159, 160, 161, 300, 513, 1777]
)
def test_every_position_up_to_its_own_is_attended_to(place, position):
    heads = Heads(64, 3)
    agrees(Case.of(heads, position), attention_of(place, heads))


@pytest.mark.parametrize("group", [1, 3, 8, 12])
@pytest.mark.parametrize("head_dim", [8, 34, 64, 128, 160])
def test_every_shape_of_heads_is(place, head_dim, group):
    heads = Heads(head_dim, group)
    for position in (0, 1, 40, UNSPLIT + 140):
        agrees(Case.of(heads, position), attention_of(place, heads))


POISON = Family("poison", {"poison": struct(("words", np.int32))}, folder=Path())
POISONING = """
#include "common.cuh"
struct PoisonArgs { int words; };
extern "C" __global__ void __launch_bounds__(kThreads) poison(const PoisonArgs a) {
  extern __shared__ __align__(16) unsigned words[];
  volatile unsigned* const to = words;
  for (int i = threadIdx.x; i < a.words; i += kThreads) to[i] = 0xffffffffu;
}
"""


@pytest.mark.parametrize("heads", [Heads(128, 8), Heads(160, 1), Heads(64, 3)])
@pytest.mark.parametrize("position", [11, 128, 161, 268, 513, 1777])
def test_what_lies_in_shared_memory_is_not_seen(place, heads, position, tmp_path):
    """A launch before leaves NaN there, on every multiprocessor (the emulator always does)."""
    family = replace(POISON, folder=tmp_path)
    family.path.write_text(POISONING)
    program = place.program(Variant(), heads)
    nbytes = 96 << 10
    poison, at = program.kernel(family, "poison"), attention_of(place, heads)
    blocks = 4 * program.device.multiprocessors

    def attend_behind(launch):
        def both(**given):
            words = {"words": nbytes // 4}
            poison.launch(words, grid=(blocks,), stream=place.stream, shared=nbytes)
            launch(**given)

        return both

    at[0].attend = attend_behind(at[0].attend)
    agrees(Case.of(heads, position), at)


@pytest.mark.parametrize("head_dim", [2, 384])
def test_the_smallest_and_the_largest_head_are(place, head_dim):
    heads = Heads(head_dim, 2)
    agrees(Case.of(heads, 33), attention_of(place, heads))


@pytest.mark.parametrize("position", [140, 812])
def test_large_scores_are_as_exact_as_float32_can_hold_them(place, position):
    heads = Heads(128, 8)
    case = Case.of(heads, position)
    case.norms[0] *= 8
    case.cached[0, :position] *= 4
    largest = np.abs(case.scores(case.cached[0])[..., :position]).max()
    assert 80 < largest < 400
    # A weight is off by as much as its exponent, which float32 holds to 24 bits.
    agrees(case, attention_of(place, heads), largest * 2**-24)


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e4])
def test_queries_beyond_the_range_of_float16_are_met_in_their_limbs(place, scale):
    heads = Heads(128, 8)
    case = Case.of(heads, 200)
    opposite = min(1 / scale, 1e4)
    case.norms *= np.array([[scale], [opposite]], np.float32)
    case.cached[0, :200] *= np.float16(opposite)
    agrees(case, attention_of(place, heads))


def test_tiny_values_and_weights_keep_their_digits(place):
    heads = Heads(128, 8)
    case = Case.of(heads, 300)
    case.cached[1] *= np.float16(2.0**-12)
    case.qkv[-KV_HEADS:] *= np.float32(2.0**-12)
    # One position takes nearly all of the weight but has no value: what the others' weights, of
    # 1e-5, bring is the whole output of a head.
    case.cached[0, 7] = 0.6 * case.turned()[0].reshape(KV_HEADS, 8, -1)[:, 0]
    case.cached[1, 7] = 0
    agrees(case, attention_of(place, heads))


@pytest.mark.parametrize("position", [20, 140, UNSPLIT + 300])
def test_a_nan_reaches_the_outputs_that_depend_on_it_and_no_other(place, position):
    heads = Heads(64, 3)
    at = attention_of(place, heads)
    for where in (0, position - 1):
        key = Case.of(heads, position)
        key.cached[0, where, 1, 5] = np.nan
        found = np.isnan(key.run(at).mixed)
        assert found[3:].all()
        assert not found[:3].any()
        value = Case.of(heads, position)
        value.cached[1, where, 1, 5] = np.nan
        found = np.isnan(value.run(at).mixed)
        assert found[3:, 5].all()
        assert found.sum() == 3
    query = Case.of(heads, position)
    query.qkv[4, 9] = np.nan
    found = np.isnan(query.run(at).mixed)
    assert found[4].all()
    assert found.sum() == heads.head_dim
    own = Case.of(heads, position)
    own.qkv[-1, 9] = np.nan
    found = np.isnan(own.run(at).mixed)
    assert found[3:, 9].all()
    assert found.sum() == 3


@pytest.mark.parametrize("position", [60, UNSPLIT + 300])
def test_a_rerun_leaves_the_same_bits(place, position):
    heads = Heads(128, 8)
    at, case = attention_of(place, heads), Case.of(heads, position)
    once, again = case.run(at), case.run(at, times=2)
    assert once.mixed.tobytes() == again.mixed.tobytes()
    assert once.cached.tobytes() == again.cached.tobytes()


@pytest.mark.parametrize(
    ("limb", "without"),
    [
        ("{limbs.z, limbs.w}", "{limbs.z & 0, limbs.w & 0}"),
        (
            "limbs[1] = lower.y, limbs[2] = upper.x, limbs[3] = upper.y",
            "limbs[1] = lower.y & 0, limbs[2] = upper.x, limbs[3] = upper.y & 0",
        ),
    ],
)
def test_a_limb_that_is_left_out_is_noticed(place, tmp_path, monkeypatch, limb, without):
    for path in attention.FAMILY.folder.glob("*.cu*"):
        shutil.copy(path, tmp_path)
    source = (tmp_path / "attention.cu").read_text()
    assert source.count(limb) == 1
    (tmp_path / "attention.cu").write_text(source.replace(limb, without))
    heads = Heads(64, 3)
    monkeypatch.setattr(attention, "FAMILY", replace(attention.FAMILY, folder=tmp_path))
    at = attention_of(place, heads)
    case = Case.of(heads, 140)
    left = case.run(at)
    assert error(left.mixed, case.mixed(*left.cached)) > 10 * TOLERANCE


def test_stale_heads_are_cached_and_attended_to_alike(place):
    heads = Heads(64, 3)
    case = Case.of(heads, 1)
    left = case.run(attention_of(place, heads, plant="stale_kv"))
    np.testing.assert_array_equal(left.cached[:, 1], case.cached[:, 0])
    # Both positions hold the same value, so whatever they weigh that is the output.
    stale = np.repeat(case.cached[1, 0].astype(np.float64), heads.group, axis=0)
    assert error(left.mixed, stale) < TOLERANCE
