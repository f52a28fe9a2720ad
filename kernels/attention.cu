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
  float* partial;         // [kv_heads, subgroups, splits, kRecord]
  unsigned* arrived;      // [heads], zero between launches
  float* mixed;           // [heads, head_dim]
  float* trace_q;         // [heads, head_dim], or null
  float* trace_k;         // [kv_heads, head_dim], or null: the cache rounds it
  int kv_heads;
  float eps;
};
static_assert(sizeof(AttendArgs) == ATTEND_ARGS_BYTES, "differs from kernels/attention.py");

// A block takes a chunk of positions, kBlockTile of them at a time: a warp weighs kTile of them for all
// heads, then, as weights have met in shared memory, adds up its own dimensions over them all, so that
// no sums of warps are to be merged. The softmax is a running one (flash decoding); blocks meet in the
// one that arrives last. How many chunks there are depends on the position alone, so a rerun adds in
// the same order.
//
// Keys lie in registers, as loads of 16 bytes bring them: a score is a sum over dimensions, so both of
// its operands may be permuted alike. Values lie in shared memory, whose tiles are under way long
// before they are wanted. With g = lane / 4 and t = lane % 4, a lane holds
//   keys    of positions g and g + 8: the chunks (of 8 dimensions) t, t + 4, ...;
//   scores  of head g, at positions 2 t, 2 t + 1, 2 t + 8, 2 t + 9: the next product's operand as they lie;
//   sums    of heads 2 t and 2 t + 1, dimensions 2 g and 2 g + 1 of every sixteen that are its warp's.
constexpr int kHalf = HEAD_DIM / 2;
constexpr int kHeads = GROUP < 8 ? GROUP : 8;       // of a block
constexpr int kColumns = 8;                         // heads that a tensor core takes
constexpr int kBlockWarps = HEAD_DIM <= 128 ? 8 : 4;
constexpr int kBlockThreads = 32 * kBlockWarps;
// Blocks that a multiprocessor should hold, which bounds their registers: this one and another kernel's.
constexpr int kBlocks = HEAD_DIM <= 128 ? 2 : 1;
constexpr int kTile = 16;                           // positions that a warp weighs at a time
constexpr int kBlockTile = kBlockWarps * kTile;
constexpr int kSlots = HEAD_DIM <= 256 ? 2 : 1;     // tiles of values in shared memory
constexpr int kUnsplit = 160;                       // positions up to which one block takes them all
constexpr int kLeast = 128;                         // of a chunk beyond them, at least
constexpr int kChunks = (HEAD_DIM + 7) / 8;         // of 8 dimensions, 16 bytes
constexpr int kKeyLoads = (kChunks + 3) / 4;        // chunks of a position that a lane holds
constexpr int kRowTiles = (HEAD_DIM + 15) / 16;     // of 16 dimensions, which a product takes
constexpr int kOwn = (kRowTiles + kBlockWarps - 1) / kBlockWarps;  // that a warp adds up
constexpr int kRecord = 128 * kRowTiles + 2 * kColumns;  // sums, largest scores, sums of the weights
// Strides in shared memory, odd so that a warp, or a quarter of it, meets every bank once.
constexpr int kQueryFours = 8 * kKeyLoads + 1;      // of 4 dimensions, both limbs
constexpr int kValueChunks = 2 * kRowTiles + 1;     // of a position
constexpr int kSlot = kBlockTile * kValueChunks;

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

// Sixteen bytes from global to shared memory, without a register and past the L1.
__device__ inline void copy_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until no more than PENDING of this thread's last commits are under way.
template <int PENDING>
__device__ inline void await_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// A key-value head of the cache: its first position, and which there are.
struct Cached {
  const __half* head;
  int row;     // values from a position to the next
  int filled;  // positions that can be read
  int last;    // the position that comes from qkv, not from here

  __device__ const __half* at(int position) const { return head + static_cast<long long>(position) * row; }
};

// What a lane holds of a warp's keys: some chunks of two positions.
struct Keys {
  uint4 chunk[2][kKeyLoads];

  // Behind the last position that one again: scores of those that do not exist are left out.
  __device__ void read(const Cached& keys, int first) {
    const int begin = lane_id() % 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const __half* from = keys.at(min(first + lane_id() / 4 + 8 * i, keys.last)) + 8 * begin;
#pragma unroll
      for (int j = 0; j < kKeyLoads; ++j) {
        chunk[i][j] = read_chunk(from + 32 * j, HEAD_DIM % 32 ? HEAD_DIM - 8 * (begin + 4 * j) : 8);
      }
    }
  }

  // The position that the cache does not hold yet, `index` in the tile.
  __device__ void put(const uint4* fresh, int index) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (lane_id() / 4 + 8 * i != index) continue;
#pragma unroll
      for (int j = 0; j < kKeyLoads; ++j) {
        if (lane_id() % 4 + 4 * j < kChunks) chunk[i][j] = fresh[lane_id() % 4 + 4 * j];
      }
    }
  }
};

// Asks for a warp's values of the block's tile at `first`, zero where there are none, as their weights
// are: one commit, whether there is such a tile or not.
__device__ inline void ask_for_values(const Cached& values, int first, int end, uint4* slot) {
  constexpr int kItems = kTile * kChunks;
  const int before = whole_warp_id() * kTile, begin = first + before;
  if (HEAD_DIM % 8 == 0 && kItems % 32 == 0 && 32 % kChunks == 0 && begin + kTile <= values.filled) {
    constexpr int kRows = kChunks > 32 ? 1 : 32 / kChunks;  // at a time
    const int index = lane_id() / kChunks, chunk = lane_id() % kChunks;
    const __half* from = values.at(begin + index) + 8 * chunk;
    uint4* to = slot + (before + index) * kValueChunks + chunk;
#pragma unroll
    for (int n = 0; n < kTile; n += kRows) copy_async(to + n * kValueChunks, from + n * values.row);
  } else if (first < end) {
#pragma unroll 1
    for (int item = lane_id(); item < kItems; item += 32) {
      const int index = item / kChunks, chunk = item % kChunks, position = begin + index;
      uint4* to = slot + (before + index) * kValueChunks + chunk;
      if (position >= values.filled) {
        if (position != values.last || position >= end) *to = make_uint4(0, 0, 0, 0);
      } else if constexpr (HEAD_DIM % 8 == 0) {
        copy_async(to, values.at(position) + 8 * chunk);
      } else {
        *to = read_chunk(values.at(position) + 8 * chunk, HEAD_DIM - 8 * chunk);
      }
    }
  }
  commit_copies();
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

// Weights of a block's tile, as limbs: a lane's are what it takes for the next product.
struct Weighed {
  uint4 limbs[kBlockWarps][32];
  // By each warp, whose weights are relative to its own largest score, of each head.
  float largest[kBlockWarps][kColumns], weight[kBlockWarps][kColumns];
};

struct Shared {
  // Both limbs of each query head, of two dimensions in turn, multiplied by a power of two that keeps
  // them in f16's range.
  uint4 query[kColumns][kQueryFours];
  // What turns a score of these limbs into an exponent of 2.
  float factor[kColumns];
  // The position's own key and value, as the cache holds them.
  uint4 fresh[2][kChunks];
  // What warps tell each other of a tile, and of the next while that is still read.
  Weighed weighed[2];
};

constexpr int kPreparing = kBlockWarps == 8 && kHalf % 64 == 0 ? 16 : 8;  // lanes that prepare a head
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

  // Both limbs of pairs, which take turns (`Shared::query`).
  __device__ static void write_limbs(__half* to, const unsigned (&high)[kPairs], const unsigned (&low)[kPairs]) {
    if constexpr (kWhole && !kInterleaved) {
#pragma unroll
      for (int n = 0; n < kPairs; n += 2) {
        *reinterpret_cast<uint4*>(to + 2 * dimension(2 * n)) = make_uint4(high[n], low[n], high[n + 1], low[n + 1]);
      }
    } else {
#pragma unroll
      for (int n = 0; n < kNumbers; ++n) {
        if (!there(n)) continue;
        __half* pair = to + 4 * (dimension(n) / 2) + dimension(n) % 2;
        pair[0] = __ushort_as_half(static_cast<unsigned short>(high[n / 2] >> (16 * (n % 2))));
        pair[2] = __ushort_as_half(static_cast<unsigned short>(low[n / 2] >> (16 * (n % 2))));
      }
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

// A head that some lanes prepare: the block's queries, then the key, then the value.
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
    Run::write_limbs(reinterpret_cast<__half*>(shared.query[index]), high, low);
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

// The head of qkv that these lanes prepare, or -1. Key and value are the concern of the
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
    for (int item = threadIdx.x; item < kColumns * kMultiplied; item += kBlockThreads) {
      const int head = item / kMultiplied, d = item % kMultiplied;
      if (head < kHeads && d < HEAD_DIM) continue;
      __half* pair = reinterpret_cast<__half*>(shared.query[head]) + 4 * (d / 2) + d % 2;
      pair[0] = pair[2] = zero;
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

// Scores of a warp's positions, `left` of which exist.
__device__ inline void score(const Shared& shared, const Keys& keys, int left, float (&scores)[4]) {
  const int g = lane_id() / 4, t = lane_id() % 4;
  // Rows are the heads' first limbs, then the second. Tensor cores cut off what they add up, so two
  // short chains are closer than one long, and sooner done.
  float product[2][2][4] = {};
#pragma unroll
  for (int j = 0; j < kKeyLoads; ++j) {
    const uint4 lower = shared.query[g][2 * (t + 4 * j)], upper = shared.query[g][2 * (t + 4 * j) + 1];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4& key = keys.chunk[i][j];
      multiply(product[i][0], {lower.x, lower.y, lower.z, lower.w}, {key.x, key.y});
      multiply(product[i][1], {upper.x, upper.y, upper.z, upper.w}, {key.z, key.w});
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float(&of)[2][4] = product[i / 2];
    const int c = i % 2, position = 2 * t + c + 8 * (i / 2);
    const float whole = (of[0][c] + of[1][c]) + (of[0][c + 2] + of[1][c + 2]);
    scores[i] = position < left ? whole : -INFINITY;
  }
}

// Turns scores into weights, relative to the largest of them, for the block.
__device__ inline void weigh(const float (&scores)[4], float factor, Weighed& weighed) {
  float most = fmaxf(fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3]));
  most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
  most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
  float weights[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // A NaN score must stay one: fmaxf passes it by, the subtraction does not.
    weights[i] = exp2f(fmaf(scores[i] - most, factor, kWeightExponent));
  }
  const Limbs first(weights[0], weights[1]), second(weights[2], weights[3]);
  weighed.limbs[warp_id()][lane_id()] = make_uint4(first.high, second.high, first.low, second.low);
  float all = (weights[0] + weights[1]) + (weights[2] + weights[3]);
  all += __shfl_xor_sync(kAllLanes, all, 1);
  all += __shfl_xor_sync(kAllLanes, all, 2);
  if (lane_id() % 4 == 0) {
    weighed.largest[warp_id()][lane_id() / 4] = most, weighed.weight[warp_id()][lane_id() / 4] = all;
  }
}

// Of a warp whose positions do not exist.
__device__ inline void weigh_nothing(Weighed& weighed) {
  weighed.limbs[warp_id()][lane_id()] = make_uint4(0, 0, 0, 0);
  if (lane_id() % 4 == 0) {
    weighed.largest[warp_id()][lane_id() / 4] = -INFINITY, weighed.weight[warp_id()][lane_id() / 4] = 0;
  }
}

// Of heads 2 t and 2 t + 1.
struct Pair {
  float even, odd;

  __device__ Pair shuffled(int from) const {
    return {__shfl_sync(kAllLanes, even, from), __shfl_sync(kAllLanes, odd, from)};
  }
  __device__ Pair or_larger(const Pair& other) const { return {fmaxf(even, other.even), fmaxf(odd, other.odd)}; }
  // What weights relative to these scores count beside `most`.
  __device__ Pair below(const Pair& most, const Pair& factor) const {
    return {exp2f((even - most.even) * factor.even), exp2f((odd - most.odd) * factor.odd)};
  }
  // Over lanes of the same t.
  __device__ Pair largest() const {
    Pair most = *this;
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      most.even = fmaxf(most.even, __shfl_xor_sync(kAllLanes, most.even, offset));
      most.odd = fmaxf(most.odd, __shfl_xor_sync(kAllLanes, most.odd, offset));
    }
    return most;
  }
  __device__ Pair summed() const {
    Pair sum = *this;
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      sum.even += __shfl_xor_sync(kAllLanes, sum.even, offset);
      sum.odd += __shfl_xor_sync(kAllLanes, sum.odd, offset);
    }
    return sum;
  }
};

// What a warp has seen: sums of its own dimensions, the largest scores, and the weights' sums.
struct Running {
  float sum[kOwn][4];  // row tile warp + kBlockWarps * n: dimension 2 g, heads 2 t, 2 t + 1; then 2 g + 1
  Pair largest, weight;

  __device__ Running() : sum{}, largest{-INFINITY, -INFINITY}, weight{} {}

  // What weights relative to each of `others`, of which every lane has its own, count; what there is
  // already is multiplied by as much less as it has become.
  template <int N>
  __device__ void share(const Pair (&others)[N], const Pair (&weights)[N], const Pair& factor, Pair (&counts)[N]) {
    Pair most = others[0];
#pragma unroll
    for (int i = 1; i < N; ++i) most = most.or_larger(others[i]);
    most = most.largest().or_larger(largest);
    const Pair less = largest.below(most, factor);
    Pair more = {};
#pragma unroll
    for (int i = 0; i < N; ++i) {
      counts[i] = others[i].below(most, factor);
      more.even = fmaf(counts[i].even, weights[i].even, more.even);
      more.odd = fmaf(counts[i].odd, weights[i].odd, more.odd);
    }
    more = more.summed();
    largest = most;
    weight = {fmaf(weight.even, less.even, more.even), fmaf(weight.odd, less.odd, more.odd)};
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      sum[n][0] *= less.even, sum[n][1] *= less.odd, sum[n][2] *= less.even, sum[n][3] *= less.odd;
    }
  }

  __device__ void add(int n, const float (&more)[4], const Pair& counts) {
    sum[n][0] = fmaf(more[0], counts.even, sum[n][0]), sum[n][1] = fmaf(more[1], counts.odd, sum[n][1]);
    sum[n][2] = fmaf(more[2], counts.even, sum[n][2]), sum[n][3] = fmaf(more[3], counts.odd, sum[n][3]);
  }

  // Adds the values of a block's tile, which `warps` warps have weighed.
  __device__ void add(const Weighed& weighed, const uint4* slot, int warps, const Pair& factor) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    const int of = g % kBlockWarps;
    const bool there = g < kBlockWarps;
    const Pair others[1] = {{weighed.largest[of][2 * t], weighed.largest[of][2 * t + 1]}};
    const Pair all = {weighed.weight[of][2 * t], weighed.weight[of][2 * t + 1]};
    const Pair weights[1] = {{there ? all.even : 0.0f, there ? all.odd : 0.0f}};
    Pair counts[1];
    share(others, weights, factor, counts);
    constexpr int kBatch = 4;  // products that do not wait for each other
    const uint4* limbs_of = weighed.limbs[0] + lane_id();
    const unsigned* values = reinterpret_cast<const unsigned*>(slot + 2 * t * kValueChunks) + g + 8 * whole_warp_id();
    int from = t;  // the lane that knows what the warp's weights count
#pragma unroll 1
    for (int first = 0; first < warps; first += kBatch) {
#pragma unroll
      for (int w = 0; w < kBatch; ++w) {
        const Pair count = counts[0].shuffled(from + 4 * w);
        const uint4 limbs = limbs_of[32 * w];
#pragma unroll
        for (int n = 0; n < kOwn; ++n) {
          if (kRowTiles % kBlockWarps && whole_warp_id() + kBlockWarps * n >= kRowTiles) continue;
          const unsigned* tile = values + 4 * kValueChunks * kTile * w + 8 * kBlockWarps * n;
          const unsigned v[4] = {tile[0], tile[4 * kValueChunks], tile[32 * kValueChunks], tile[36 * kValueChunks]};
          // Rows g are even dimensions, rows g + 8 odd ones.
          const unsigned paired[4] = {__byte_perm(v[0], v[1], 0x5410), __byte_perm(v[0], v[1], 0x7632),
                                      __byte_perm(v[2], v[3], 0x5410), __byte_perm(v[2], v[3], 0x7632)};
          float more[4] = {};  // by itself, as tensor cores cut off what they add up
          multiply(more, paired, {limbs.x, limbs.y});
          multiply(more, paired, {limbs.z, limbs.w});
          add(n, more, count);
        }
      }
      limbs_of += 32 * kBatch, values += 4 * kValueChunks * kTile * kBatch, from += 4 * kBatch;
    }
  }
};

// -- merging -------------------------------------------------------------------------------------------------

// A block's sums as lanes hold them: [kRowTiles, 32 lanes], then largest and weight of the first four.
__device__ inline void write_record(float* record, const Running& all) {
  float4* to = reinterpret_cast<float4*>(record);
#pragma unroll
  for (int n = 0; n < kOwn; ++n) {
    const int tile = whole_warp_id() + kBlockWarps * n;
    if (tile < kRowTiles) to[32 * tile + lane_id()] = make_float4(all.sum[n][0], all.sum[n][1], all.sum[n][2], all.sum[n][3]);
  }
  if (threadIdx.x < 4) {
    to[32 * kRowTiles + threadIdx.x] = make_float4(all.largest.even, all.largest.odd, all.weight.even, all.weight.odd);
  }
}

// Adds records to `all`: N at a time, whose loads are all under way before the first is waited for, past
// the L1, as other multiprocessors wrote them. The last N may overlap those before, which count once.
template <int N>
__device__ inline void add_records(const float* records, int splits, const Pair& factor, Running& all) {
  constexpr int kShares = (N + 7) / 8;
  const int g = lane_id() / 4, t = lane_id() % 4, warp = whole_warp_id();
#pragma unroll 1
  for (int taken = 0; taken < splits; taken += N) {
    const int first = min(taken, splits - N);
    const float4* from = reinterpret_cast<const float4*>(records + first * kRecord);
    Pair others[kShares], weights[kShares], counts[kShares];
#pragma unroll
    for (int i = 0; i < kShares; ++i) {
      const int n = g % N + 8 * i;
      const bool counted = g < N && first + n >= taken;
      const float4 of = __ldcg(from + n * (kRecord / 4) + 32 * kRowTiles + t);
      others[i] = {counted ? of.x : -INFINITY, counted ? of.y : -INFINITY};
      weights[i] = {counted ? of.z : 0.0f, counted ? of.w : 0.0f};
    }
    float4 sums[N][kOwn] = {};
#pragma unroll
    for (int s = 0; s < N; ++s) {
#pragma unroll
      for (int n = 0; n < kOwn; ++n) {
        const int tile = warp + kBlockWarps * n;
        if (kRowTiles % kBlockWarps && tile >= kRowTiles) continue;
        sums[s][n] = __ldcg(from + s * (kRecord / 4) + 32 * tile + lane_id());
      }
    }
    all.share(others, weights, factor, counts);
#pragma unroll
    for (int s = 0; s < N; ++s) {
      const Pair of = counts[s / 8].shuffled(4 * (s % 8) + t);
#pragma unroll
      for (int n = 0; n < kOwn; ++n) all.add(n, {sums[s][n].x, sums[s][n].y, sums[s][n].z, sums[s][n].w}, of);
    }
  }
}

// The sums of all blocks, in order.
__device__ inline Running merge(const float* records, int splits, const Pair& factor) {
  Running all;
  if (kOwn == 1 && splits >= 16) {
    add_records<16>(records, splits, factor, all);
  } else if (kOwn <= 2 && splits >= 8) {
    add_records<8>(records, splits, factor, all);
  } else if (splits >= 4) {
    add_records<4>(records, splits, factor, all);
  } else {
    add_records<2>(records, splits, factor, all);
  }
  return all;
}

__device__ inline void write_mixed(float* mixed, const Running& all, int heads) {
  const int g = lane_id() / 4, t = lane_id() % 4, warp = whole_warp_id();
  const float inverse[2] = {__fdividef(1.0f, all.weight.even), __fdividef(1.0f, all.weight.odd)};
#pragma unroll
  for (int n = 0; n < kOwn; ++n) {
    const int d = 16 * (warp + kBlockWarps * n) + 2 * g;
    if (d >= HEAD_DIM) continue;
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      if (2 * t + odd >= heads) continue;
      float2* to = reinterpret_cast<float2*>(mixed + (2 * t + odd) * HEAD_DIM + d);
      *to = {all.sum[n][odd] * inverse[odd], all.sum[n][odd + 2] * inverse[odd]};
    }
  }
}

// Counts this thread in, behind all that it, and whom it has met before, have written; returns how many
// came before. Whatever those had written is visible to it, and to whom it meets.
__device__ inline unsigned arrive(unsigned* counter) {
  unsigned before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

// Whether this block is the last of `blocks`; resets the counter for the next launch.
__device__ inline bool arrives_last(unsigned* counter, unsigned blocks) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    last = arrive(counter) == blocks - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  return last;
}

// The positions of a block: its chunk of all that there are.
struct Chunk {
  int begin, end, splits;
  __device__ Chunk(int positions, int most_splits, int split) {
    const int each = (positions + most_splits - 1) / most_splits;
    const int chunk = positions <= kUnsplit ? kUnsplit : max(kLeast, (each + kTile - 1) / kTile * kTile);
    splits = (positions + chunk - 1) / chunk;
    begin = split * chunk, end = min(positions, begin + chunk);
  }
};

// Block (kv head, subgroup of its query heads, split): those that have work come first. Shared
// memory: slots of values, [kSlots, kBlockTile, kValueChunks] (kernels/attention.py).
extern "C" __global__ void __launch_bounds__(kBlockThreads, kBlocks) attend(const AttendArgs a) {
  extern __shared__ __align__(16) uint4 slots[];
  __shared__ Shared shared;
  // Whatever moved the position, or filled the cache before it, ran two kernels ago or earlier: both
  // are read while the predecessor still runs.
  const int last = __ldcg(&a.state->position), split = blockIdx.z;
  const Chunk chunk(last + 1, gridDim.z, split);
  if (split >= chunk.splits) return;

  const int kv_head = blockIdx.x, row = a.kv_heads * HEAD_DIM, end = chunk.end;
  const int filled = min(last, end);  // the last position itself comes from qkv
  const Cached cached_keys = {a.keys + kv_head * HEAD_DIM, row, filled, last};
  const Cached cached_values = {a.values + kv_head * HEAD_DIM, row, filled, last};
  int mine = chunk.begin + whole_warp_id() * kTile;
  Keys keys;
  if (mine < end) keys.read(cached_keys, mine);
#pragma unroll
  for (int n = 0; n < kSlots; ++n) ask_for_values(cached_values, chunk.begin + n * kBlockTile, end, slots + n * kSlot);

  const int before = blockIdx.y * kHeads, heads = min(kHeads, GROUP - before);
  const int first_head = kv_head * GROUP + before;
  const bool preparing = warp_id() < (kPreparing * (kHeads + 2) + 31) / 32;
  Preparation prepared;
  if (preparing) prepared.ask(a, head_to_prepare(a.kv_heads, first_head, heads, end == last + 1));
  clear_padding(shared);

  take_over();
  if (preparing) {
    prepared.turn(a.eps);
    if (prepared.index < kHeads) {
      prepared.store_query(shared);
      if (prepared.wanted && split == 0 && a.trace_q != nullptr) {
        prepared.store_trace(a.trace_q + (first_head + prepared.index) * HEAD_DIM);
      }
    } else if (prepared.wanted) {
      const bool key = prepared.index == kHeads;
      __half* cached = (key ? a.keys : a.values) + static_cast<long long>(last) * row + kv_head * HEAD_DIM;
      prepared.store_fresh(shared, cached, last, row);
      if (key && a.trace_k != nullptr) prepared.store_trace(a.trace_k + kv_head * HEAD_DIM);
    }
  }
  __syncthreads();

  Running so_far;
  const float own_factor = shared.factor[lane_id() / 4];
  const Pair factor = {shared.factor[lane_id() % 4 * 2], shared.factor[lane_id() % 4 * 2 + 1]};
  int slot = 0, parity = 0;
#pragma unroll 1
  for (int first = chunk.begin; first < end; first += kBlockTile) {
    Weighed& weighed = shared.weighed[parity];
    uint4* values = slots + slot * kSlot;
    if (mine < end) {
      if (last - mine < kTile) {
        keys.put(shared.fresh[0], last - mine);
        uint4* fresh = values + (warp_id() * kTile + last - mine) * kValueChunks;
        for (int n = lane_id(); n < kChunks; n += 32) fresh[n] = shared.fresh[1][n];
      }
      float scores[4];
      score(shared, keys, end - mine, scores);
      mine += kBlockTile;
      if (mine < end) keys.read(cached_keys, mine);
      weigh(scores, own_factor, weighed);
    } else {
      weigh_nothing(weighed);
    }
    if (first == chunk.begin) {
      await_copies<kSlots - 1>();
    } else {
      await_copies<kSlots < 2 ? 0 : kSlots - 2>();
    }
    __syncthreads();
    // All are done with the tile before this one.
    if (kSlots > 1 && first > chunk.begin) {
      ask_for_values(cached_values, first + (kSlots - 1) * kBlockTile, end, slots + (slot + kSlots - 1) % kSlots * kSlot);
    }
    so_far.add(weighed, values, min(kBlockWarps, (end - first + kTile - 1) / kTile), factor);
    if constexpr (kSlots == 1) {
      __syncthreads();
      ask_for_values(cached_values, first + kBlockTile, end, slots);
    }
    slot = slot + 1 < kSlots ? slot + 1 : 0, parity ^= 1;
  }

  if (chunk.splits > 1) {
    float* records = a.partial + static_cast<long long>(kv_head * gridDim.y + blockIdx.y) * gridDim.z * kRecord;
    write_record(records + split * kRecord, so_far);
    if (!arrives_last(a.arrived + first_head, chunk.splits)) return;
    so_far = merge(records, chunk.splits, factor);
  }
  write_mixed(a.mixed + first_head * HEAD_DIM, so_far, heads);
}
