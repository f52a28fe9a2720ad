// Products by tensor cores, exact: 16 rows of a K-quant times activations in 24-bit fixed point.
//
// The activations' three limbs (fixed.cuh) are three columns of an int8 matrix; 4- and 6-bit quants
// are the rows of the other. So a group of 32 is one mma.m16n8k32, its sums are exact, and so are
// those of a whole superblock, each group times its integer scale. Only then do floats come in: d,
// the activations' unit, and the mins.
//
// A tile (kernels/pack.cu writes it) is 16 rows of one superblock, in one run of memory, in the order
// in which the lanes of a warp hold an mma's operand: every load is 16 bytes a lane. It begins with
// the quants: Q4_K 2048 bytes, then heads (d, dmin, packed scales) 256; Q6_K 3072, then scales 256, d 32. The tiles of a row of tiles lie one behind the other.
#pragma once

#include "fixed.cuh"
#include "formats.cuh"

constexpr int kTileRows = 16;
constexpr int kTileQ4_K = 2048 + 256, kTileQ6_K = 2048 + 1024 + 256 + 32;  // bytes

__device__ inline int tile_bytes(int format) { return format == FORMAT_Q4_K_TILED ? kTileQ4_K : kTileQ6_K; }

// d = c + a * b: 16 rows of bytes (unsigned or signed) times 8 columns of signed bytes, 32 deep.
__device__ inline void mma_unsigned(int (&d)[4], const uint32_t (&a)[4], const uint2& b, const int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}
__device__ inline void mma_signed(int (&d)[4], const uint32_t (&a)[4], const uint2& b, const int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

__device__ inline uint4 shared16(const uint8_t* at) { return *reinterpret_cast<const uint4*>(at); }
__device__ inline uint2 shared8(const int8_t* at) { return *reinterpret_cast<const uint2*>(at); }

// A byte of a word, by a selector for prmt; eights in its nibbles stand for the byte's sign
// (__byte_perm has none).
__device__ inline int selected(uint32_t word, uint32_t selector) {
  int result;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(result) : "r"(word), "r"(selector));
  return result;
}

// Where a lane stands in an mma: it holds column `row` of the second operand; of the products' rows,
// `row` and `row + 8`; of their columns, a pair.
//
// The columns are two sides of three limbs each: which side is a group's, or half of one's, so that
// one product keeps apart what has two scales. The limbs of a side are dealt out so that both columns
// of a lane are one side's, and have one scale: 0, 1 | 0, 1 | 2, none | 2, none.
struct LanePlace {
  int row, pair;
  __device__ LanePlace() : row(lane_id() >> 2), pair(lane_id() & 3) {}
  __device__ int side() const { return pair & 1; }                   // of the products
  __device__ int operand_side() const { return row >> 1 & 1; }       // of the second operand
  __device__ int operand_limb() const { return row < 4 ? row & 1 : 2; }  // columns 5 and 7 are not looked at
  // What the limbs of the two columns are worth.
  __device__ float first() const { return pair < 2 ? 1.0f : 65536.0f; }
  __device__ float second() const { return pair < 2 ? 256.0f : 0.0f; }
};

// A warp adds what a tile in shared memory gives rows `row` and `row + 8` to `sum`: the superblock's
// share of their products. A row's four lanes each hold a part.
//
// The sides are even groups, whose quants are the low four bits of bytes, and odd ones, whose are the
// high four and are left where they are, sixteen times too large.
__device__ inline void add_q4_k(const uint8_t* tile, const FixedInput& in, int superblock, float (&sum)[2]) {
  const LanePlace at;
  const int8_t* const limbs = in.limbs + at.operand_limb() * in.stride + kUnit * superblock + 8 * at.pair;
  const int8_t* const evens = at.operand_side() == 0 ? limbs : in.zeros;
  const int8_t* const odds = at.operand_side() == 1 ? limbs + 32 : in.zeros;
  const uint4 head[2] = {shared16(tile + 2048 + 16 * at.row), shared16(tile + 2048 + 128 + 16 * at.row)};
  const uint32_t select = 0x4440u + at.side();
  int total[4] = {};
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
    const uint4 words = shared16(tile + 512 * chunk + 16 * lane_id());
    const uint32_t low[4] = {words.x & 0x0f0f0f0fu, words.y & 0x0f0f0f0fu, words.z & 0x0f0f0f0fu, words.w & 0x0f0f0f0fu};
    const uint32_t high[4] = {words.x & 0xf0f0f0f0u, words.y & 0xf0f0f0f0u, words.z & 0xf0f0f0f0u, words.w & 0xf0f0f0f0u};
    int even[4], dot[4];
    mma_unsigned(even, low, shared8(evens + 64 * chunk), {0, 0, 0, 0});
    mma_unsigned(dot, high, shared8(odds + 64 * chunk), even);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint32_t four = chunk < 2 ? head[r].y & 0x3f3f3f3fu : (head[r].w & 0x0f0f0f0fu) | ((head[r].y >> 2) & 0x30303030u);
      const int scale = selected(four, select + 2 * (chunk & 1));
      total[2 * r] += scale * dot[2 * r];
      total[2 * r + 1] += scale * dot[2 * r + 1];
    }
  }
  const float worth = in.units[superblock] * (at.side() == 0 ? 1.0f : 1.0f / 16);
  const float first = worth * at.first(), second = worth * at.second();
  // Mins of groups 2 * pair and 2 * pair + 1 are this lane's.
  const float2 x = *reinterpret_cast<const float2*>(in.sums + 8 * superblock + 2 * at.pair);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const uint32_t four = at.pair < 2 ? head[r].z & 0x3f3f3f3fu
                                      : ((head[r].w >> 4) & 0x0f0f0f0fu) | ((head[r].z >> 2) & 0x30303030u);
    const int byte = 2 * (at.pair & 1);
    const float mins = fmaf(byte_as_float(four, byte), x.x, byte_as_float(four, byte + 1) * x.y);
    const float dots = fmaf(static_cast<float>(total[2 * r]), first, static_cast<float>(total[2 * r + 1]) * second);
    const float2 d = __half22float2(*reinterpret_cast<const __half2*>(&head[r].x));  // d, dmin
    sum[r] = fmaf(d.x, dots, sum[r]);
    sum[r] = fmaf(-d.y, mins, sum[r]);
  }
}

// The sides are the first and the last 16 of a group, which have each a scale. A quant less 32 is six
// bits of two's complement; they are the upper six of a signed byte, four times as large. So are those
// of three groups of four; the lower two bits of the three are the fourth group's.
__device__ inline void add_q6_k(const uint8_t* tile, const FixedInput& in, int superblock, float (&sum)[2]) {
  const LanePlace at;
  const int8_t* const limbs = at.operand_side() == at.pair / 2
                                  ? in.limbs + at.operand_limb() * in.stride + kUnit * superblock + 8 * at.pair
                                  : in.zeros;
  const uint8_t* const behind = tile + 3072 + 16 * at.row;
  const uint32_t select = at.side() == 0 ? 0x8880u : 0x9991u;
  int total[4] = {};
#pragma unroll 1
  for (int half = 0; half < 2; ++half) {
    uint4 words[3];
#pragma unroll
    for (int w = 0; w < 3; ++w) words[w] = shared16(tile + 1536 * half + 512 * w + 16 * lane_id());
    uint2 scales[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) scales[r] = *reinterpret_cast<const uint2*>(behind + 128 * r + 8 * half);
#pragma unroll
    for (int group = 0; group < 4; ++group) {
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i] = group < 3 ? word(words[group], i) & 0xfcfcfcfcu
                         : ((word(words[0], i) << 6) & 0xc0c0c0c0u) | ((word(words[1], i) << 4) & 0x30303030u) |
                               ((word(words[2], i) << 2) & 0x0c0c0c0cu);
      }
      int dot[4];
      mma_signed(dot, a, shared8(limbs + 128 * half + 32 * group), {0, 0, 0, 0});
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int scale = selected(group < 2 ? scales[r].x : scales[r].y, select + 0x2222u * (group & 1));
        total[2 * r] += scale * dot[2 * r];
        total[2 * r + 1] += scale * dot[2 * r + 1];
      }
    }
  }
  const float worth = 0.25f * in.units[superblock], first = worth * at.first(), second = worth * at.second();
  const uint16_t* d = reinterpret_cast<const uint16_t*>(tile + 3072 + 256) + at.row;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float dots = fmaf(static_cast<float>(total[2 * r]), first, static_cast<float>(total[2 * r + 1]) * second);
    sum[r] = fmaf(from_half(d[8 * r]), dots, sum[r]);
  }
}

// One warp: what a tile gives its 16 rows, into `to` [16].
__device__ inline void tile_product(const uint8_t* tile, int format, const FixedInput& in, int superblock, float* to) {
  float sum[2] = {};
  if (format == FORMAT_Q4_K_TILED) {
    add_q4_k(tile, in, superblock, sum);
  } else {
    add_q6_k(tile, in, superblock, sum);
  }
  // Of two neighbours each adds up one row's parts, then two of each row's lanes theirs.
  const bool upper = lane_id() & 1;
  float own = upper ? sum[1] : sum[0];
  own += __shfl_xor_sync(kAllLanes, upper ? sum[0] : sum[1], 1);
  own += __shfl_xor_sync(kAllLanes, own, 2);
  if ((lane_id() & 2) == 0) to[(lane_id() >> 2) + (upper ? 8 : 0)] = own;
}
