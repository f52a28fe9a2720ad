"""The choice of experts beside a sort: compiled for this CPU, and on a GPU where there is one."""

from types import SimpleNamespace

import numpy as np
import pytest

from kernels import experts
from kernels.experts import CHOOSING, Choosing
from kernels.family import POINTER, Family, Heads, Variant, struct

# As the kernels over plain rows choose, and those over tiles: by so many threads.
THREADS = (256, 512)
CHOSEN = struct(
    ("choosing", CHOOSING),
    ("ids", POINTER),
    ("weights", POINTER),
    ("used", POINTER),
    ("scale", np.float32),
    ("padding", np.int32),
)
SOURCE = """
#include "choose.cuh"
struct ChosenArgs {
  Choosing choosing;
  int* ids;
  float* weights;
  int* used;  // bytes of shared memory
  float scale;
  int padding;
};
template <int THREADS>
__device__ inline void all(const ChosenArgs& a, uint8_t* memory) {
  take_over();
  const Chosen chosen = choose<THREADS>(a.choosing, memory);
  if (whole_warp_id() == 0) {
    weigh(chosen, a.scale);
    __threadfence_block();
    __syncwarp();
    read_weights(chosen);
  }
  __syncthreads();
  const int top_k = a.choosing.top_k;
  for (int slot = threadIdx.x; slot < top_k; slot += THREADS) {
    a.ids[slot] = chosen.ids[slot];
    a.weights[slot] = chosen.weights()[slot];
  }
  if (threadIdx.x == 0) *a.used = reinterpret_cast<uint8_t*>(chosen.weights() + top_k) - memory;
}
"""
KERNEL = """
extern "C" __global__ void __launch_bounds__({0}) by_{0}(const ChosenArgs a) {{
  extern __shared__ __align__(16) uint8_t memory[];
  static_assert(sizeof(a) == BY_{0}_ARGS_BYTES, "differs from this test");
  all<{0}>(a, memory);
}}
"""


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Kernels that choose and do nothing else."""
    made = Family(
        "chosen",
        {f"by_{threads}": CHOSEN for threads in THREADS},
        ("softmax", "top_k_epsilon"),
        experts.FAMILY.plants,
        folder=tmp_path_factory.mktemp("chosen"),
    )
    made.path.write_text(SOURCE + "".join(KERNEL.format(threads) for threads in THREADS))
    return made


@pytest.fixture(params=THREADS)
def choose(request, family, place):
    """Choose by so many threads: ids, weights, and both as they are traced."""

    def chosen(logits, top_k, variant=None, scale=1.0):
        logits = np.ascontiguousarray(logits, np.float32)
        left = {
            "ids": np.full(top_k, -1, np.int32),
            "weights": np.full(top_k, -1, np.float32),
            "trace_ids": np.full(top_k, -1, np.int32),
            "trace_weights": np.full(top_k, -1, np.float32),
            "handed": np.full(top_k, -1, np.float32),
            "used": np.zeros(1, np.int32),
        }
        at = {name: place.put(array) for name, array in left.items()}
        given = Choosing(
            place.put(logits),
            at["handed"],
            len(logits),
            top_k,
            trace_ids=at["trace_ids"],
            trace_weights=at["trace_weights"],
        )
        program = place.program(variant or Variant(), Heads())
        program.kernel(family, f"by_{request.param}").launch(
            {
                "choosing": given.argument,
                "scale": scale,
                **{name: at[name] for name in ("ids", "weights", "used")},
            },
            grid=(1,),
            threads=request.param,
            stream=place.stream,
            shared=given.shared_bytes,
        )
        for name, array in left.items():
            place.get(at[name], array)
        found = SimpleNamespace(**left)
        assert given.shared_bytes - 16 < int(found.used[0]) <= given.shared_bytes
        np.testing.assert_array_equal(found.ids, found.trace_ids)
        np.testing.assert_array_equal(found.weights, found.trace_weights)
        np.testing.assert_array_equal(found.weights, found.handed)
        return found

    return chosen


def ranked(logits):
    """Indices, NaN first, then from large to small, ties to the lower."""
    keys = [(not np.isnan(x), 0.0 if np.isnan(x) else -float(x), e) for e, x in enumerate(logits)]
    return [key[2] for key in sorted(keys)]


def softmax(logits):
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()


def agrees(found, logits, tolerance=3e-7):
    top_k = len(found.ids)
    assert list(found.ids) == ranked(logits)[:top_k]
    expected = softmax(np.asarray(logits, np.float32)[found.ids])
    np.testing.assert_allclose(found.weights, expected, rtol=tolerance * 10, atol=tolerance)
    assert abs(float(found.weights.astype(np.float64).sum()) - 1) < 1e-6


# Between 73 and 128, with up to 8 chosen, one warp ranks.
@pytest.mark.parametrize(
    "experts", [1, 2, 6, 15, 16, 17, 63, 72, 73, 74, 75, 76, 100, 127, 128, 129, 257, 600]
)
def test_any_number_of_experts_is_ranked(choose, experts):
    rng = np.random.default_rng(experts)
    for top_k in sorted({1, min(7, experts), min(8, experts), min(40, experts), experts}):
        logits = 3 * rng.standard_normal(experts)
        agrees(choose(logits, top_k), logits.astype(np.float32))


@pytest.mark.parametrize("experts", [5, 16, 75, 128, 130])
def test_ties_go_to_the_lower_index(choose, experts):
    rng = np.random.default_rng(experts)
    for top_k in (1, 3, 5, min(8, experts)):
        for logits in (
            np.zeros(experts),
            np.full(experts, -7.5),
            rng.integers(0, 3, experts).astype(float),
            np.where(rng.integers(0, 2, experts), 0.0, -0.0),  # which are equal
        ):
            found = choose(logits, top_k)
            agrees(found, logits)


def test_the_largest_numbers_of_either_sign_rank_as_they_should(choose):
    most = float(np.finfo(np.float32).max)
    logits = np.array([-most, most, -1e-45, 1e-45, 0, -1, 1, -most / 2, most / 2, 0])
    assert list(choose(logits, 10).ids) == [1, 8, 6, 3, 4, 9, 2, 5, 7, 0]


@pytest.mark.parametrize("experts", [100, 130])
@pytest.mark.parametrize("where", [[0], [9], [-1], [3, 7], [1, 2, 3, 4, 5]])
def test_nan_comes_first_and_reaches_every_weight(choose, where, experts):
    logits = np.random.default_rng(0).standard_normal(experts)
    where = [e % experts for e in where]
    logits[where] = np.nan
    logits[50] = np.inf
    logits[51] = -np.inf
    found = choose(logits, 4)
    assert list(found.ids) == ranked(logits)[:4]
    assert where[:4] == list(found.ids)[: len(where)]
    assert np.isnan(found.weights).all()


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF])
def test_every_nan_is_one(choose, bits):
    logits = np.arange(20, dtype=np.float32)
    logits.view(np.uint32)[13] = bits
    assert list(choose(logits, 3).ids) == [13, 19, 18]


def stable(logits, top_k, epsilon):
    """Those clearly above the last place, then of those near it the lower indices."""
    logits, epsilon = np.asarray(logits, np.float32), np.float32(epsilon)
    order = ranked(logits)[:top_k]
    edge = logits[order[-1]]
    above = [e for e in order if logits[e] > edge + epsilon]
    near = [e for e in range(len(logits)) if abs(logits[e] - edge) <= epsilon]
    return [*above, *near][:top_k]


def test_with_an_epsilon_experts_near_the_last_place_are_taken_by_index(choose):
    rng = np.random.default_rng(1)
    variant = Variant(top_k_epsilon=0.25)
    moved = 0
    for _ in range(20):
        logits = rng.standard_normal(50).astype(np.float32)
        found = choose(logits, 8, variant)
        expected = stable(logits, 8, 0.25)
        assert list(found.ids) == expected
        np.testing.assert_allclose(found.weights, softmax(logits[expected]), atol=1e-6)
        moved += set(expected) != set(ranked(logits)[:8])
    assert moved > 5


def test_with_an_epsilon_the_first_place_may_be_the_smallest_and_weights_are_finite(choose):
    logits = np.array([0.0, 95.0, 95.1, 95.2])
    found = choose(logits, 3, Variant(top_k_epsilon=200.0))
    assert list(found.ids) == [0, 1, 2]
    assert np.isfinite(found.weights).all()
    assert abs(float(found.weights.sum()) - 1) < 1e-6


@pytest.mark.parametrize("experts", [20, 128])
def test_a_scale_that_logits_lack_changes_weights_and_not_the_choice(choose, experts):
    logits = np.random.default_rng(4).standard_normal(experts).astype(np.float32)
    bare, scaled = choose(logits, 8), choose(logits, 8, scale=0.25)
    assert list(bare.ids) == list(scaled.ids)
    np.testing.assert_allclose(scaled.weights, softmax(logits[bare.ids] / 4), atol=3e-7)
    assert np.abs(scaled.weights - bare.weights).max() > 0.01


def test_a_float64_softmax_is_rounded_once(choose):
    logits = 4 * np.random.default_rng(2).standard_normal(128).astype(np.float32)
    found = choose(logits, 8, Variant(softmax="f64"))
    expected = softmax(logits[ranked(logits)[:8]]).astype(np.float32)
    np.testing.assert_array_equal(found.weights, expected)


def test_what_is_planted_changes_the_choice(choose):
    logits = np.random.default_rng(3).standard_normal(130).astype(np.float32)
    logits[[4, 90]] = logits.min() - 1
    clean = choose(logits, 6)
    uniform = choose(logits, 6, Variant(plant="uniform_weights"))
    assert (uniform.weights == np.float32(1 / 6)).all()
    assert list(uniform.ids) == list(clean.ids)
    whole = choose(logits, 6, Variant(plant="unnormalised_weights"))
    np.testing.assert_allclose(whole.weights, softmax(logits)[whole.ids], rtol=1e-5)
    last = choose(logits, 6, Variant(plant="last_expert_at_tie"))
    assert list(last.ids) == [*clean.ids[:5], 90]
