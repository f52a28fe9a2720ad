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
  int slots;              // of a warp's ring, 2 or more
  float eps;
};
static_assert(sizeof(AttendArgs) == ATTEND_ARGS_BYTES, "differs from kernels/attention.py");

// A block takes a chunk of positions, of which each warp takes kTile at a time: it weighs them for all
// heads and adds up all dimensions, by itself, so that no warp waits for another before the end. Its
// keys and values come in turn into a ring of slots in shared memory, each asked for as soon as a slot
// is read. The softmax is a running one (flash decoding). Warps meet in shared memory: where none has more
// than a tile, before values are added up, so that each takes its own dimensions of all tiles and no sums
// of all dimensions are to be merged. Then the blocks of a cluster meet, each of which adds up a slice of
// the dimensions that all have sent it; then clusters, in the block of a slice that arrives last. How many
// chunks there are depends on the position alone, and so does who meets whom, so a rerun adds in the same
// order.
//
// With g = lane / 4 and t = lane % 4, a lane holds
//   scores  of head g, at positions 2 t, 2 t + 1, 2 t + 8, 2 t + 9: the next product's operand as they lie;
//   sums    of heads 2 t and 2 t + 1, dimensions g and g + 8 of every sixteen.
constexpr int kHalf = HEAD_DIM / 2;
constexpr int kHeads = GROUP < 8 ? GROUP : 8;       // of a block
constexpr int kSubgroups = (GROUP + kHeads - 1) / kHeads;
constexpr int kColumns = 8;                         // heads that a tensor core takes
constexpr int kBlockWarps = HEAD_DIM <= 128 ? 8 : 4;
constexpr int kBlockThreads = 32 * kBlockWarps;
// Blocks that a multiprocessor should hold, which bounds their registers: this one and another kernel's.
constexpr int kBlocks = HEAD_DIM <= 128 ? 2 : 1;
// Blocks of a cluster, chunks in turn; without clusters one, and every block for itself.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define CLUSTERED __cluster_dims__(1, 1, 8)
constexpr int kCluster = 8;
#else
#define CLUSTERED
constexpr int kCluster = 1;
#endif
constexpr int kTile = 16;                           // positions that a warp weighs at a time
constexpr int kBlockTile = kBlockWarps * kTile;
constexpr int kUnsplit = 128;                       // positions up to which one block takes them all
constexpr int kLeast = 128;                         // of a chunk, if there is more than one cluster
constexpr int kChunks = (HEAD_DIM + 7) / 8;         // of 8 dimensions, 16 bytes
constexpr int kRowTiles = (HEAD_DIM + 15) / 16;     // of 16 dimensions, which a product takes
constexpr int kChains = kRowTiles < 4 ? kRowTiles : 4;  // of products, that a score is the sum of
constexpr bool kHoldsQueries = HEAD_DIM <= 128;     // in registers
constexpr int kRecords = HEAD_DIM <= 128 && kCluster > 1 ? 16 : 4;  // that are added up at a time
// Strides in shared memory: rows that a tensor core takes at a time meet every bank once.
constexpr int kQueryFours = 8 * ((kRowTiles + 1) / 2) + 2;  // of 4 dimensions, both limbs
constexpr int kRowChunks = 2 * kRowTiles + 1;       // of a position
constexpr int kSlot = kTile * kRowChunks;           // a warp's keys, or values
constexpr int kNextSlot = kBlockWarps * kSlot;      // of the same warp

// Slices of dimensions that blocks of a cluster add up: row tile n is of slice n % kSlices. Each has a
// counter, of which there are as many as heads.
constexpr int slices_of(int most) { return most < 2 ? 1 : 2 * slices_of(most / 2); }
constexpr int least_of(int a, int b) { return a < b ? a : b; }
constexpr int kSlices = slices_of(least_of(least_of(kCluster, kRowTiles), GROUP / kSubgroups));
constexpr int kSliceTiles = (kRowTiles + kSlices - 1) / kSlices;
constexpr int kMeta = 2 * kColumns;                 // of each pair of heads: largest scores, sums of weights
constexpr int kRecord = 8 * (128 * ((kRowTiles + 7) / 8) + kMeta);  // of slices: sums, then meta
constexpr int kSliceRecord = kRecord / kSlices;
static_assert(kSlices <= 8, "as many as kRecord has room for");

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

// As copy_async, or as many zeros.
__device__ inline void copy_or_clear(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from), "r"(there ? 16 : 0) : "memory");
}

// A key-value head of the cache: its first position, and which there are.
struct Cached {
  const __half* head;
  int row;   // values from a position to the next
  int last;  // the position that comes from qkv, not from here
  int kept;  // that position, if it is the block's to bring it; else -1

  __device__ const __half* at(int position) const { return head + static_cast<long long>(position) * row; }
};

// Asks for a tile of the cache. Positions that do not exist are zero, as their weights are (what lies in
// shared memory may be NaN); the one that is kept is left alone.
__device__ inline void ask_for(const Cached& cached, int first, uint4* slot) {
  constexpr int kItems = kTile * kChunks;
  if constexpr (HEAD_DIM % 8 == 0 && kItems % 32 == 0 && 32 % kChunks == 0) {
    constexpr int kRows = 32 / kChunks;  // at a time
    const int index = lane_id() / kChunks, chunk = lane_id() % kChunks, there = cached.last - first - index;
    const int kept = cached.kept - first - index;
    const __half* from = cached.at(first + index) + 8 * chunk;
    uint4* to = slot + index * kRowChunks + chunk;
#pragma unroll
    for (int n = 0; n < kTile; n += kRows) {
      if (n != kept) copy_or_clear(to + n * kRowChunks, from, n < there);
      from += kRows * cached.row;
    }
  } else {
#pragma unroll 1
    for (int item = lane_id(); item < kItems; item += 32) {
      const int index = item / kChunks, chunk = item % kChunks, position = first + index;
      uint4* to = slot + index * kRowChunks + chunk;
      if (position == cached.kept) continue;
      if constexpr (HEAD_DIM % 8 == 0) {
        copy_or_clear(to, cached.at(position) + 8 * chunk, position < cached.last);
      } else {
        *to = read_chunk(cached.at(position) + 8 * chunk, position < cached.last ? HEAD_DIM - 8 * chunk : 0);
      }
    }
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

// Four 8 by 8 matrices of f16, whose rows of 16 bytes lie where eight lanes each say: their fragments.
__device__ inline void load_matrices(unsigned (&d)[4], const uint4* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(from))) : "memory");
}
__device__ inline void load_transposed(unsigned (&d)[4], const uint4* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(from))) : "memory");
}

// Without exp2f's care for results below f32's normal range.
__device__ inline float power_of_two(float exponent) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(exponent));
  return power;
}

// d += a * b: 16 rows by 8 columns, 16 products each.
__device__ inline void multiply(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// -- norm, rotate, append --------------------------------------------------------------------------------

struct Shared {
  // Both limbs of each query head, of two dimensions in turn, multiplied by a power of two that keeps
  // them in f16's range.
  uint4 query[kColumns][kQueryFours];
  // What turns a score of these limbs into an exponent of 2.
  float factor[kColumns];
  // The position's own key and value, as the cache holds them, where their tile is not yet under way.
  uint4 fresh[2][kChunks];
  // Of each warp, what its sums are relative to.
  alignas(16) float meta[kBlockWarps][kMeta];
  // What blocks of the cluster have sent of this block's slice.
  float4 inbox_meta[kCluster][kMeta / 4];
  float4 inbox[kCluster][32 * kSliceTiles];
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
  // What the norm and the rotation multiply a number by, and the other one of its pair.
  float own[kNumbers], other[kNumbers];
  float given[kNumbers], turned[kNumbers];
  float scale;          // that `turned` is still to be multiplied by
  float bound;          // of what it is then, over the head

  // All but the head itself, which the predecessor may still be writing.
  __device__ void ask(const AttendArgs& a, int number) {
    index = threadIdx.x / kPreparing, wanted = number >= 0;
    head = a.qkv + max(number, 0) * HEAD_DIM;
    const bool key = index == kHeads;
    const float* cosines = a.rotation + (key ? HEAD_DIM : 0);
    Run::read<Run::kWhole>(cosines, own, Run::pair);
    Run::read<Run::kWhole>(cosines + kHalf, other, Run::pair);
    Run::read<Run::kWhole && !kInterleaved>(key ? a.k_norm : a.q_norm, turned, Run::dimension);
  }

  // Waits for what was asked for.
  __device__ void combine() {
    bound = 0;
#pragma unroll
    for (int n = 0; n < kNumbers; ++n) {
#ifdef PLANT_NO_QK_NORM
      turned[n] = 1;
#endif
      bound = fmaxf(bound, fabsf(turned[n]));
    }
#pragma unroll
    for (int offset = kPreparing / 2; offset > 0; offset >>= 1) {
      bound = fmaxf(bound, __shfl_xor_sync(kAllLanes, bound, offset));
    }
    bound *= sqrtf(static_cast<float>(HEAD_DIM));  // no normed vector is longer
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      const float u = turned[n], v = turned[n + kPairs], cosine = own[n], sine = other[n];
      own[n] = u * cosine, own[n + kPairs] = v * cosine;
      other[n] = v * -sine, other[n + kPairs] = u * sine;
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
    for (int n = 0; n < kPairs; ++n) {
      turned[n] = given[n] * own[n] + given[n + kPairs] * other[n];
      turned[n + kPairs] = given[n + kPairs] * own[n + kPairs] + given[n] * other[n + kPairs];
    }
#pragma unroll
    for (int offset = kPreparing / 2; offset > 0; offset >>= 1) {
      sum += __shfl_xor_sync(kAllLanes, sum, offset);
    }
#ifdef PLANT_NO_QK_NORM
    scale = 1, bound = sqrtf(sum);
#else
    const float mean = sum / static_cast<float>(HEAD_DIM) + eps, guess = rsqrtf(mean);
    scale = fmaf(0.5f * guess, fmaf(-mean * guess, guess, 1.0f), guess);  // to the last bit or so, and sooner than __frsqrt_rn
#endif
  }

  // Both limbs of a query head; zero for one that there is not.
  __device__ void store_query(Shared& shared) const {
    const Power power(bound);
    const float times = wanted ? scale * power.up : 0;
    unsigned high[kPairs], low[kPairs];
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      const Limbs limbs(turned[2 * n] * times, turned[2 * n + 1] * times);
      high[n] = limbs.high, low[n] = limbs.low;
    }
    Run::write_limbs(reinterpret_cast<__half*>(shared.query[index]), high, low);
    if (threadIdx.x % kPreparing == 0) {
      shared.factor[index] = kLog2E * rsqrtf(static_cast<float>(HEAD_DIM)) * power.down;
    }
  }

  // The position's key or value as the cache rounds it, there too.
  __device__ void store_fresh(uint4* fresh, __half* cached, [[maybe_unused]] int position,
                              [[maybe_unused]] int row) const {
    const bool key = index == kHeads;
    unsigned rounded[kPairs];
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      rounded[n] = bits_of(key ? __floats2half2_rn(turned[2 * n] * scale, turned[2 * n + 1] * scale)
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
    Run::write(reinterpret_cast<__half*>(fresh), rounded);
    if constexpr (HEAD_DIM < 8 * kChunks) {
      for (int d = HEAD_DIM + threadIdx.x % kPreparing; d < 8 * kChunks; d += kPreparing) {
        reinterpret_cast<__half*>(fresh)[d] = __ushort_as_half(0);
      }
    }
    if (blockIdx.y == 0) Run::write(cached, rounded);  // once, however many subgroups there are
  }

  __device__ void store_trace(float* trace) const {
#pragma unroll
    for (int n = 0; n < kNumbers; ++n) {
      if (Run::there(n)) trace[Run::dimension(n)] = turned[n] * scale;
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
__device__ inline void clear_padding(Shared& shared, [[maybe_unused]] uint4* ring, [[maybe_unused]] int slots) {
  constexpr int kMultiplied = 16 * kRowTiles;
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
  if constexpr (kChunks < 2 * kRowTiles) {  // which no copy writes
    for (int n = lane_id(); n < slots * kTile; n += 32) {
      ring[n / kTile * kNextSlot + n % kTile * kRowChunks + kChunks] = make_uint4(0, 0, 0, 0);
    }
  }
}

// -- softmax and sums --------------------------------------------------------------------------------------

// Query limbs of 16 dimensions as a product takes them: rows are the heads' first limbs, then the second.
__device__ inline void read_query(const Shared& shared, int n, unsigned (&limbs)[4]) {
  const uint2* pairs = reinterpret_cast<const uint2*>(shared.query[lane_id() / 4]) + 8 * n + lane_id() % 4;
  const uint2 lower = pairs[0], upper = pairs[4];
  limbs[0] = lower.x, limbs[1] = lower.y, limbs[2] = upper.x, limbs[3] = upper.y;
}

struct Queries {
  unsigned limbs[kHoldsQueries ? kRowTiles : 1][4];

  __device__ explicit Queries(const Shared& shared) {
    if constexpr (kHoldsQueries) {
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) read_query(shared, n, limbs[n]);
    }
  }
};

// Where this lane's row of a tile begins, as a load of matrices takes it: positions 0 to 7, first and
// second 8 dimensions; then positions 8 to 15.
__device__ inline const uint4* row_of(const uint4* slot) {
  return slot + (lane_id() % 8 + lane_id() / 16 * 8) * kRowChunks + lane_id() / 8 % 2;
}

// A tile's keys as products take them.
struct Keys {
  unsigned of[kRowTiles][4];

  __device__ void load(const uint4* slot) {
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) load_matrices(of[n], row_of(slot) + 2 * n);
  }
};

// By halves: not one long chain.
template <int N>
__device__ inline float sum_of(const float (&of)[N]) {
  float half[(N + 1) / 2];
#pragma unroll
  for (int n = 0; n < (N + 1) / 2; ++n) half[n] = 2 * n + 1 < N ? of[2 * n] + of[2 * n + 1] : of[2 * n];
  if constexpr (N <= 2) {
    return half[0];
  } else {
    return sum_of(half);
  }
}

// Scores of a warp's positions, `left` of which exist.
__device__ inline void score(const Shared& shared, const Queries& queries, const Keys& keys, int left, float (&scores)[4]) {
  // Tensor cores cut off what they add up, so short chains are closer than a long one, and sooner done.
  float product[2][kChains][4] = {};
#pragma unroll
  for (int n = 0; n < kRowTiles; ++n) {
    const unsigned(&key)[4] = keys.of[n];
    unsigned query[4];
    if constexpr (kHoldsQueries) {
#pragma unroll
      for (int i = 0; i < 4; ++i) query[i] = queries.limbs[n][i];
    } else {
      read_query(shared, n, query);
    }
    multiply(product[0][n % kChains], query, {key[0], key[1]});
    multiply(product[1][n % kChains], query, {key[2], key[3]});
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int c = i % 2, position = 2 * (lane_id() % 4) + c + 8 * (i / 2);
    float high[kChains], low[kChains];
#pragma unroll
    for (int n = 0; n < kChains; ++n) high[n] = product[i / 2][n][c], low[n] = product[i / 2][n][c + 2];
    const float whole = sum_of(high) + sum_of(low);
    scores[i] = position < left ? whole : -INFINITY;
  }
}

// Of a head's scores in a tile.
__device__ inline float largest_of(const float (&scores)[4]) {
  float most = fmaxf(fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3]));
  most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
  return fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
}

// Weights relative to a score, as limbs; this lane's share of their sum is added to `sum`.
__device__ inline uint4 weigh(const float (&scores)[4], float most, float factor, float& sum) {
  float weights[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // A NaN score must stay one: fmaxf passes it by, the subtraction does not.
    weights[i] = power_of_two(fmaf(scores[i] - most, factor, kWeightExponent));
  }
  sum += (weights[0] + weights[1]) + (weights[2] + weights[3]);
  const Limbs first(weights[0], weights[1]), second(weights[2], weights[3]);
  return make_uint4(first.high, second.high, first.low, second.low);
}

// What sums of a warp's positions are relative to, and the weights' sum, for other warps: of two heads
// at a time, the largest scores, then the sums.
__device__ inline void write_meta(float (&meta)[kMeta], float largest, float weight) {
  weight += __shfl_xor_sync(kAllLanes, weight, 1);
  weight += __shfl_xor_sync(kAllLanes, weight, 2);
  if (lane_id() % 4 == 0) {
    float* of_head = meta + lane_id() / 8 * 4 + lane_id() / 4 % 2;
    of_head[0] = largest, of_head[2] = weight;
  }
}

// Sixteen dimensions of a tile's values, `row` this lane's (`row_of`), by the limbs of their weights.
__device__ inline void add_values(float (&sum)[4], const uint4* row, const uint4& limbs) {
  unsigned values[4];
  load_transposed(values, row);
  multiply(sum, values, {limbs.x, limbs.y});
  multiply(sum, values, {limbs.z, limbs.w});
}

// What a warp has seen: sums of all dimensions, the largest score, and this lane's share of the weights' sum.
struct Running {
  float sum[kRowTiles][4];  // dimension g: heads 2 t, 2 t + 1; then g + 8
  float largest, weight;    // of head g

  __device__ Running() : sum{}, largest(-INFINITY), weight(0) {}

  // Turns scores into weights, relative to the largest so far.
  __device__ uint4 weigh(const float (&scores)[4], float factor) {
    const float most = fmaxf(largest_of(scores), largest);
    if (!__all_sync(kAllLanes, most == largest)) {
      const float less = power_of_two((largest - most) * factor);
      const float even = __shfl_sync(kAllLanes, less, lane_id() % 4 * 8), odd = __shfl_sync(kAllLanes, less, lane_id() % 4 * 8 + 4);
      largest = most, weight *= less;
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) sum[n][0] *= even, sum[n][1] *= odd, sum[n][2] *= even, sum[n][3] *= odd;
    }
    return ::weigh(scores, most, factor, weight);
  }

  // Adds values that have been weighed.
  __device__ void add(const uint4& limbs, const uint4* slot) {
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
      float more[4] = {};  // by itself, as tensor cores cut off what they add up
      add_values(more, row_of(slot) + 2 * n, limbs);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[n][i] += more[i];
    }
  }

  // To where other warps add it up: [kRowTiles, 32 lanes], and what it is relative to.
  __device__ void write(float4* to, float (&meta)[kMeta]) {
    write_meta(meta, largest, weight);
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) to[32 * n + lane_id()] = make_float4(sum[n][0], sum[n][1], sum[n][2], sum[n][3]);
  }
};

// -- merging -------------------------------------------------------------------------------------------------

// Of heads 2 t and 2 t + 1.
struct Pair {
  float even, odd;

  __device__ Pair shuffled(int from) const {
    return {__shfl_sync(kAllLanes, even, from), __shfl_sync(kAllLanes, odd, from)};
  }
  // What weights relative to these scores count beside `most`.
  __device__ Pair below(const Pair& most, const Pair& factor) const {
    return {power_of_two((even - most.even) * factor.even), power_of_two((odd - most.odd) * factor.odd)};
  }
  __device__ Pair or_larger(const Pair& other) const { return {fmaxf(even, other.even), fmaxf(odd, other.odd)}; }
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

// Sums over several sources: of TILES row tiles each warp has its own.
template <int TILES>
struct Merged {
  static constexpr int kOwn = (TILES + kBlockWarps - 1) / kBlockWarps;
  float4 sum[kOwn];  // of tile warp + kBlockWarps * n
  Pair largest, weight;

  __device__ Merged() : sum{}, largest{-INFINITY, -INFINITY}, weight{0, 0} {}

  // Adds `count` sources in order, SOURCES at most, whose sums and metas lie so far apart: all loads are
  // under way before the first is waited for. Global memory is read past the L1, as other multiprocessors
  // wrote it.
  template <bool GLOBAL, int SOURCES>
  __device__ void add(const float4* sums, int apart, const float* metas, int metas_apart, int count, const Pair& factor) {
    const int g = lane_id() / 4, t = lane_id() % 4, warp = whole_warp_id();
    constexpr int kShares = (SOURCES + 7) / 8;  // of which a lane knows what the sums are relative to
    Pair counts[kShares], weighs[kShares], most = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < kShares; ++i) {
      float4 of = {-INFINITY, -INFINITY, 0, 0};
      if (g + 8 * i < count) of = read<GLOBAL>(reinterpret_cast<const float4*>(metas + (g + 8 * i) * metas_apart) + t);
      counts[i] = {of.x, of.y}, weighs[i] = {of.z, of.w};
    }
    float4 more[SOURCES][kOwn] = {};
#pragma unroll
    for (int s = 0; s < SOURCES; ++s) {
#pragma unroll
      for (int n = 0; n < kOwn; ++n) {
        const int tile = warp + kBlockWarps * n;
        if (s < count && tile < TILES) more[s][n] = read<GLOBAL>(sums + s * apart + 32 * tile + lane_id());
      }
    }
#pragma unroll
    for (int i = 0; i < kShares; ++i) most = most.or_larger(counts[i]);
    most = most.largest().or_larger(largest);
    const Pair less = largest.below(most, factor);
    Pair added = {};
#pragma unroll
    for (int i = 0; i < kShares; ++i) {
      counts[i] = counts[i].below(most, factor);
      added = {fmaf(counts[i].even, weighs[i].even, added.even), fmaf(counts[i].odd, weighs[i].odd, added.odd)};
    }
    added = added.summed();
    weight = {fmaf(weight.even, less.even, added.even), fmaf(weight.odd, less.odd, added.odd)};
    largest = most;
#pragma unroll
    for (int n = 0; n < kOwn; ++n) sum[n].x *= less.even, sum[n].y *= less.odd, sum[n].z *= less.even, sum[n].w *= less.odd;
#pragma unroll
    for (int s = 0; s < SOURCES; ++s) {
      if (s >= count) break;
      const Pair times = counts[s / 8].shuffled(4 * (s % 8) + t);
#pragma unroll
      for (int n = 0; n < kOwn; ++n) {
        const float4& by = more[s][n];
        add(n, by.x, by.y, by.z, by.w, times);
      }
    }
  }

  // Adds up a block's first SOURCES tiles, whose weights lie where their keys were: each warp its own
  // dimensions of all.
  template <int SOURCES>
  __device__ void add_weighed(const uint4* rings, const float (&metas)[kBlockWarps][kMeta], const Pair& factor) {
    const int t = lane_id() % 4;
    float4 of[SOURCES];
    float more[SOURCES][kOwn][4] = {};  // by themselves, as tensor cores cut off what they add up
#pragma unroll
    for (int s = 0; s < SOURCES; ++s) {
      of[s] = reinterpret_cast<const float4*>(metas[s])[t];
      const uint4 limbs = rings[s * kSlot + lane_id()];
      const uint4* row = row_of(rings + kNextSlot + s * kSlot) + 2 * warp_id();
#pragma unroll
      for (int n = 0; n < kOwn; ++n) {
        if (TILES % kBlockWarps && warp_id() + kBlockWarps * n >= TILES) continue;
        add_values(more[s][n], row + 2 * kBlockWarps * n, limbs);
      }
    }
    largest = {of[0].x, of[0].y};
#pragma unroll
    for (int s = 1; s < SOURCES; ++s) largest = largest.or_larger({of[s].x, of[s].y});
#pragma unroll
    for (int s = 0; s < SOURCES; ++s) {
      const Pair times = Pair{of[s].x, of[s].y}.below(largest, factor);
      weight = {fmaf(times.even, of[s].z, weight.even), fmaf(times.odd, of[s].w, weight.odd)};
#pragma unroll
      for (int n = 0; n < kOwn; ++n) add(n, more[s][n][0], more[s][n][1], more[s][n][2], more[s][n][3], times);
    }
  }

  __device__ void add(int n, float x, float y, float z, float w, const Pair& times) {
    sum[n].x = fmaf(x, times.even, sum[n].x), sum[n].y = fmaf(y, times.odd, sum[n].y);
    sum[n].z = fmaf(z, times.even, sum[n].z), sum[n].w = fmaf(w, times.odd, sum[n].w);
  }

  template <bool GLOBAL, class T>
  __device__ static T read(const T* from) { return GLOBAL ? __ldcg(from) : *from; }

  // Lanes of t = 0 to 3 hold all heads'.
  __device__ float4 meta() const { return make_float4(largest.even, largest.odd, weight.even, weight.odd); }

  __device__ void write_record(float* record) const {
    const int warp = whole_warp_id();
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      const int tile = warp + kBlockWarps * n;
      if (tile < TILES) reinterpret_cast<float4*>(record)[32 * tile + lane_id()] = sum[n];
    }
    if (warp == 0 && lane_id() < 4) reinterpret_cast<float4*>(record)[32 * TILES + lane_id()] = meta();
  }

  // Tile n is row tile `slice` + STEP * n.
  template <int STEP>
  __device__ void write_mixed(float* mixed, int slice, int heads) const {
    const int g = lane_id() / 4, t = lane_id() % 4;
    const float inverse[2] = {__fdividef(1.0f, weight.even), __fdividef(1.0f, weight.odd)};
    const int first = 16 * (slice + STEP * warp_id()) + g;  // dimension
    float* to = mixed + 2 * t * HEAD_DIM + first;
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      const float of[4] = {sum[n].x, sum[n].y, sum[n].z, sum[n].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int beyond = 16 * STEP * kBlockWarps * n + i / 2 * 8;
        if (2 * t + i % 2 < heads && first + beyond < HEAD_DIM) to[i % 2 * HEAD_DIM + beyond] = of[i] * inverse[i % 2];
      }
    }
  }
};

// Clusters: all blocks that take part arrive, with what they have written, and wait for the others.
__device__ inline void arrive_in_cluster() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ inline void await_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Writes to where `to`, of this block's shared memory, lies in another block of the cluster.
__device__ inline void send(const float4* to, int rank, const float4& four) {
  asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; st.shared::cluster.v4.f32 [there], {%2, %3, %4, %5}; }" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "r"(rank), "f"(four.x), "f"(four.y), "f"(four.z), "f"(four.w) : "memory");
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

// The positions of a block: its chunk of all that there are, in tiles of a warp.
struct Chunk {
  int begin, end, splits;
  __device__ Chunk(int positions, int most_splits, int split) : begin(0), end(positions), splits(1) {
    if (positions <= kUnsplit) return;
    const int tiles = (positions + kTile - 1) / kTile;
    const int clusters = min(most_splits / kCluster, (positions + kCluster * kLeast - 1) / (kCluster * kLeast));
    splits = clusters * kCluster;
    const int each = tiles / splits, longer = tiles - each * splits;
    begin = (split * each + min(split, longer)) * kTile;
    end = min(positions, begin + (each + (split < longer)) * kTile);
  }
};
static_assert(kUnsplit >= kTile * kCluster, "every block of a cluster has a tile");

// Block (kv head, subgroup of its query heads, split): those that have work come first. Shared
// memory: Shared, of which a large head's would not fit into what a kernel may declare; then a ring of
// slots for each warp, [slots, kBlockWarps, kTile, kRowChunks] (kernels/attention.py).
extern "C" __global__ void CLUSTERED __launch_bounds__(kBlockThreads, kBlocks) attend(const AttendArgs a) {
  extern __shared__ __align__(16) uint4 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  uint4* const rings = memory + sizeof(Shared) / sizeof(uint4);
  // Whatever moved the position, or filled the cache before it, ran two kernels ago or earlier: both
  // are read while the predecessor still runs.
  const int last = __ldcg(&a.state->position), split = blockIdx.z;
  const Chunk chunk(last + 1, gridDim.z, split);
  if (split >= chunk.splits) return;
  if (kCluster > 1 && chunk.splits > 1) arrive_in_cluster();

  const int kv_head = blockIdx.x, row = a.kv_heads * HEAD_DIM, end = chunk.end;
  const int warp = whole_warp_id(), slots = a.slots;
  uint4* ring = rings + warp * kSlot;
  int mine = chunk.begin + warp * kTile;
  // All of the chunk is under way at once, or there are at least as many tiles as slots.
  const bool at_once = end - chunk.begin <= kBlockTile;
  // Tiles of keys and values in turn are asked for; `asked` is the next one's first position.
  int asked = mine;
  bool of_values = false;
  const auto ask = [&](uint4* slot) {
    if (at_once || asked < end) ask_for({(of_values ? a.values : a.keys) + kv_head * HEAD_DIM, row, last, end == last + 1 ? last : -1}, asked, slot);
    commit_copies();
    if (of_values) asked += kBlockTile;
    of_values = !of_values;
  };
  const int before = blockIdx.y * kHeads, heads = min(kHeads, GROUP - before);
  const int first_head = kv_head * GROUP + before;
  const bool preparing = warp_id() < (kPreparing * (kHeads + 2) + 31) / 32;
  Preparation prepared;
  if (preparing) prepared.ask(a, head_to_prepare(a.kv_heads, first_head, heads, end == last + 1));
#pragma unroll 1
  for (int n = 0; n < (at_once ? 2 : slots); ++n) ask(ring + n * kNextSlot);
  let_in();  // attention_output reads weights early, and a residual from before this layer
  if (preparing) prepared.combine();
  clear_padding(shared, ring, slots);
  Keys keys;
  if (at_once) {
    await_copies<0>();
    __syncwarp();
    keys.load(ring);
  }

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
      uint4* fresh = shared.fresh[key ? 0 : 1];
      if (at_once) {  // into its tile
        const int index = last - chunk.begin;
        fresh = rings + (key ? 0 : kNextSlot) + index / kTile * kSlot + index % kTile * kRowChunks;
      }
      prepared.store_fresh(fresh, cached, last, row);
      if (key && a.trace_k != nullptr) prepared.store_trace(a.trace_k + kv_head * HEAD_DIM);
    }
  }
  __syncthreads();

  const Pair factor = {shared.factor[lane_id() % 4 * 2], shared.factor[lane_id() % 4 * 2 + 1]};
  const float own_factor = shared.factor[lane_id() / 4];
  Merged<kRowTiles> block;
  if (at_once) {
    float most = -INFINITY, weight = 0;
    uint4 limbs = make_uint4(0, 0, 0, 0);
    if (mine < end) {
      float scores[4];
      if (last - mine < kTile) keys.load(ring);  // which lacked the position's own
      score(shared, Queries(shared), keys, end - mine, scores);
      most = largest_of(scores);
      limbs = weigh(scores, most, own_factor, weight);
    }
    ring[lane_id()] = limbs;  // all lanes have read their keys
    write_meta(shared.meta[warp], most, weight);
    __syncthreads();
    if (end - chunk.begin <= 4 * kTile) {
      block.add_weighed<4>(rings, shared.meta, factor);
    } else {
      block.add_weighed<kBlockWarps>(rings, shared.meta, factor);
    }
  } else {
    Running so_far;
    const Queries queries(shared);
    uint4* slot = ring;
    // The next tile of the ring, with the position's own row if it is there.
    const auto await = [&](const uint4* fresh) {
      if (slots > 2) {
        await_copies<2>();
      } else {
        await_copies<1>();
      }
      __syncwarp();
      if (last - mine < kTile) {
        for (int n = lane_id(); n < kChunks; n += 32) slot[(last - mine) * kRowChunks + n] = fresh[n];
        __syncwarp();
      }
    };
    // All lanes have read it: there is room for another.
    const auto next = [&] {
      __syncwarp();
      ask(slot);
      slot = slot + kNextSlot == ring + slots * kNextSlot ? ring : slot + kNextSlot;
    };
#pragma unroll 1
    for (; mine < end; mine += kBlockTile) {
      float scores[4];
      await(shared.fresh[0]);
      keys.load(slot);
      score(shared, queries, keys, end - mine, scores);
      next();
      const uint4 limbs = so_far.weigh(scores, own_factor);
      await(shared.fresh[1]);
      so_far.add(limbs, slot);
      next();
    }
    so_far.write(reinterpret_cast<float4*>(ring), shared.meta[warp]);
    __syncthreads();
    block.add<false, kBlockWarps>(reinterpret_cast<const float4*>(rings), kSlot, shared.meta[0], kMeta, kBlockWarps, factor);
  }
  float* mixed = a.mixed + first_head * HEAD_DIM;
  if (chunk.splits == 1) {
    block.write_mixed<1>(mixed, 0, heads);
    return;
  }

  const int rank = split % kCluster, cluster = split / kCluster, clusters = chunk.splits / kCluster;
  Merged<kSliceTiles> slice;
  if constexpr (kCluster > 1) {
    await_cluster();  // that all blocks have begun
#pragma unroll
    for (int n = 0; n < block.kOwn; ++n) {
      const int tile = warp + kBlockWarps * n;
      if (tile < kRowTiles) send(shared.inbox[rank] + tile / kSlices * 32 + lane_id(), tile % kSlices, block.sum[n]);
    }
    for (int to = warp; to < kSlices; to += kBlockWarps) {  // a large head's warps are fewer
      if (lane_id() < 4) send(shared.inbox_meta[rank] + lane_id(), to, block.meta());
    }
    arrive_in_cluster();
    if (rank >= kSlices || warp >= kSliceTiles) return;
    await_cluster();
    slice.template add<false, kCluster>(shared.inbox[0], 32 * kSliceTiles, reinterpret_cast<float*>(shared.inbox_meta[0]), kMeta, kCluster, factor);
  } else {
    for (int n = 0; n < block.kOwn; ++n) slice.sum[n] = block.sum[n];
    slice.largest = block.largest, slice.weight = block.weight;
  }
  if (clusters > 1) {
    const int group = kv_head * kSubgroups + blockIdx.y;
    float* records = a.partial + static_cast<long long>(group) * gridDim.z * kRecord + rank * kSliceRecord;
    slice.write_record(records + cluster * kRecord);
    if (!arrives_last(a.arrived + group * kSlices + rank, clusters)) return;
    slice = {};
#pragma unroll 1
    for (int first = 0; first < clusters; first += kRecords) {
      const float* from = records + first * kRecord;
      slice.template add<true, kRecords>(reinterpret_cast<const float4*>(from), kRecord / 4, from + 128 * kSliceTiles, kRecord, min(kRecords, clusters - first), factor);
    }
  }
  slice.template write_mixed<kSlices>(mixed, rank, heads);
}
