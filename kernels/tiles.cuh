// Products by tensor cores, exact: 16 rows of a K-quant times activations in 24-bit fixed point.
//
// The activations' three limbs (fixed.cuh) are three columns of an int8 matrix; 4- and 6-bit quants
// are the rows of the other. So a group of 32 is one mma.m16n8k32, its sums are exact, and so are
// those of a whole superblock, each group times its integer scale. Only then do floats come in: d,
// the activations' unit, and the mins.
//
// A tile (kernels/pack.cu writes it) is 16 rows of one superblock, in one run of memory, in the order
// in which the lanes of a warp hold an mma's operand: every load is 16 bytes a lane. It begins with
// the quants: Q4_K 2048 bytes, then heads 256; Q6_K 3072, then scales 256, d 32. The tiles of a row of
// tiles lie one behind the other.
//
// Heads and scales are 32 bytes for rows r and r + 8, r = 0 to 7, always a word of r, then the same of
// r + 8. Q4_K: six bits of the scales of the even groups, above them bits 4 and 5 of their mins; the same
// of the odd groups; bits 0 to 3 of the even groups' mins, and above them of the odd groups'; d and dmin.
// Q6_K: for each four groups the scales of their first 16, then of their last 16.
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

// The same, 16 deep, and nothing added.
__device__ inline void mma_short(int (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%7,%7,%7};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b), "r"(0));
}

__device__ inline uint4 shared16(const void* at) { return *static_cast<const uint4*>(at); }
__device__ inline uint2 shared8(const void* at) { return *static_cast<const uint2*>(at); }
__device__ inline uint2 half_of(const uint4& four, int half) {
  return half == 0 ? make_uint2(four.x, four.y) : make_uint2(four.z, four.w);
}

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
  __device__ float first() const { return pair < 2 ? 1.0f : 65536.0f; }  // what the first column's limb is worth
  // Both columns' sums, in the first one's worth.
  __device__ float joined(int a, int b) const { return fmaf(static_cast<float>(b), pair < 2 ? 256.0f : 0.0f, static_cast<float>(a)); }
};

// A warp finds what a tile in shared memory gives rows `row` and `row + 8`: the superblock's share of
// their products. A row's four lanes each have a part.
//
// The sides are even groups, whose quants are the low four bits of bytes, and odd ones, whose are the
// high four and are left where they are, sixteen times too large.
//
// Mins are a product, too, with the limbs of the groups' sums; it has to do with the first side alone.
// A lane holds four bits of its side's four mins, or the other two, which lie above the scales.
__device__ inline void product_q4_k(const uint8_t* tile, const FixedInput& in, int superblock, float (&sum)[2]) {
  const LanePlace at;
  const uint8_t* const head = tile + 2048 + 32 * at.row;  // of both rows
  const uint2 scales = shared8(head + 8 * at.side()), d = shared8(head + 24);
  const bool nibbles = at.pair < 2;
  const uint2 packed = shared8(head + (nibbles ? 16 : 8 * at.side()));
  const int shift = nibbles ? 4 * at.side() : 2;
  const uint32_t wanted = nibbles ? 0x0f0f0f0fu : 0x30303030u;
  const int8_t* const sums =
      at.operand_side() == 0 ? in.sums + 32 * superblock + 8 * (at.row / 4 * 2 + (at.row & 1)) + 4 * at.side() : in.zeros;
  int mins[4];
  mma_short(mins, {(packed.x >> shift) & wanted, (packed.y >> shift) & wanted}, *reinterpret_cast<const uint32_t*>(sums));
  const uint32_t six[2] = {scales.x & 0x3f3f3f3fu, scales.y & 0x3f3f3f3fu};
  const int8_t* const limbs = in.limbs + at.operand_limb() * in.stride + kUnit * superblock + 32 * at.pair;
  const int8_t* const evens = at.operand_side() == 0 ? limbs : in.zeros;
  const int8_t* const odds = at.operand_side() == 1 ? limbs + 128 : in.zeros;
  uint4 even_limbs, odd_limbs;  // of two chunks
  int total[4] = {};
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
    if (chunk % 2 == 0) even_limbs = shared16(evens + 8 * chunk), odd_limbs = shared16(odds + 8 * chunk);
    const uint4 words = shared16(tile + 512 * chunk + 16 * lane_id());
    const uint32_t low[4] = {words.x & 0x0f0f0f0fu, words.y & 0x0f0f0f0fu, words.z & 0x0f0f0f0fu, words.w & 0x0f0f0f0fu};
    const uint32_t high[4] = {words.x & 0xf0f0f0f0u, words.y & 0xf0f0f0f0u, words.z & 0xf0f0f0f0u, words.w & 0xf0f0f0f0u};
    int even[4], dot[4];
    mma_unsigned(even, low, half_of(even_limbs, chunk % 2), {0, 0, 0, 0});
    mma_unsigned(dot, high, half_of(odd_limbs, chunk % 2), even);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int scale = selected(six[r], 0x4440u + chunk);
      total[2 * r] += scale * dot[2 * r];
      total[2 * r + 1] += scale * dot[2 * r + 1];
    }
  }
  const float worth = in.units[superblock] * (at.first() * (at.side() == 0 ? 1.0f : 1.0f / 16));
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float2 both = __half22float2(*reinterpret_cast<const __half2*>(r == 0 ? &d.x : &d.y));  // d, dmin
    // Below 2^24, so that it is exact as a float. Sums have a fourth limb, in the column beside the third.
    const float least = static_cast<float>(mins[2 * r] + 256 * mins[2 * r + 1]);
    sum[r] = worth * fmaf(-both.y, least, both.x * at.joined(total[2 * r], total[2 * r + 1]));
  }
}

// The sides are the first and the last 16 of a group, which have each a scale. A quant less 32 is six
// bits of two's complement; they are the upper six of a signed byte, four times as large. So are those
// of three groups of four; the lower two bits of the three are the fourth group's.
__device__ inline void product_q6_k(const uint8_t* tile, const FixedInput& in, int superblock, float (&sum)[2]) {
  const LanePlace at;
  const int8_t* const limbs = at.operand_side() == at.pair / 2
                                  ? in.limbs + at.operand_limb() * in.stride + kUnit * superblock + 32 * at.pair
                                  : in.zeros;
  const uint8_t* const behind = tile + 3072 + 32 * at.row + 8 * at.side();
  int total[4] = {};
#pragma unroll 1
  for (int half = 0; half < 2; ++half) {
    uint4 words[3];
#pragma unroll
    for (int w = 0; w < 3; ++w) words[w] = shared16(tile + 1536 * half + 512 * w + 16 * lane_id());
    const uint4 sides[2] = {shared16(limbs + 16 * half), shared16(limbs + 128 + 16 * half)};  // even groups, odd ones
    const uint2 scales = shared8(behind + 16 * half);
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
      mma_signed(dot, a, half_of(sides[group % 2], group / 2), {0, 0, 0, 0});
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int scale = selected(r == 0 ? scales.x : scales.y, 0x8880u + 0x1111u * group);
        total[2 * r] += scale * dot[2 * r];
        total[2 * r + 1] += scale * dot[2 * r + 1];
      }
    }
  }
  const float worth = 0.25f * at.first() * in.units[superblock];
  const uint16_t* d = reinterpret_cast<const uint16_t*>(tile + 3072 + 256) + at.row;
#pragma unroll
  for (int r = 0; r < 2; ++r) sum[r] = worth * (from_half(d[8 * r]) * at.joined(total[2 * r], total[2 * r + 1]));
}

// One warp: what a tile gives its 16 rows, into `to` [16].
__device__ inline void tile_product(const uint8_t* tile, int format, const FixedInput& in, int superblock, float* to) {
  float sum[2];
  if (format == FORMAT_Q4_K_TILED) {
    product_q4_k(tile, in, superblock, sum);
  } else {
    product_q6_k(tile, in, superblock, sum);
  }
  // Of two neighbours each adds up one row's parts, then two of each row's lanes theirs.
  const bool upper = lane_id() & 1;
  float own = upper ? sum[1] : sum[0];
  own += __shfl_xor_sync(kAllLanes, upper ? sum[0] : sum[1], 1);
  own += __shfl_xor_sync(kAllLanes, own, 2);
  if ((lane_id() & 2) == 0) to[(lane_id() >> 2) + (upper ? 8 : 0)] = own;
}
