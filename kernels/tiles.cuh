// Products by tensor cores, exact: 16 rows of a K-quant times activations in 24-bit fixed point.
//
// The activations' three limbs (fixed.cuh) are three columns of an int8 matrix; 4- and 6-bit quants
// are the rows of the other. So a group of 32 is one mma.m16n8k32, its sums are exact, and so are
// those of a whole superblock, each group times its integer scale. Only then do floats come in: d,
// the activations' unit, and the mins.
//
// A tile (kernels/pack.cu writes it) is 16 rows of one superblock, in one run of memory, in the order
// in which the lanes of a warp hold an mma's operand: every load is 16 bytes a lane. It begins with
// the quants' low four bits, 2048 bytes; then Q4_K: heads (d, dmin, packed scales) 256; Q6_K: upper
// bits 1024, scales 256, d 32. The tiles of a row of tiles lie one behind the other.
#pragma once

#include "fixed.cuh"
#include "formats.cuh"

constexpr int kTileRows = 16;
constexpr int kTileQ4_K = 2048 + 256, kTileQ6_K = 2048 + 1024 + 256 + 32;  // bytes

__device__ inline int tile_bytes(int format) { return format == FORMAT_Q4_K_TILED ? kTileQ4_K : kTileQ6_K; }

// d += a * b: 16 rows of bytes (unsigned or signed) times 8 columns of signed bytes, 32 deep.
__device__ inline void mma_unsigned(int (&d)[4], const uint32_t (&a)[4], const uint2& b) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}
__device__ inline void mma_signed(int (&d)[4], const uint32_t (&a)[4], const uint2& b) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

// Where a lane stands in an mma: its row (and the eighth behind), and its pair of columns.
struct LanePlace {
  int row, pair;
  __device__ LanePlace() : row(lane_id() >> 2), pair(lane_id() & 3) {}
};

// What the limb of a column (of 3, again and again) is worth.
__device__ inline float limb_worth(int limb) { return limb == 0 ? 1.0f : limb == 1 ? 256.0f : 65536.0f; }

__device__ inline uint4 shared16(const uint8_t* at) { return *reinterpret_cast<const uint4*>(at); }
__device__ inline uint32_t shared4(const uint8_t* at) { return *reinterpret_cast<const uint32_t*>(at); }

__device__ inline int byte_of(uint32_t word, int byte) { return static_cast<int>(__byte_perm(word, 0, 0x4440 | byte)); }

// Bytes of a word by a selector; its nibbles' eights stand for a byte's sign (__byte_perm has none).
__device__ inline int selected(uint32_t word, uint32_t selector) {
  int result;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(result) : "r"(word), "r"(selector));
  return result;
}

// A warp adds what a tile in shared memory gives rows `row` and `row + 8` to `sum`: the superblock's
// share of their products. A row's four lanes each hold a part.
__device__ inline void add_q4_k(const uint8_t* tile, const FixedInput& in, int superblock, float (&sum)[2]) {
  const LanePlace at;
  const int limb = at.row < 3 ? at.row : 0;  // columns behind the third are not looked at
  const int8_t* limbs = in.limbs + limb * in.stride + kUnit * superblock + 8 * at.pair;
  const uint4 head[2] = {shared16(tile + 2048 + 16 * at.row), shared16(tile + 2048 + 128 + 16 * at.row)};
  int total[2][4] = {};  // of even groups; of odd ones, whose quants are left four bits too high
#pragma unroll 1  // all of it at once would not fit the registers
  for (int half = 0; half < 2; ++half) {
    uint32_t scales[2];  // of four groups
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      scales[r] = half == 0 ? head[r].y & 0x3f3f3f3fu : (head[r].w & 0x0f0f0f0fu) | ((head[r].y >> 2) & 0x30303030u);
    }
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int chunk = 2 * half + part;
      const uint4 words = shared16(tile + 512 * chunk + 16 * lane_id());
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const uint32_t mask = odd ? 0xf0f0f0f0u : 0x0f0f0f0fu;
        const uint32_t a[4] = {words.x & mask, words.y & mask, words.z & mask, words.w & mask};
        int dot[4] = {};
        mma_unsigned(dot, a, *reinterpret_cast<const uint2*>(limbs + 32 * (2 * chunk + odd)));
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int scale = byte_of(scales[r], 2 * part + odd);
          total[odd][2 * r] += scale * dot[2 * r];
          total[odd][2 * r + 1] += scale * dot[2 * r + 1];
        }
      }
    }
  }
  // Columns 2 * pair and 2 * pair + 1 are limbs 0, 1 and 2; the others are nothing's.
  const float first = at.pair == 0 ? 1.0f : at.pair == 1 ? 65536.0f : 0.0f;
  const float second = at.pair == 0 ? 256.0f : 0.0f;
  // Mins of groups 2 * pair and 2 * pair + 1 are this lane's.
  const float2 x = *reinterpret_cast<const float2*>(in.sums + 8 * superblock + 2 * at.pair);
  const float unit = in.units[superblock];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const uint32_t four = at.pair < 2 ? head[r].z & 0x3f3f3f3fu
                                      : ((head[r].w >> 4) & 0x0f0f0f0fu) | ((head[r].z >> 2) & 0x30303030u);
    const uint32_t two = four >> (16 * (at.pair & 1));
    const float mins = fmaf(static_cast<float>(two & 63), x.x, static_cast<float>((two >> 8) & 63) * x.y);
    const int low = total[0][2 * r] + (total[1][2 * r] >> 4);  // exact: each is a multiple of 16
    const int high = total[0][2 * r + 1] + (total[1][2 * r + 1] >> 4);
    const float dots = fmaf(static_cast<float>(low), first, static_cast<float>(high) * second);
    sum[r] = fmaf(unit * from_half(head[r].x & 0xffffu), dots, sum[r]);
    sum[r] = fmaf(-from_half(head[r].x >> 16), mins, sum[r]);
  }
}

// Six columns of the mma are in use: the limbs with only the first 16 of a group, then those with
// only the last 16, which have another scale. A quant less 32 is six bits of two's complement; they
// are the upper six of a signed byte, four times as large.
__device__ inline void add_q6_k(const uint8_t* tile, const FixedInput& in, int superblock, float (&sum)[2]) {
  const LanePlace at;
  const int limb = at.row < 3 ? at.row : at.row < 6 ? at.row - 3 : 0;
  const int8_t* limbs = in.limbs + limb * in.stride + kUnit * superblock + 8 * at.pair;
  const uint32_t mine = (at.row < 3) == (at.pair < 2) ? 0xffffffffu : 0u;
  const uint8_t* behind = tile + 2048 + 1024;
  // Selects the scale of this lane's two columns, sign and all, out of a word of two groups'.
  const uint32_t select[2] = {at.pair < 2 ? 0x8880u : 0x9991u, at.pair == 0 ? 0x8880u : 0x9991u};
  int total[4] = {};
#pragma unroll 2
  for (int chunk = 0; chunk < 4; ++chunk) {
    const uint4 words = shared16(tile + 512 * chunk + 16 * lane_id());
    const uint4 uppers = shared16(tile + 2048 + 512 * (chunk / 2) + 16 * lane_id());  // of four groups
    const uint32_t scales[2] = {shared4(behind + 16 * at.row + 4 * chunk), shared4(behind + 128 + 16 * at.row + 4 * chunk)};
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int group = 2 * chunk + odd;
      const uint32_t upper = word(uppers, group & 3);
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t low = odd ? word(words, i) >> 2 : word(words, i) << 2;
        a[i] = (low & 0x3c3c3c3cu) | ((upper << (6 - 2 * i)) & 0xc0c0c0c0u);
      }
      uint2 b = *reinterpret_cast<const uint2*>(limbs + 32 * group);
      b.x &= mine, b.y &= mine;
      int dot[4] = {};
      mma_signed(dot, a, b);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int scale = selected(scales[r], select[c] + 0x2222u * odd);
          total[2 * r + c] += scale * dot[2 * r + c];
        }
      }
    }
  }
  const float first = at.pair == 3 ? 0.0f : limb_worth((2 * at.pair) % 3);
  const float second = at.pair == 3 ? 0.0f : limb_worth((2 * at.pair + 1) % 3);
  const float unit = 0.25f * in.units[superblock];
  const uint16_t* d = reinterpret_cast<const uint16_t*>(behind + 256) + at.row;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float dots = fmaf(static_cast<float>(total[2 * r]), first, static_cast<float>(total[2 * r + 1]) * second);
    sum[r] = fmaf(unit * from_half(d[8 * r]), dots, sum[r]);
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
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 1);
    sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 2);
  }
  if ((lane_id() & 3) == 0) to[lane_id() >> 2] = sum[0], to[(lane_id() >> 2) + 8] = sum[1];
}
