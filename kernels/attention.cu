// Attention of one position, in one kernel: its heads are normed, rotated and appended to the cache,
// then its queries attend to all of it. HEAD_DIM and GROUP (query heads that share a key-value head)
// are compiled in.
//
// The cache is f16, [layers, capacity, kv_heads, head_dim], keys as after RoPE. Tensor cores multiply
// it as it lies in memory: what they multiply it by, queries and softmax weights, is cut into two
// f16 limbs, the second of which holds what the first has rounded away. 22 bits of them remain, and
// products are added up in f32, so that the result is as close as f32 arithmetic would bring it.
#include "common.cuh"

#ifndef HEAD_DIM
#error "HEAD_DIM and GROUP are compiled in"
#endif

struct AttendArgs {
  const float* qkv;       // [heads + 2 kv_heads, head_dim]
  const float* q_norm;    // [head_dim]
  const float* k_norm;    // [head_dim]
  const float* rotation;  // [2, 2, head_dim / 2] (kernels/embedding.cu)
  const State* state;
  __half* keys;           // this layer's, [capacity, kv_heads, head_dim]
  __half* values;
  float* partial;         // [kv_heads, subgroups, splits, kHeads, kRecord]
  unsigned* arrived;      // [heads], zero between launches
  float* mixed;           // [heads, head_dim]
  float* trace_q;         // [heads, head_dim], or null
  float* trace_k;         // [kv_heads, head_dim], or null: the cache rounds it
  int kv_heads;
  float eps;
};
static_assert(sizeof(AttendArgs) == ATTEND_ARGS_BYTES, "differs from kernels/attention.py");

// A block takes a chunk of positions, a warp every fourth tile of it, with a running softmax of its
// own (flash decoding). Warps meet in shared memory, blocks in the warp that arrives last. How many
// chunks there are depends on the position alone, so a rerun adds in the same order.
//
// A tile's keys and values lie in registers, as the loads of 16 bytes bring them: a score is a sum
// over dimensions and an output one over positions, so both operands may be permuted alike. With
// g = lane / 4 and t = lane % 4, a lane holds of a tile
//   keys    of positions g, g + 8, ...: the chunks (of 8 dimensions) t, t + 4, ...;
//   values  of positions 2 t, 2 t + 1, 2 t + 8, 2 t + 9, ...: the chunks g, g + 8, ...;
//   scores  of head g, at the positions of its values: they are the next product's operand as they lie;
//   sums    of heads 2 t and 2 t + 1, the dimensions of its values.
constexpr int kHalf = HEAD_DIM / 2;
constexpr int kHeads = GROUP < 8 ? GROUP : 8;       // of a block
constexpr int kColumns = 8;                         // heads that a tensor core takes
constexpr int kBlockWarps = 4;                      // few, so that each has registers for a long tile
constexpr int kBlockThreads = 32 * kBlockWarps;
constexpr int kWarpHeads = (kHeads + kBlockWarps - 1) / kBlockWarps;  // that a warp merges
// Two blocks share a multiprocessor, or one and another kernel's, where the shape lets them.
constexpr int kBlocks = HEAD_DIM <= 128 ? 2 : 1;
constexpr int kTile = HEAD_DIM <= 128 ? 32 : 16;    // positions that a warp takes at a time
constexpr int kBlockTile = kBlockWarps * kTile;
constexpr int kUnsplit = 512;                       // positions up to which one block takes them all
constexpr int kChunks = (HEAD_DIM + 7) / 8;         // of 8 dimensions, 16 bytes
constexpr int kKeyLoads = (kChunks + 3) / 4;        // chunks of a position that a lane holds
constexpr int kValueLoads = (kChunks + 7) / 8;
constexpr int kAhead = 3;                           // tiles that are on their way into the L2
constexpr int kUnits = 16 * kValueLoads;            // of 4 sums of a head, as they are merged
constexpr int kTurns = (kUnits + 31) / 32;          // units of a lane
constexpr int kRecord = 4 * kUnits + 4;             // sums, the largest score, the sum of the weights
// Strides in shared memory at which a quarter of a warp meets every bank once.
constexpr int kQueryChunks = 4 * kKeyLoads + (kKeyLoads % 2 ? 0 : 4);
constexpr int kSumsStride = 4 * kUnits + 8;

// Weights are at most 1. Multiplied by 2 to this power, those that matter have both limbs in f16's
// range.
constexpr float kWeightExponent = 14;
constexpr float kLog2E = 1.4426950408889634f;

// -- loads ---------------------------------------------------------------------------------------------

// 8 values of a head, the last `left` of it; zero where there are none. Past the L1, which may hold
// lines of another time.
__device__ inline uint4 read_chunk(const __half* from, int left) {
  uint4 read = make_uint4(0, 0, 0, 0);
  if (left <= 0) return read;
  if constexpr (HEAD_DIM % 8 == 0) {
    read = __ldcg(reinterpret_cast<const uint4*>(from));
  } else {  // an even number of values is aligned to pairs alone
    const unsigned* pairs = reinterpret_cast<const unsigned*>(from);
    read.x = __ldcg(pairs);
    if (left > 2) read.y = __ldcg(pairs + 1);
    if (left > 4) read.z = __ldcg(pairs + 2);
    if (left > 6) read.w = __ldcg(pairs + 3);
  }
  return read;
}

__device__ inline unsigned word(const uint4& of, int index) {
  return index == 0 ? of.x : index == 1 ? of.y : index == 2 ? of.z : of.w;
}

// What a lane holds of a tile of keys or of values: some chunks of some positions.
template <bool KEYS>
struct Tile {
  static constexpr int kPositions = KEYS ? kTile / 8 : kTile / 4;
  static constexpr int kStep = KEYS ? 4 : 8;  // from a lane's chunk to its next
  static constexpr int kLoads = KEYS ? kKeyLoads : kValueLoads;
  uint4 chunk[kPositions][kLoads];

  // The i-th of this lane's positions, in the tile.
  __device__ static int position(int i) {
    return KEYS ? lane_id() / 4 + 8 * i : 2 * (lane_id() % 4) + i % 2 + 8 * (i / 2);
  }
  __device__ static int first_chunk() { return KEYS ? lane_id() % 4 : lane_id() / 4; }

  // From a key-value head's values at the tile's first position; `left` positions are filled.
  __device__ void read(const __half* head, int row, int left) {
    const __half* from = head + position(0) * row + 8 * first_chunk();
#pragma unroll
    for (int i = 0; i < kPositions; ++i) {
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const int offset = (position(i) - position(0)) * row + 8 * kStep * j;
        const int values = HEAD_DIM - 8 * (first_chunk() + kStep * j);
        chunk[i][j] = read_chunk(from + offset, position(i) < left ? values : 0);
      }
    }
  }

  // The position that the cache does not hold yet, `index` in the tile.
  __device__ void put(const uint4* fresh, int index) {
#pragma unroll
    for (int i = 0; i < kPositions; ++i) {
      if (position(i) != index) continue;
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        if (first_chunk() + kStep * j < kChunks) chunk[i][j] = fresh[first_chunk() + kStep * j];
      }
    }
  }
};
using Keys = Tile<true>;
using Values = Tile<false>;

// Asks for a tile that will be read soon, from DRAM into the L2: registers hold no more than one.
__device__ inline void ask_for(const __half* head, int row, int left) {
  constexpr int kLines = (2 * HEAD_DIM + 127) / 128;
  for (int line = lane_id(); line < min(left, kTile) * kLines; line += 32) {
    const __half* from = head + line / kLines * row + 64 * (line % kLines);
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
  }
}

// -- limbs and products --------------------------------------------------------------------------------

__device__ inline unsigned bits_of(__half2 pair) { return *reinterpret_cast<const unsigned*>(&pair); }

// Two numbers, rounded to f16, and what the rounding took.
struct Limbs {
  unsigned high, low;
  __device__ Limbs(float x, float y) {
    const __half2 rounded = __floats2half2_rn(x, y);
    const float2 back = __half22float2(rounded);
    high = bits_of(rounded);
    low = bits_of(__floats2half2_rn(x - back.x, y - back.y));
  }
};

// d += a * b: 16 rows by 8 columns, 16 products each.
__device__ inline void multiply(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// -- norm, rotate, append --------------------------------------------------------------------------------

struct Shared {
  // Both limbs of each query head, multiplied by a power of two that keeps them in f16's range.
  uint4 query[2][kColumns][kQueryChunks];
  // What turns a score of these limbs into an exponent of 2.
  float factor[kColumns];
  // The position's own key and value, as the cache holds them.
  uint4 fresh[2][kChunks];
  float largest[kBlockWarps][kColumns], weight[kBlockWarps][kColumns];
};

constexpr int kPreparing = 8;  // lanes that prepare a head
constexpr int kPairs = (kHalf + kPreparing - 1) / kPreparing;
constexpr int kNumbers = 2 * kPairs;  // of a lane
static_assert((kHeads + 2) * kPreparing <= kBlockThreads, "a block prepares all at once");

#ifdef PLANT_ROPE_INTERLEAVED
constexpr bool kInterleaved = true;
#else
constexpr bool kInterleaved = false;  // NeoX pairing
#endif

// Dimensions that a lane prepares: a run of pairs, first their lower ones, then the upper ones.
struct Run {
  static constexpr bool kWhole = kHalf % (4 * kPreparing) == 0;  // of four, aligned
  __device__ static int pair(int n) { return threadIdx.x % kPreparing * kPairs + n % kPairs; }
  __device__ static bool there(int n) { return kWhole || pair(n) < kHalf; }
  __device__ static int dimension(int n) {
    return kInterleaved ? 2 * pair(n) + n / kPairs : pair(n) + n / kPairs * kHalf;
  }

  // N numbers of a vector, `at(n)` the place of the n-th: four at a time where CONTIGUOUS.
  template <bool CONTIGUOUS, int N, class At>
  __device__ static void read(const float* from, float (&into)[N], At at) {
    if constexpr (CONTIGUOUS) {
#pragma unroll
      for (int n = 0; n < N; n += 4) {
        const float4 four = __ldcg(reinterpret_cast<const float4*>(from + at(n)));
        into[n] = four.x, into[n + 1] = four.y, into[n + 2] = four.z, into[n + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int n = 0; n < N; ++n) into[n] = there(n) ? __ldcg(from + at(n)) : 0.0f;
    }
  }

  // Pairs of f16, two dimensions each, to where `dimension` says.
  __device__ static void write(__half* to, const unsigned (&pairs)[kPairs]) {
    if constexpr (kWhole && !kInterleaved) {
#pragma unroll
      for (int n = 0; n < kPairs; n += 2) {
        *reinterpret_cast<uint2*>(to + dimension(2 * n)) = make_uint2(pairs[n], pairs[n + 1]);
      }
    } else {
#pragma unroll
      for (int n = 0; n < kNumbers; ++n) {
        const unsigned short bits = static_cast<unsigned short>(pairs[n / 2] >> (16 * (n % 2)));
        if (there(n)) to[dimension(n)] = __ushort_as_half(bits);
      }
    }
  }
};

// Power of two that brings numbers of up to `bound` to 2^15 or less, and its inverse.
struct Power {
  float up, down;
  __device__ explicit Power(float bound) {
    // Below 2^-87 the inverse would leave f32's range; NaN and infinity are of exponent 255.
    const int exponent = max(static_cast<int>(__float_as_uint(bound) >> 23 & 0xff), 40);
    up = __int_as_float((254 + 14 - exponent) << 23);
    down = __int_as_float((exponent - 14) << 23);
  }
};

// A head that a quarter of a warp prepares: the block's queries, then the key, then the value.
struct Preparation {
  int index;            // among the block's queries; kHeads: the key; kHeads + 1: the value
  const float* head;
  bool wanted;
  float cosine[kPairs], sine[kPairs], norm[kNumbers];
  float largest;        // of |norm|
  float given[kNumbers], turned[kNumbers];
  float bound;          // of |turned|, over the head

  // All but the head itself, which the predecessor may still be writing.
  __device__ void ask(const AttendArgs& a, int number) {
    index = threadIdx.x / kPreparing, wanted = number >= 0;
    head = a.qkv + max(number, 0) * HEAD_DIM;
    const bool key = index == kHeads;
    const float* cosines = a.rotation + (key ? HEAD_DIM : 0);
    Run::read<Run::kWhole>(cosines, cosine, Run::pair);
    Run::read<Run::kWhole>(cosines + kHalf, sine, Run::pair);
    Run::read<Run::kWhole && !kInterleaved>(key ? a.k_norm : a.q_norm, norm, Run::dimension);
    largest = 0;
#pragma unroll
    for (int n = 0; n < kNumbers; ++n) largest = fmaxf(largest, fabsf(norm[n]));
#pragma unroll
    for (int offset = kPreparing / 2; offset > 0; offset >>= 1) {
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, offset));
    }
  }

  // Reads the head, norms and rotates it.
  __device__ void turn([[maybe_unused]] float eps) {
    Run::read<Run::kWhole && !kInterleaved>(head, given, Run::dimension);
    float sum = 0, upper = 0;  // two, as one would be a long chain
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      sum = fmaf(given[n], given[n], sum), upper = fmaf(given[n + kPairs], given[n + kPairs], upper);
    }
    sum += upper;
#pragma unroll
    for (int offset = kPreparing / 2; offset > 0; offset >>= 1) {
      sum += __shfl_xor_sync(kAllLanes, sum, offset);
    }
#ifdef PLANT_NO_QK_NORM
    bound = sqrtf(sum);
#else
    const float scale = __frsqrt_rn(sum / static_cast<float>(HEAD_DIM) + eps);
    bound = largest * sqrtf(static_cast<float>(HEAD_DIM));  // no normed vector is longer
#endif
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
#ifdef PLANT_NO_QK_NORM
      const float u = given[n], v = given[n + kPairs];
#else
      const float u = given[n] * scale * norm[n], v = given[n + kPairs] * scale * norm[n + kPairs];
#endif
      turned[n] = u * cosine[n] - v * sine[n];
      turned[n + kPairs] = v * cosine[n] + u * sine[n];
    }
  }

  // Both limbs of a query head; zero for one that there is not.
  __device__ void store_query(Shared& shared) const {
    const Power power(bound);
    unsigned high[kPairs], low[kPairs];
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      const float x = turned[2 * n] * power.up, y = turned[2 * n + 1] * power.up;
      const Limbs limbs(wanted ? x : 0.0f, wanted ? y : 0.0f);
      high[n] = limbs.high, low[n] = limbs.low;
    }
    Run::write(reinterpret_cast<__half*>(shared.query[0][index]), high);
    Run::write(reinterpret_cast<__half*>(shared.query[1][index]), low);
    if (threadIdx.x % kPreparing == 0) {
      shared.factor[index] = kLog2E * rsqrtf(static_cast<float>(HEAD_DIM)) * power.down;
    }
  }

  // The position's key or value as the cache rounds it, there too.
  __device__ void store_fresh(Shared& shared, __half* cached, [[maybe_unused]] int position,
                              [[maybe_unused]] int row) const {
    const bool key = index == kHeads;
    unsigned rounded[kPairs];
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      rounded[n] = bits_of(key ? __floats2half2_rn(turned[2 * n], turned[2 * n + 1])
                               : __floats2half2_rn(given[2 * n], given[2 * n + 1]));
    }
#ifdef PLANT_STALE_KV
#pragma unroll
    for (int n = 0; n < kNumbers; ++n) {
      if (position != 1 || !Run::there(n)) continue;
      const unsigned before = *reinterpret_cast<const unsigned short*>(cached + Run::dimension(n) - row);
      rounded[n / 2] = n % 2 ? rounded[n / 2] & 0xffff | before << 16 : before;
    }
#endif
    Run::write(reinterpret_cast<__half*>(shared.fresh[key ? 0 : 1]), rounded);
    if (blockIdx.y == 0) Run::write(cached, rounded);  // once, however many subgroups there are
  }

  __device__ void store_trace(float* trace) const {
#pragma unroll
    for (int n = 0; n < kNumbers; ++n) {
      if (Run::there(n)) trace[Run::dimension(n)] = turned[n];
    }
  }
};

// The head of qkv that this quarter of a warp prepares, or -1. Key and value are the concern of the
// block whose chunk the position lies in.
__device__ inline int head_to_prepare(int kv_heads, int first_head, int heads, bool owner) {
  const int index = threadIdx.x / kPreparing;
  if (index < heads) return first_head + index;
  if (index < kHeads || index >= kHeads + 2 || !owner) return -1;
  return kv_heads * (GROUP + index - kHeads) + blockIdx.x;
}

// Zeroes what tensor cores multiply and no head fills: heads and dimensions that there are not.
__device__ inline void clear_padding(Shared& shared) {
  constexpr int kMultiplied = 32 * kKeyLoads;
  [[maybe_unused]] const __half zero = __ushort_as_half(0);
  if constexpr (kHeads < kColumns || HEAD_DIM < kMultiplied) {
    for (int item = threadIdx.x; item < 2 * kColumns * kMultiplied; item += kBlockThreads) {
      const int head = item / kMultiplied % kColumns, d = item % kMultiplied;
      if (head < kHeads && d < HEAD_DIM) continue;
      reinterpret_cast<__half*>(shared.query[item / kMultiplied / kColumns][head])[d] = zero;
      if (head >= kHeads) shared.factor[head] = 1;
    }
  }
  if constexpr (HEAD_DIM < 8 * kChunks) {
    for (int d = HEAD_DIM + threadIdx.x; d < 8 * kChunks; d += kBlockThreads) {
      reinterpret_cast<__half*>(shared.fresh[0])[d] = zero;
      reinterpret_cast<__half*>(shared.fresh[1])[d] = zero;
    }
  }
}

// -- softmax and sums --------------------------------------------------------------------------------------

// What a warp has seen: sums of values, and the largest score and the sum of the weights of head
// lane / 4, the weights of the lane's own positions alone.
struct Running {
  static constexpr int kScores = kTile / 4;  // of a tile, that a lane holds
  float sum[kValueLoads][4][4];
  float largest, weight;

  // Scores of the tile's positions, `left` of which exist.
  __device__ void score(const Shared& shared, const Keys& keys, int left, float (&scores)[kScores]) const {
    const int g = lane_id() / 4, t = lane_id() % 4;
    // Rows are the heads' first limbs, then the second. Tensor cores cut off what they add up, so two
    // short chains are closer than one long, and sooner done.
    float product[kScores / 2][2][4] = {};
#pragma unroll
    for (int j = 0; j < kKeyLoads; ++j) {
      const uint4 high = shared.query[0][g][t + 4 * j], low = shared.query[1][g][t + 4 * j];
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) {
        const uint4& key = keys.chunk[i][j];
        multiply(product[i][0], {high.x, low.x, high.y, low.y}, {key.x, key.y});
        multiply(product[i][1], {high.z, low.z, high.w, low.w}, {key.z, key.w});
      }
    }
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const float(&of)[2][4] = product[i / 2];
      const int c = i % 2;
      const float whole = (of[0][c] + of[1][c]) + (of[0][c + 2] + of[1][c + 2]);
      scores[i] = Values::position(i) < left ? whole : -INFINITY;
    }
  }

  // Turns a tile's scores into weights. Returns what the sums so far of head lane / 4 are to be
  // multiplied by, as its largest score may have grown.
  __device__ float weigh(float (&scores)[kScores], float factor, int left) {
    float most = largest;
#pragma unroll
    for (int i = 0; i < kScores; ++i) most = fmaxf(most, scores[i]);
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
    const float rescale = exp2f((largest - most) * factor);
    largest = most, weight *= rescale;
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      // A NaN score must stay one: fmaxf passes it by, the subtraction does not.
      const float of = exp2f(fmaf(scores[i] - most, factor, kWeightExponent));
      scores[i] = Values::position(i) < left ? of : 0.0f;
      weight += scores[i];
    }
    return rescale;
  }

  // Adds a tile's values, by their weights, to the sums, multiplied by `rescale`.
  __device__ void add(const Values& values, const float (&weights)[kScores], float rescale) {
    unsigned high[kScores / 2], low[kScores / 2];
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) {
      const Limbs limbs(weights[2 * i], weights[2 * i + 1]);
      high[i] = limbs.high, low[i] = limbs.low;
    }
    const float even = __shfl_sync(kAllLanes, rescale, 8 * (lane_id() % 4));
    const float odd = __shfl_sync(kAllLanes, rescale, 8 * (lane_id() % 4) + 4);
#pragma unroll
    for (int j = 0; j < kValueLoads; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float tile[4] = {};  // by itself, as tensor cores cut off what they add up
#pragma unroll
        for (int n = 0; n < kScores; n += 4) {
          const unsigned v[4] = {word(values.chunk[n][j], i), word(values.chunk[n + 1][j], i),
                                 word(values.chunk[n + 2][j], i), word(values.chunk[n + 3][j], i)};
          // Rows g are even dimensions, rows g + 8 odd ones.
          const unsigned paired[4] = {__byte_perm(v[0], v[1], 0x5410), __byte_perm(v[0], v[1], 0x7632),
                                      __byte_perm(v[2], v[3], 0x5410), __byte_perm(v[2], v[3], 0x7632)};
          multiply(tile, paired, {high[n / 2], high[n / 2 + 1]});
          multiply(tile, paired, {low[n / 2], low[n / 2 + 1]});
        }
        float(&so_far)[4] = sum[j][i];
        so_far[0] = fmaf(so_far[0], even, tile[0]), so_far[1] = fmaf(so_far[1], odd, tile[1]);
        so_far[2] = fmaf(so_far[2], even, tile[2]), so_far[3] = fmaf(so_far[3], odd, tile[3]);
      }
    }
  }

  // The warp's sums, in units of 4; those of the upper four heads are swapped in pairs (`unit_of`).
  __device__ void store(Shared& shared, float* sums) const {
    const int g = lane_id() / 4, t = lane_id() % 4;
    float all = weight;
    all += __shfl_xor_sync(kAllLanes, all, 1);
    all += __shfl_xor_sync(kAllLanes, all, 2);
    if (t == 0) shared.largest[warp_id()][g] = largest, shared.weight[warp_id()][g] = all;
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int head = 2 * t + odd;
      if (head >= kHeads) continue;
      float4* to = reinterpret_cast<float4*>(sums + head * kSumsStride);
#pragma unroll
      for (int j = 0; j < kValueLoads; ++j) {
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          to[unit_of(2 * (g + 8 * j) + i / 2, head)] = make_float4(
              sum[j][i][odd], sum[j][i][odd + 2], sum[j][i + 1][odd], sum[j][i + 1][odd + 2]);
        }
      }
    }
  }

  __device__ static int unit_of(int unit, int head) { return unit ^ (head / 4); }
};

// -- merging -------------------------------------------------------------------------------------------------

// A head's sums in a warp's lanes, and what its weights come to.
struct Merged {
  float4 sum[kTurns];
  float largest, weight;

  // Adds `share` of what `read(unit)` gives.
  template <class Read>
  __device__ void add(float share, Read read) {
#pragma unroll
    for (int n = 0; n < kTurns; ++n) {
      const int unit = lane_id() + 32 * n;
      if (unit >= kUnits) continue;
      const float4 more = read(unit);
      sum[n].x = fmaf(share, more.x, sum[n].x), sum[n].y = fmaf(share, more.y, sum[n].y);
      sum[n].z = fmaf(share, more.z, sum[n].z), sum[n].w = fmaf(share, more.w, sum[n].w);
    }
  }
};

// A head's sums of the first `warps` warps of this block.
__device__ inline Merged merge_warps(const Shared& shared, const float* sums, int head, int warps) {
  Merged all = {};
  all.largest = -INFINITY;
#pragma unroll
  for (int w = 0; w < kBlockWarps; ++w) {
    if (w < warps) all.largest = fmaxf(all.largest, shared.largest[w][head]);
  }
#pragma unroll
  for (int w = 0; w < kBlockWarps; ++w) {
    if (w >= warps) break;
    const float share = exp2f((shared.largest[w][head] - all.largest) * shared.factor[head]);
    all.weight = fmaf(share, shared.weight[w][head], all.weight);
    const float4* units = reinterpret_cast<const float4*>(sums + (w * kHeads + head) * kSumsStride);
    all.add(share, [&](int unit) { return units[Running::unit_of(unit, head)]; });
  }
  return all;
}

// The sums of all blocks of `count` heads at once, in order; read past the L1, as other
// multiprocessors wrote them.
__device__ inline void merge_splits(const float* records, int splits, int count, const float* factor,
                                    Merged (&heads)[kWarpHeads]) {
  constexpr int kStride = kHeads * kRecord, kLargest = 4 * kUnits, kWeight = kLargest + 1;
#pragma unroll
  for (int n = 0; n < kWarpHeads; ++n) heads[n] = {}, heads[n].largest = -INFINITY;
  for (int s = lane_id(); s < splits; s += 32) {
#pragma unroll
    for (int n = 0; n < kWarpHeads; ++n) {
      if (n < count) heads[n].largest = fmaxf(heads[n].largest, __ldcg(records + s * kStride + n * kRecord + kLargest));
    }
  }
#pragma unroll
  for (int n = 0; n < kWarpHeads; ++n) heads[n].largest = warp_max(heads[n].largest);
  for (int first = 0; first < splits; first += 32) {
    const float* mine = records + (first + lane_id()) * kStride;
    float share[kWarpHeads] = {};
#pragma unroll
    for (int n = 0; n < kWarpHeads; ++n) {
      if (n >= count || first + lane_id() >= splits) continue;
      share[n] = exp2f((__ldcg(mine + n * kRecord + kLargest) - heads[n].largest) * factor[n]);
      heads[n].weight = fmaf(share[n], __ldcg(mine + n * kRecord + kWeight), heads[n].weight);
    }
#pragma unroll 16
    for (int s = 0; s < min(32, splits - first); ++s) {
#pragma unroll
      for (int n = 0; n < kWarpHeads; ++n) {
        const float* record = records + (first + s) * kStride + min(n, count - 1) * kRecord;
        heads[n].add(__shfl_sync(kAllLanes, share[n], s),
                     [&](int unit) { return __ldcg(reinterpret_cast<const float4*>(record) + unit); });
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kWarpHeads; ++n) heads[n].weight = warp_sum(heads[n].weight);
}

__device__ inline void write_mixed(float* mixed, const Merged& all) {
  const float inverse = 1.0f / all.weight;
#pragma unroll
  for (int n = 0; n < kTurns; ++n) {
    const int d = 4 * (lane_id() + 32 * n);
    const float4 out = make_float4(all.sum[n].x * inverse, all.sum[n].y * inverse,
                                   all.sum[n].z * inverse, all.sum[n].w * inverse);
    if constexpr (HEAD_DIM % 4 == 0) {
      if (d < HEAD_DIM) *reinterpret_cast<float4*>(mixed + d) = out;
    } else {  // an even number of values: two at a time
      if (d < HEAD_DIM) mixed[d] = out.x, mixed[d + 1] = out.y;
      if (d + 2 < HEAD_DIM) mixed[d + 2] = out.z, mixed[d + 3] = out.w;
    }
  }
}

__device__ inline void write_record(float* record, const Merged& all) {
#pragma unroll
  for (int n = 0; n < kTurns; ++n) {
    const int unit = lane_id() + 32 * n;
    if (unit < kUnits) reinterpret_cast<float4*>(record)[unit] = all.sum[n];
  }
  if (lane_id() == 0) record[4 * kUnits] = all.largest, record[4 * kUnits + 1] = all.weight;
}

// Whether this warp is the last of `splits` to arrive; resets the counter for the next launch.
// All that the warps wrote to global memory before is visible to the last one.
__device__ inline bool last_warp_to_arrive(unsigned* counter, unsigned splits) {
  __syncwarp();
  bool last = false;
  if (lane_id() == 0) {
    __threadfence();  // one lane's fence behind a barrier is the whole warp's
    last = atomicAdd(counter, 1) == splits - 1;
    if (last) *counter = 0;
    __threadfence();
  }
  return __shfl_sync(kAllLanes, static_cast<int>(last), 0);
}

// The positions of a block: its chunk of all that there are.
struct Chunk {
  int begin, end, splits;
  __device__ Chunk(int positions, int most_splits, int split) {
    const int each = (positions + most_splits - 1) / most_splits;
    const int chunk = positions <= kUnsplit ? kUnsplit : (each + kBlockTile - 1) / kBlockTile * kBlockTile;
    splits = (positions + chunk - 1) / chunk;
    begin = split * chunk, end = min(positions, begin + chunk);
  }
};

// Block (kv head, subgroup of its query heads, split): those that have work come first. Shared
// memory: the warps' sums, [kBlockWarps, kHeads, kSumsStride] (kernels/attention.py).
extern "C" __global__ void __launch_bounds__(kBlockThreads, kBlocks) attend(const AttendArgs a) {
  extern __shared__ __align__(16) float sums[];
  __shared__ Shared shared;
  // Whatever moved the position, or filled the cache before it, ran two kernels ago or earlier: both
  // are read while the predecessor still runs.
  const int last = __ldcg(&a.state->position), split = blockIdx.z;
  const Chunk chunk(last + 1, gridDim.z, split);
  if (split >= chunk.splits) return;

  const int kv_head = blockIdx.x, row = a.kv_heads * HEAD_DIM, stride = kBlockTile * row;
  const int end = chunk.end, filled = min(last, end);  // the last position itself comes from qkv
  int first = chunk.begin + whole_warp_id() * kTile;
  const long long at = static_cast<long long>(first) * row + kv_head * HEAD_DIM;
  const __half *key_tile = a.keys + at, *value_tile = a.values + at;
  Keys keys;
  Values values;
  keys.read(key_tile, row, filled - first);
  values.read(value_tile, row, filled - first);
  for (int n = 1; n <= kAhead; ++n) {
    ask_for(key_tile + n * stride, row, filled - first - n * kBlockTile);
    ask_for(value_tile + n * stride, row, filled - first - n * kBlockTile);
  }

  const int before = blockIdx.y * kHeads, heads = min(kHeads, GROUP - before);
  const int first_head = kv_head * GROUP + before;
  const bool preparing = warp_id() < (kPreparing * (kHeads + 2) + 31) / 32;
  Preparation mine;
  if (preparing) mine.ask(a, head_to_prepare(a.kv_heads, first_head, heads, end == last + 1));
  clear_padding(shared);

  take_over();
  if (preparing) {
    mine.turn(a.eps);
    if (mine.index < kHeads) {
      mine.store_query(shared);
      if (mine.wanted && split == 0 && a.trace_q != nullptr) {
        mine.store_trace(a.trace_q + (first_head + mine.index) * HEAD_DIM);
      }
    } else if (mine.wanted) {
      const bool key = mine.index == kHeads;
      __half* cached = (key ? a.keys : a.values) + static_cast<long long>(last) * row + kv_head * HEAD_DIM;
      mine.store_fresh(shared, cached, last, row);
      if (key && a.trace_k != nullptr) mine.store_trace(a.trace_k + kv_head * HEAD_DIM);
    }
  }
  __syncthreads();

  Running so_far = {};
  so_far.largest = -INFINITY;
  const float factor = shared.factor[lane_id() / 4];
#pragma unroll 1
  while (first < end) {
    if (last - first < kTile) {
      keys.put(shared.fresh[0], last - first);
      values.put(shared.fresh[1], last - first);
    }
    float scores[Running::kScores];
    so_far.score(shared, keys, end - first, scores);
    // What is not read stays what it was: weights of 0 then meet values of positions that count.
    const bool more = first + kBlockTile < filled;
    key_tile += stride;
    if (more) keys.read(key_tile, row, filled - first - kBlockTile);
    const float rescale = so_far.weigh(scores, factor, end - first);
    so_far.add(values, scores, rescale);
    first += kBlockTile, value_tile += stride;
    if (more) {
      values.read(value_tile, row, filled - first);
      ask_for(key_tile + kAhead * stride, row, filled - first - kAhead * kBlockTile);
      ask_for(value_tile + kAhead * stride, row, filled - first - kAhead * kBlockTile);
    }
  }
  so_far.store(shared, sums + warp_id() * kHeads * kSumsStride);
  __syncthreads();

  // A warp's heads, side by side: one arrival for them all.
  const int head = whole_warp_id() * kWarpHeads, count = min(kWarpHeads, heads - head);
  if (count <= 0) return;
  const int warps = min(kBlockWarps, (end - chunk.begin + kTile - 1) / kTile);
  Merged merged[kWarpHeads];
#pragma unroll
  for (int n = 0; n < kWarpHeads; ++n) merged[n] = merge_warps(shared, sums, head + min(n, count - 1), warps);
  if (chunk.splits > 1) {
    const int group = kv_head * gridDim.y + blockIdx.y;
    float* records = a.partial + (static_cast<long long>(group) * gridDim.z * kHeads + head) * kRecord;
#pragma unroll
    for (int n = 0; n < kWarpHeads; ++n) {
      if (n < count) write_record(records + (split * kHeads + n) * kRecord, merged[n]);
    }
    if (!last_warp_to_arrive(a.arrived + first_head + head, chunk.splits)) return;
    merge_splits(records, chunk.splits, count, shared.factor + head, merged);
  }
#pragma unroll
  for (int n = 0; n < kWarpHeads; ++n) {
    if (n < count) write_mixed(a.mixed + (first_head + head + n) * HEAD_DIM, merged[n]);
  }
}
