// Which experts, and with what weights: the top-k of the router's logits, renormalised.
//
// Every block that reads experts' matrices chooses for itself: so no kernel has to wait for a last
// block that chooses for all, and the choice is the same everywhere, as the logits are.
#pragma once

#include "announce.cuh"

#ifndef STABLE_TOP_K
#define STABLE_TOP_K 0.0f
#endif

struct Choosing {
  const float* logits;   // [experts]: the router's, announced or not
  float* weights;        // [top_k]: gate_up leaves them to down
  int* trace_ids;        // [top_k] or null; as `Chosen` has them
  float* trace_weights;  // [top_k] or null
  int experts, top_k;
  int announced;         // whether the logits are announced, less a scale (announce.cuh)
  int padding;
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

// The same by one warp, which needs no barrier and leaves the multiprocessor to the kernel that still runs
// there: of 73 to 128 experts, four a lane, up to 8. They can only be of the 8 lanes whose largest keys are
// the largest, so that two counts among 32 do. Overwrites the keys.
constexpr int kFewest = 72, kMost = 128, kMostChosen = 8;

// A warp, of which lane i has the key keys[i]: how many of the first `count` (a multiple of four) come
// before it, of equal ones the lower.
__device__ inline int place_of(unsigned key, const unsigned* keys, int count) {
  const int own = lane_id() / 4;
  int before = 0;
#pragma unroll 4
  for (int four = 0; four < count / 4; ++four) {
    const uint4 others = reinterpret_cast<const uint4*>(keys)[four];
    const unsigned limit = key - (four < own);  // lower ones come before at a tie
    before += (others.x > limit) + (others.y > limit) + (others.z > limit) + (others.w > limit);
  }
  const uint4 near = reinterpret_cast<const uint4*>(keys)[own];
  const int lower = lane_id() % 4;
  return before + (lower > 0 && near.x == key) + (lower > 1 && near.y == key) + (lower > 2 && near.z == key);
}

__device__ inline void rank_by_warp(unsigned* keys, int experts, int top_k, int* ids) {
  unsigned* const largest = keys;          // [32], of a lane
  unsigned* const candidates = keys + 32;  // [8, 4]
  unsigned* const firsts = keys + 64;      // [8]: the expert of each four's first
  const uint4 own = 4 * lane_id() < filled_up(experts) ? reinterpret_cast<const uint4*>(keys)[lane_id()] : uint4{};
  const unsigned most = max(max(own.x, own.y), max(own.z, own.w));
  __syncwarp();
  largest[lane_id()] = most;
  __syncwarp();
  const bool chosen = most != 0 && place_of(most, largest, 32) < top_k;
  const unsigned lanes = __ballot_sync(kAllLanes, chosen);
  if (chosen) {
    const int place = __popc(lanes & ((1u << lane_id()) - 1));  // in the order of the experts: so are ties
    reinterpret_cast<uint4*>(candidates)[place] = own;
    firsts[place] = 4 * lane_id();
  }
  __syncwarp();
  const unsigned key = lane_id() < 4 * top_k ? candidates[lane_id()] : 0;
  const int place = place_of(key, candidates, 4 * top_k);
  if (key != 0 && place < top_k) ids[place] = firsts[lane_id() / 4] + lane_id() % 4;
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

// The whole block, of THREADS threads: the ids, for all of them to read.
template <int THREADS>
__device__ inline Chosen choose(const Choosing& c, void* memory) {
  const Chosen chosen(c, memory);
  float* const logits = chosen.logits();
  unsigned* const keys = chosen.keys();
  const bool few = c.experts > kFewest && c.experts <= kMost && c.top_k <= kMostChosen;
  const int readers = few ? 32 : THREADS;
#pragma unroll 1
  for (int e = 4 * threadIdx.x; threadIdx.x < readers && e < filled_up(c.experts); e += 4 * readers) {
    const int left = c.experts - e;
    const float4 four = left > 0 ? announced(c.logits + e, left) : float4{};
    *reinterpret_cast<float4*>(logits + e) = four;
    *reinterpret_cast<uint4*>(keys + e) = {left > 0 ? rank_key(four.x) : 0, left > 1 ? rank_key(four.y) : 0,
                                           left > 2 ? rank_key(four.z) : 0, left > 3 ? rank_key(four.w) : 0};
  }
  if (few) {
    __syncwarp();
    if (whole_warp_id() == 0) rank_by_warp(keys, c.experts, c.top_k, chosen.ids);
  } else {
    __syncthreads();
    rank_experts<THREADS>(keys, c.experts, c.top_k, chosen.ids);
  }
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

// One warp: the weights, for the next kernel, of logits that are `scale` times those read. The softmax's
// own denominator is in all of them, and so in none once they are renormalised.
__device__ inline void weigh(const Chosen& chosen, float scale) {
  const Choosing& c = chosen.choosing;
  const auto logit = [&](int e) { return chosen.logits()[e] * scale; };
  float most = logit(chosen.ids[0]);
  if (STABLE_TOP_K > 0) {  // the first place need not be the largest's
    for (int slot = 1; slot < c.top_k; ++slot) most = fmaxf(most, logit(chosen.ids[slot]));
  }
  Wide sum = 0;
#ifdef PLANT_UNNORMALISED_WEIGHTS
  for (int e = lane_id(); e < c.experts; e += 32) sum += power(logit(e), most);
#else
#pragma unroll 1
  for (int slot = lane_id(); slot < c.top_k; slot += 32) sum += power(logit(chosen.ids[slot]), most);
#endif
  sum = warp_sum(sum);
#pragma unroll 1
  for (int slot = lane_id(); slot < c.top_k; slot += 32) {
    const int id = chosen.ids[slot];
#ifdef PLANT_UNIFORM_WEIGHTS
    const float weight = 1.0f / static_cast<float>(c.top_k);
#else
    const float weight = static_cast<float>(power(logit(id), most) / sum);
#endif
    c.weights[slot] = weight;
    if (c.trace_ids == nullptr) continue;
    c.trace_ids[slot] = id;
    c.trace_weights[slot] = weight;
  }
}

// One warp, behind the end of the kernel that weighed: the weights, for the block to read behind its next
// barrier.
__device__ inline void read_weights(const Chosen& chosen) {
#pragma unroll 1
  for (int slot = lane_id(); slot < chosen.choosing.top_k; slot += 32) {
    chosen.weights()[slot] = __ldcg(chosen.choosing.weights + slot);
  }
}
