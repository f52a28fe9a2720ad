// The router: logits of all experts, softmax over them, top-k, renormalised. One launch: the block
// that arrives last chooses.
#include "dot.cuh"

#ifndef STABLE_TOP_K
#define STABLE_TOP_K 0.0f
#endif

struct RouteArgs {
  Matrix router;      // [experts, hidden]
  const float* x;     // [hidden]
  const float* norm;  // [hidden]: ffn_norm, applied on the way
  float* logits;      // [experts]
  unsigned* arrived;  // zero between launches
  int* ids;           // [top_k], in descending order of their logits, ties to the lower index
  float* weights;     // [top_k], in the same order; they sum to 1
  float* trace_norm;  // [hidden] or null
  float eps;
  int top_k;
};
static_assert(sizeof(RouteArgs) == ROUTE_ARGS_BYTES, "differs from kernels/router.py");

// A logit as an integer that ranks alike: NaN first, as it does for the reference's argmax (it must
// not pass unseen), then from large to small. 0 is no logit's.
__device__ inline unsigned rank_key(float logit) {
  if (isnan(logit)) return 0xffffffffu;
  const unsigned bits = __float_as_uint(logit + 0.0f);  // -0 ranks as 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The top_k experts of the largest keys, of equal ones the lower first. All threads: an expert's
// place is the number of those that come before it, which two neighbouring lanes count.
__device__ inline void rank_experts(const unsigned* keys, int experts, int top_k, int* ids) {
  const int odd = threadIdx.x & 1;
  for (int base = 0; base < experts; base += kThreads / 2) {
    const int e = base + threadIdx.x / 2;
    const unsigned key = e < experts ? keys[e] : 0;
    int before = 0;
#pragma unroll 8
    for (int other = odd; other < experts; other += 2) {
      before += keys[other] > key || (keys[other] == key && other < e);
    }
    before += __shfl_xor_sync(kAllLanes, before, 1);
    if (odd == 0 && e < experts && before < top_k) ids[before] = e;
  }
  __syncthreads();
}

// Among the experts within epsilon of the last place, the lower index wins: rounding below epsilon
// then moves no set. The places above are not touched.
__device__ inline void stabilise(const float* logits, int experts, int top_k, float edge, int* ids) {
  if (threadIdx.x != 0) return;
  int kept = 0;
  while (kept < top_k && logits[ids[kept]] > edge + STABLE_TOP_K) ++kept;
  for (int e = 0; e < experts && kept < top_k; ++e) {
    if (fabsf(logits[e] - edge) <= STABLE_TOP_K) ids[kept++] = e;
  }
}

#if SOFTMAX_F64
typedef double Wide;
__device__ inline double power(float logit, float most) { return exp(static_cast<double>(logit) - static_cast<double>(most)); }
#else
typedef float Wide;
__device__ inline float power(float logit, float most) { return expf(logit - most); }
#endif

// One warp weighs the ranked experts `ids` [top_k]; they and `logits` [experts] are in shared memory.
__device__ inline void weigh(const RouteArgs& a, const float* logits, int* ids) {
  const int experts = a.router.rows, lane = lane_id();
  const float most = logits[ids[0]];
  if (STABLE_TOP_K > 0 && lane == 0) stabilise(logits, experts, a.top_k, logits[ids[a.top_k - 1]], ids);
#ifdef PLANT_LAST_EXPERT_AT_TIE
  if (lane == 0) {
    int worst = 0;
    for (int e = 1; e < experts; ++e) worst = logits[e] <= logits[worst] ? e : worst;
    ids[a.top_k - 1] = worst;
  }
#endif
  __syncwarp();
  Wide sum = 0, chosen = 0;
  for (int e = lane; e < experts; e += 32) sum += power(logits[e], most);
  sum = warp_sum(sum);
  for (int slot = lane; slot < a.top_k; slot += 32) chosen += power(logits[ids[slot]], most) / sum;
  chosen = warp_sum(chosen);
#ifdef PLANT_UNNORMALISED_WEIGHTS
  chosen = 1;
#endif
  for (int slot = lane; slot < a.top_k; slot += 32) {
    a.ids[slot] = ids[slot];
#ifdef PLANT_UNIFORM_WEIGHTS
    a.weights[slot] = 1.0f / static_cast<float>(a.top_k);
#else
    a.weights[slot] = static_cast<float>(power(logits[ids[slot]], most) / sum / chosen);
#endif
  }
}

// Experts of a block: few, so that many multiprocessors read, and each warp all of its row at once.
constexpr int kExperts = 1;

extern "C" __global__ void __launch_bounds__(kThreads, 1) route(const RouteArgs a) {
  extern __shared__ __align__(16) uint8_t memory[];
  const int experts = a.router.rows, first = blockIdx.x * kExperts + warp_id();
  if (warp_id() < kExperts && first < experts) prefetch_rows(a.router, first, 1);
  const Input in = stage_input(a.x, a.router.columns, a.norm, a.eps, a.trace_norm, memory);
  for (int e = first; warp_id() < kExperts && e < experts; e += gridDim.x * kExperts) {
    const long long index[1] = {e};
    float out[1];
    dots<1>(a.router, index, in, out);
    if (lane_id() == 0) a.logits[e] = out[0];
  }
  if (!last_to_arrive(a.arrived, gridDim.x)) return;
  // The input is done with: its memory takes logits, keys and ids (kernels/router.py).
  float* logits = reinterpret_cast<float*>(memory);
  unsigned* keys = reinterpret_cast<unsigned*>(logits + experts);
  for (int e = threadIdx.x; e < experts; e += kThreads) {
    const float logit = __ldcg(a.logits + e);
    logits[e] = logit;
    keys[e] = rank_key(logit);
  }
  __syncthreads();
  int* ids = reinterpret_cast<int*>(keys + experts);
  rank_experts(keys, experts, a.top_k, ids);
  if (warp_id() == 0) weigh(a, logits, ids);
}
