// Which experts, and with what weights: the top-k of the router's logits, renormalised.
//
// Every block that reads experts' matrices chooses for itself: so no kernel has to wait for a last
// block that chooses for all, and the choice is the same everywhere, as the logits are.
#pragma once

#include "common.cuh"

#ifndef STABLE_TOP_K
#define STABLE_TOP_K 0.0f
#endif

struct Choosing {
  const float* logits;   // [experts]: the router's
  int* trace_ids;        // [top_k] or null; as `Chosen` has them
  float* trace_weights;  // [top_k] or null
  int experts, top_k;
};

constexpr int kSharing = 4;                 // neighbouring lanes that count for one expert
constexpr int kAtOnce = 4;                  // keys that a lane reads at once
constexpr int kRound = kSharing * kAtOnce;  // experts are filled up to a multiple of it

__host__ __device__ constexpr int filled_up(int experts) { return (experts + kRound - 1) / kRound * kRound; }

// Bytes of shared memory that choosing takes, a multiple of 16; kernels/launch.py computes the same.
__host__ __device__ constexpr int choose_bytes(int experts, int top_k) {
  return (8 * filled_up(experts) + 8 * top_k + 15) / 16 * 16;
}

// The choice, in shared memory. One pointer, as registers are scarce where it is used.
struct Chosen {
  const Choosing& choosing;
  int* ids;  // [top_k], in descending order of their logits, ties to the lower index

  __device__ Chosen(const Choosing& c, void* memory)
      : choosing(c), ids(static_cast<int*>(memory) + 2 * filled_up(c.experts)) {}

  // Of the ids, in the same order; they sum to 1 (`weigh`).
  __device__ float* weights() const { return reinterpret_cast<float*>(ids + choosing.top_k); }
  // [filled_up(experts)], and as integers that rank alike.
  __device__ float* logits() const { return reinterpret_cast<float*>(ids - filled_up(choosing.experts)); }
  __device__ unsigned* keys() const { return reinterpret_cast<unsigned*>(ids - 2 * filled_up(choosing.experts)); }
};

// A logit as an integer that ranks alike: NaN first, as it does for the reference's argmax (it must
// not pass unseen), then from large to small. 0 is no logit's.
__device__ inline unsigned rank_key(float logit) {
  if (isnan(logit)) return 0xffffffffu;
  const unsigned bits = __float_as_uint(logit + 0.0f);  // -0 ranks as 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The top_k experts of the largest keys, of equal ones the lower first. All threads: an expert's
// place is the number of those that come before it.
template <int THREADS>
__device__ inline void rank_experts(const unsigned* keys, int experts, int top_k, int* ids) {
  const int part = threadIdx.x % kSharing, fours = filled_up(experts) / kAtOnce;
#pragma unroll 1
  for (int base = 0; base < experts; base += THREADS / kSharing) {
    const int e = base + threadIdx.x / kSharing;
    const bool exists = e < experts;
    const unsigned key = exists ? keys[e] : 0xffffffffu;
    int before = 0;
#pragma unroll 2
    for (int four = part; four < fours; four += kSharing) {
      const uint4 others = reinterpret_cast<const uint4*>(keys)[four];
      const unsigned limit = key - (four < e / kAtOnce);  // lower ones come before at a tie
      before += (others.x > limit) + (others.y > limit) + (others.z > limit) + (others.w > limit);
    }
    before += __shfl_xor_sync(kAllLanes, before, 1);
    before += __shfl_xor_sync(kAllLanes, before, 2);
    if (part != 0 || !exists) continue;
    const uint4 own = reinterpret_cast<const uint4*>(keys)[e / kAtOnce];
    const int lower = e % kAtOnce;
    before += (lower > 0 && own.x == key) + (lower > 1 && own.y == key) + (lower > 2 && own.z == key);
    if (before < top_k) ids[before] = e;
  }
}

// Among the experts within epsilon of the last place, the lower index wins: rounding below epsilon
// then moves no set. The places above are not touched.
__device__ inline void stabilise(const float* logits, int experts, int top_k, float edge, int* ids) {
  int kept = 0;
  while (kept < top_k && logits[ids[kept]] > edge + STABLE_TOP_K) ++kept;
  for (int e = 0; e < experts && kept < top_k; ++e) {
    if (fabsf(logits[e] - edge) <= STABLE_TOP_K) ids[kept++] = e;
  }
}

// The whole block, of THREADS threads: the ids, for all of them to read. The logits are there.
template <int THREADS>
__device__ inline Chosen choose(const Choosing& c, void* memory) {
  const Chosen chosen(c, memory);
  float* const logits = chosen.logits();
  unsigned* const keys = chosen.keys();
#pragma unroll 1
  for (int e = threadIdx.x; e < filled_up(c.experts); e += THREADS) {
    const float logit = e < c.experts ? __ldcg(c.logits + e) : 0.0f;
    logits[e] = logit;
    keys[e] = e < c.experts ? rank_key(logit) : 0u;
  }
  __syncthreads();
  rank_experts<THREADS>(keys, c.experts, c.top_k, chosen.ids);
  __syncthreads();
  if (STABLE_TOP_K > 0) {
    if (threadIdx.x == 0) stabilise(logits, c.experts, c.top_k, logits[chosen.ids[c.top_k - 1]], chosen.ids);
    __syncthreads();
  }
#ifdef PLANT_LAST_EXPERT_AT_TIE
  if (threadIdx.x == 0) {
    int worst = 0;
    for (int e = 1; e < c.experts; ++e) worst = logits[e] <= logits[worst] ? e : worst;
    chosen.ids[c.top_k - 1] = worst;
  }
  __syncthreads();
#endif
  return chosen;
}

#if SOFTMAX_F64
typedef double Wide;
__device__ inline double power(float logit, float most) { return exp(static_cast<double>(logit) - static_cast<double>(most)); }
#else
typedef float Wide;
__device__ inline float power(float logit, float most) { return expf(logit - most); }
#endif

// One warp: the weights, visible to the block behind its next barrier. The first block's are traced.
// The softmax's own denominator is in all of them, and so in none once they are renormalised.
__device__ inline void weigh(const Chosen& chosen) {
  const Choosing& c = chosen.choosing;
  const float* logits = chosen.logits();
  float most = logits[chosen.ids[0]];
  if (STABLE_TOP_K > 0) {  // the first place need not be the largest's
    for (int slot = 1; slot < c.top_k; ++slot) most = fmaxf(most, logits[chosen.ids[slot]]);
  }
  Wide sum = 0;
#ifdef PLANT_UNNORMALISED_WEIGHTS
  for (int e = lane_id(); e < c.experts; e += 32) sum += power(logits[e], most);
#else
#pragma unroll 1
  for (int slot = lane_id(); slot < c.top_k; slot += 32) sum += power(logits[chosen.ids[slot]], most);
#endif
  sum = warp_sum(sum);
#pragma unroll 1
  for (int slot = lane_id(); slot < c.top_k; slot += 32) {
    const int id = chosen.ids[slot];
#ifdef PLANT_UNIFORM_WEIGHTS
    const float weight = 1.0f / static_cast<float>(c.top_k);
#else
    const float weight = static_cast<float>(power(logits[id], most) / sum);
#endif
    chosen.weights()[slot] = weight;
    if (blockIdx.x != 0 || c.trace_ids == nullptr) continue;
    c.trace_ids[slot] = id;
    c.trace_weights[slot] = weight;
  }
}
