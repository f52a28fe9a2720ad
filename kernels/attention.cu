// Heads: normed, rotated, appended to the cache; then attention over the cache, split over
// positions. HEAD_DIM and GROUP (query heads that share a key-value head) are compiled in.
//
// The cache is f16, [layers, capacity, kv_heads, head_dim], keys as after RoPE.
#include "common.cuh"

#ifndef HEAD_DIM
#error "HEAD_DIM and GROUP are compiled in"
#endif

constexpr int kHalf = HEAD_DIM / 2;

// -- norm, rotate, append ---------------------------------------------------------------------------

struct AppendArgs {
  const float* qkv;       // [heads + 2 kv_heads, head_dim]
  const float* q_norm;    // [head_dim]
  const float* k_norm;    // [head_dim]
  const float* rotation;  // [2, 2, head_dim / 2] (kernels/embedding.cu)
  const State* state;
  float* q;               // [heads, head_dim]
  float* k;               // [kv_heads, head_dim], or null: traced only, the cache rounds it
  __half* keys;           // this layer's, [capacity, kv_heads, head_dim]
  __half* values;
  int heads, kv_heads;
  float eps;
  int padding;
};
static_assert(sizeof(AppendArgs) == APPEND_ARGS_BYTES, "differs from kernels/attention.py");

// One warp a head: queries, then keys, then values.
extern "C" __global__ void __launch_bounds__(32) append(const AppendArgs a) {
  take_over();
  const int head = blockIdx.x, position = a.state->position;
  const float* x = a.qkv + head * HEAD_DIM;
  const int row = a.kv_heads * HEAD_DIM;
  if (head >= a.heads + a.kv_heads) {
    __half* to = a.values + static_cast<long long>(position) * row + (head - a.heads - a.kv_heads) * HEAD_DIM;
    for (int d = threadIdx.x; d < HEAD_DIM; d += 32) {
#ifdef PLANT_STALE_KV
      if (position == 1) { to[d] = to[d - row]; continue; }
#endif
      to[d] = __float2half_rn(x[d]);
    }
    return;
  }
  const bool key = head >= a.heads;
  double sum = 0;
  for (int d = threadIdx.x; d < HEAD_DIM; d += 32) {
    sum = fma(static_cast<double>(x[d]), static_cast<double>(x[d]), sum);
  }
  const double mean = warp_sum(sum) / HEAD_DIM;
  [[maybe_unused]] const float* norm = key ? a.k_norm : a.q_norm;
  [[maybe_unused]] const float scale = static_cast<float>(1.0 / sqrt(mean + static_cast<double>(a.eps)));
  const float* cosines = a.rotation + (key ? HEAD_DIM : 0);
  const float* sines = cosines + kHalf;
  for (int i = threadIdx.x; i < kHalf; i += 32) {
#ifdef PLANT_ROPE_INTERLEAVED
    const int low = 2 * i, high = 2 * i + 1;
#else
    const int low = i, high = i + kHalf;  // NeoX pairing
#endif
#ifdef PLANT_NO_QK_NORM
    const float u = x[low], v = x[high];
#else
    const float u = x[low] * scale * norm[low], v = x[high] * scale * norm[high];
#endif
    const float turned[2] = {u * cosines[i] - v * sines[i], v * cosines[i] + u * sines[i]};
    const int at[2] = {low, high};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (!key) {
        a.q[head * HEAD_DIM + at[j]] = turned[j];
        continue;
      }
      const int d = (head - a.heads) * HEAD_DIM + at[j];
      if (a.k != nullptr) a.k[d] = turned[j];
      __half* to = a.keys + static_cast<long long>(position) * row + d;
#ifdef PLANT_STALE_KV
      if (position == 1) { *to = to[-row]; continue; }
#endif
      *to = __float2half_rn(turned[j]);
    }
  }
}

// -- attention -----------------------------------------------------------------------------------------
//
// A block takes a chunk of positions, a warp every eighth batch of it, with a running softmax of its
// own (flash decoding). Warps meet in shared memory, blocks in the one that arrives last. How many
// chunks there are depends on the position alone, so a rerun adds in the same order.

constexpr int kHeads = GROUP >= 8 ? 8 : GROUP > 4 ? 8 : GROUP > 2 ? 4 : GROUP;  // of a block
constexpr int kBatch = 4;                       // positions whose keys a warp loads at a time
constexpr int kScores = kHeads * kBatch;        // at most one a lane
constexpr int kSpread = 32 / kScores;           // lanes that hold the same score
constexpr int kPairs = (HEAD_DIM + 63) / 64;    // pairs of values of a head that a lane holds
constexpr int kUnsplit = 32;                   // positions up to which merging blocks would cost more
constexpr int kRecord = HEAD_DIM + 2;           // sums of values, then the largest score, then the
                                                // sum of the weights
static_assert(kScores <= 32, "a lane holds one score");

struct AttendArgs {
  const float* q;         // [heads, head_dim]
  const __half* keys;     // this layer's, [capacity, kv_heads, head_dim]
  const __half* values;
  const State* state;
  float* partial;         // [kv_heads, subgroups, splits, kHeads, kRecord]
  unsigned* arrived;      // [kv_heads, subgroups], zero between launches
  float* mixed;           // [heads, head_dim]
  int kv_heads;
  int padding;
};
static_assert(sizeof(AttendArgs) == ATTEND_ARGS_BYTES, "differs from kernels/attention.py");

// Sums each of N values over the warp, in log2(N) halvings: lane l receives the sum of value
// l / (32 / N). Every index is a constant, or the values would not stay in registers.
template <int N, int OFFSET = 16>
__device__ inline float sum_each(const float (&value)[N]) {
  if constexpr (N == 1) {
    float sum = value[0];
#pragma unroll
    for (int offset = OFFSET; offset > 0; offset >>= 1) sum += __shfl_xor_sync(kAllLanes, sum, offset);
    return sum;
  } else {
    const bool upper = lane_id() & OFFSET;
    float half[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const float send = upper ? value[i] : value[i + N / 2];
      const float keep = upper ? value[i + N / 2] : value[i];
      half[i] = keep + __shfl_xor_sync(kAllLanes, send, OFFSET);
    }
    return sum_each<N / 2, OFFSET / 2>(half);
  }
}

// What a warp has seen: sums of values [kHeads][2 * kPairs] (all heads, this lane's columns), and of
// the one head whose scores this lane holds the largest score and the sum of its weights.
struct Running {
  float2 sum[kHeads][kPairs];
  float largest, weight;
};

// Keys or values of kBatch positions from `from` on, this lane's columns; `left` positions exist.
__device__ inline void read_batch(const __half* from, int row, int left, __half2 (&into)[kBatch][kPairs]) {
#pragma unroll
  for (int j = 0; j < kBatch; ++j) {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int d = 64 * pair + 2 * lane_id();
      const bool there = j < left && d < HEAD_DIM;
      into[j][pair] = there ? *reinterpret_cast<const __half2*>(from + static_cast<long long>(j) * row + d)
                            : __half2half2(__ushort_as_half(0));
    }
  }
}

__device__ inline void attend_batch(const float (*q)[HEAD_DIM], const __half2 (&key)[kBatch][kPairs],
                                    const __half2 (&value)[kBatch][kPairs], int left, Running& so_far) {
  float score[kScores] = {};
#pragma unroll
  for (int g = 0; g < kHeads; ++g) {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int d = 64 * pair + 2 * lane_id();
      if (d >= HEAD_DIM) continue;
      const float2 wanted = *reinterpret_cast<const float2*>(&q[g][d]);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const float2 k = __half22float2(key[j][pair]);
        score[j * kHeads + g] = fmaf(k.y, wanted.y, fmaf(k.x, wanted.x, score[j * kHeads + g]));
      }
    }
  }
  const int position = lane_id() / kSpread / kHeads;
  const float summed = sum_each<kScores>(score);
  const float mine = position < left ? summed : -INFINITY;
  float most = mine;
#pragma unroll
  for (int offset = 16; offset >= kHeads * kSpread; offset /= 2) {
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, offset));
  }
  most = fmaxf(most, so_far.largest);
  // A NaN score must stay one: fmaxf passes it by, the subtraction does not.
  const float weight = position < left ? expf(mine - most) : 0.0f;
  const float rescale = most == so_far.largest ? 1.0f : expf(so_far.largest - most);
  so_far.largest = most;
  so_far.weight = so_far.weight * rescale + weight;
#pragma unroll
  for (int g = 0; g < kHeads; ++g) {
    const float shrunk = __shfl_sync(kAllLanes, rescale, g * kSpread);
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) so_far.sum[g][pair].x *= shrunk, so_far.sum[g][pair].y *= shrunk;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const float share = __shfl_sync(kAllLanes, weight, (j * kHeads + g) * kSpread);
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const float2 v = __half22float2(value[j][pair]);
        so_far.sum[g][pair].x = fmaf(share, v.x, so_far.sum[g][pair].x);
        so_far.sum[g][pair].y = fmaf(share, v.y, so_far.sum[g][pair].y);
      }
    }
  }
}

// A record's value: other blocks' lie in global memory, and are read past the L1; a warp's own in
// shared memory.
template <bool GLOBAL>
__device__ inline float read_record(const float* at) {
  return GLOBAL ? __ldcg(at) : *at;
}

// Shares by which `count` records of each head are to be added up, and what all weights come to.
// `shares` is [kHeads][count] in shared memory; a warp a head.
template <bool GLOBAL>
__device__ inline void weigh_records(const float* records, int count, float* shares, float* largest, float* weight) {
  for (int g = warp_id(); g < kHeads; g += kWarps) {
    float most = -INFINITY, sum = 0;
    for (int s = lane_id(); s < count; s += 32) {
      most = fmaxf(most, read_record<GLOBAL>(records + (s * kHeads + g) * kRecord + HEAD_DIM));
    }
    most = warp_max(most);
    for (int s = lane_id(); s < count; s += 32) {
      const float* record = records + (s * kHeads + g) * kRecord + HEAD_DIM;
      const float there = read_record<GLOBAL>(record);
      // A warp that saw no position has -inf and no weight.
      const float share = there == most ? 1.0f : expf(there - most);
      shares[g * count + s] = share;
      sum = fmaf(share, read_record<GLOBAL>(record + 1), sum);
    }
    sum = warp_sum(sum);
    if (lane_id() == 0) largest[g] = most, weight[g] = sum;
  }
  __syncthreads();
}

constexpr int kOutputs = (kHeads * HEAD_DIM + kThreads - 1) / kThreads;  // of a thread

// Adds up `count` records, in order; `store(g, d, sum)` receives the sums.
template <bool GLOBAL, class Store>
__device__ inline void add_records(const float* records, int count, const float* shares, Store store) {
  float sum[kOutputs] = {};
#pragma unroll 4
  for (int s = 0; s < count; ++s) {
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      const int item = threadIdx.x + i * kThreads, g = item / HEAD_DIM, d = item % HEAD_DIM;
      if (g < kHeads) sum[i] = fmaf(shares[g * count + s], read_record<GLOBAL>(records + (s * kHeads + g) * kRecord + d), sum[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    const int item = threadIdx.x + i * kThreads;
    if (item < kHeads * HEAD_DIM) store(item / HEAD_DIM, item % HEAD_DIM, sum[i]);
  }
}

// Block (split, kv head, subgroup of its query heads). Shared memory (kernels/attention.py): the
// warps' records, then shares of max(kWarps, splits) records.
extern "C" __global__ void __launch_bounds__(kThreads, 1) attend(const AttendArgs a) {
  extern __shared__ __align__(16) float shared[];
  __shared__ __align__(8) float q[kHeads][HEAD_DIM];
  __shared__ float largest[kHeads], weight[kHeads];
  float* shares = shared + kWarps * kHeads * kRecord;
  take_over();
  const int positions = a.state->position + 1;
  const int least = kWarps * kBatch;  // a batch for each warp
  const int per_split = (positions + gridDim.x - 1) / gridDim.x;
  const int chunk = positions <= kUnsplit ? kUnsplit : (per_split + least - 1) / least * least;
  const int splits = (positions + chunk - 1) / chunk;
  if (blockIdx.x >= splits) return;

  const int first_head = blockIdx.y * GROUP + blockIdx.z * kHeads;
  const int heads = min(kHeads, GROUP - static_cast<int>(blockIdx.z) * kHeads);
  const float scale = rsqrtf(static_cast<float>(HEAD_DIM));
  for (int item = threadIdx.x; item < kHeads * HEAD_DIM; item += kThreads) {
    q[item / HEAD_DIM][item % HEAD_DIM] =
        item / HEAD_DIM < heads ? scale * a.q[first_head * HEAD_DIM + item] : 0.0f;
  }
  __syncthreads();

  const int row = a.kv_heads * HEAD_DIM, end = min(positions, static_cast<int>(blockIdx.x + 1) * chunk);
  Running so_far = {};
  so_far.largest = -INFINITY;
#pragma unroll 1
  for (int p = blockIdx.x * chunk + warp_id() * kBatch; p < end; p += kWarps * kBatch) {
    const long long at = static_cast<long long>(p) * row + blockIdx.y * HEAD_DIM;
    __half2 key[kBatch][kPairs], value[kBatch][kPairs];
    read_batch(a.keys + at, row, end - p, key);
    read_batch(a.values + at, row, end - p, value);
    attend_batch(q, key, value, end - p, so_far);
  }

  // Weights of a head lie in the lanes of its positions.
  float total = so_far.weight;
#pragma unroll
  for (int offset = 16; offset >= kHeads * kSpread; offset /= 2) total += __shfl_xor_sync(kAllLanes, total, offset);
  float* record = shared + warp_id() * kHeads * kRecord;
#pragma unroll
  for (int g = 0; g < kHeads; ++g) {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int d = 64 * pair + 2 * lane_id();
      if (d < HEAD_DIM) record[g * kRecord + d] = so_far.sum[g][pair].x, record[g * kRecord + d + 1] = so_far.sum[g][pair].y;
    }
  }
  const int mine = lane_id() / kSpread;
  if (mine < kHeads && lane_id() % kSpread == 0) {
    record[mine * kRecord + HEAD_DIM] = so_far.largest;
    record[mine * kRecord + HEAD_DIM + 1] = total;
  }
  __syncthreads();
  weigh_records<false>(shared, kWarps, shares, largest, weight);

  float* mixed = a.mixed + first_head * HEAD_DIM;
  const auto finish = [&](int g, int d, float sum) {
    if (g < heads) mixed[g * HEAD_DIM + d] = sum / weight[g];
  };
  if (splits == 1) {
    add_records<false>(shared, kWarps, shares, finish);
    return;
  }
  const int group = blockIdx.y * gridDim.z + blockIdx.z;
  float* records = a.partial + static_cast<long long>(group) * gridDim.x * kHeads * kRecord;
  float* own = records + blockIdx.x * kHeads * kRecord;
  add_records<false>(shared, kWarps, shares, [&](int g, int d, float sum) { own[g * kRecord + d] = sum; });
  if (threadIdx.x < kHeads) {
    own[threadIdx.x * kRecord + HEAD_DIM] = largest[threadIdx.x];
    own[threadIdx.x * kRecord + HEAD_DIM + 1] = weight[threadIdx.x];
  }
  if (!last_to_arrive(a.arrived + group, splits)) return;
  weigh_records<true>(records, splits, shares, largest, weight);
  add_records<true>(records, splits, shares, finish);
}
