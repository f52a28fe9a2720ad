// Products by tensor cores, exact: 16 rows of a K-quant times activations in 24-bit fixed point.
//
// For each 256 activations there is one scale, and each activation is an integer below 2^23 (the
// rounding is as fine as a float32 sum's own). Its three signed bytes, the limbs, are three columns
// of an int8 matrix; 4- and 6-bit quants are the rows of the other. So a group of 32 is one
// mma.m16n8k32, its sums are exact, and so are those of a whole superblock, each group times its
// integer scale. Only then do floats come in: d, the activations' scale, and the mins.
//
// Tiles (kernels/pack.cu writes them): 16 rows of one superblock lie together, in the order in which
// the lanes of a warp hold an mma's operand, so that every load is 16 bytes (8 of Q6_K's upper bits)
// and a warp's loads are one run of memory. Planes, each of all tiles: Q4_K: nibbles 2048, heads
// 256; Q6_K: nibbles 2048, upper bits 1024, scales 256, d 32 bytes.
#pragma once

#include "formats.cuh"
#include "input.cuh"

constexpr int kTileRows = 16;

// The tile of a row, counted over all experts.
__device__ inline int tile_of(long long row) { return static_cast<int>(row / kTileRows); }

// d += a * b: 16 rows of unsigned bytes times 8 columns of signed bytes, 32 deep.
__device__ inline void mma(int (&d)[4], const uint32_t (&a)[4], const uint2& b) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

__device__ inline float limb_worth(int limb) { return limb == 0 ? 1.0f : limb == 1 ? 256.0f : 65536.0f; }

// Where a lane stands in an mma: its row (and the eighth behind), and its pair of columns.
struct LanePlace {
  int row, pair;
  __device__ LanePlace() : row(lane_id() >> 2), pair(lane_id() & 3) {}
};

// The 8 bytes of a limb that a lane feeds into the mma of `group`; column `row` of the operand.
__device__ inline uint2 limb_operand(const Input& in, int limb, int group, int pair) {
  return *reinterpret_cast<const uint2*>(in.limbs + limb * in.limb_stride + in.first + 32 * group + 8 * pair);
}

// A lane's share of a superblock of a tile: four words of nibbles, then what the format has besides.
struct TileWords { uint4 part[9]; };

__device__ inline void load_nibbles(const Matrix& m, int tile, TileWords& words) {
#pragma unroll
  for (int i = 0; i < 4; ++i) words.part[i] = load16(m.base + 2048LL * tile + 512 * i + 16 * lane_id());
}

struct TileQ4_K {
  // Superblock `tile`, counted over all tiles.
  static __device__ TileWords load(const Matrix& m, int tile) {
    TileWords words = {};
    load_nibbles(m, tile, words);
    const uint8_t* heads = m.base + m.blocks * 128 + 256LL * tile + 16 * LanePlace().row;
    words.part[4] = load16(heads), words.part[5] = load16(heads + 128);
    return words;
  }

  // Adds what the `superblock`-th of a row gives rows `row` and `row + 8` to `sum`; a row's lanes
  // each hold a part.
  static __device__ void add(const TileWords& tile, const Input& in, int superblock, float (&sum)[2]) {
    const LanePlace at;
    const uint4 head[2] = {tile.part[4], tile.part[5]};
    const int limb = at.row < 3 ? at.row : 0;  // columns behind the third are not looked at
    int total[4] = {};
    uint32_t scales[2][2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      scales[r][0] = head[r].y & 0x3f3f3f3fu;
      scales[r][1] = (head[r].w & 0x0f0f0f0fu) | ((head[r].y >> 2) & 0x30303030u);
    }
#pragma unroll
    for (int group = 0; group < 8; ++group) {
      const uint4 words = tile.part[group / 2];  // of two groups
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = (word(words, i) >> (4 * (group & 1))) & 0x0f0f0f0fu;
      int dot[4] = {};
      mma(dot, a, limb_operand(in, limb, 8 * superblock + group, at.pair));
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int scale = (scales[r][group / 4] >> (8 * (group & 3))) & 63;
        total[2 * r] += scale * dot[2 * r];
        total[2 * r + 1] += scale * dot[2 * r + 1];
      }
    }
    // Columns 2 * pair and 2 * pair + 1 are limbs 0, 1 and 2; the others are nothing's.
    const float first = at.pair == 0 ? 1.0f : at.pair == 1 ? 65536.0f : 0.0f;
    const float second = at.pair == 0 ? 256.0f : 0.0f;
    // Mins of groups 2 * pair and 2 * pair + 1 are this lane's.
    const float2 x = *reinterpret_cast<const float2*>(in.sums + (in.first >> 5) + 8 * superblock + 2 * at.pair);
    const float unit = in.scales[(in.first >> 8) + superblock];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint32_t four = at.pair < 2 ? head[r].z & 0x3f3f3f3fu
                                        : ((head[r].w >> 4) & 0x0f0f0f0fu) | ((head[r].z >> 2) & 0x30303030u);
      const uint32_t two = four >> (16 * (at.pair & 1));
      const float mins = fmaf(static_cast<float>(two & 63), x.x, static_cast<float>((two >> 8) & 63) * x.y);
      const float dots = fmaf(static_cast<float>(total[2 * r]), first, static_cast<float>(total[2 * r + 1]) * second);
      sum[r] = fmaf(unit * from_half(head[r].x & 0xffffu), dots, sum[r]);
      sum[r] = fmaf(-from_half(head[r].x >> 16), mins, sum[r]);
    }
  }
};

struct TileQ6_K {
  // Six columns of the mma are in use: the limbs with only the first 16 of a group, then those with
  // only the last 16, which have another scale. The sums start at -32 times the limbs' own, as the
  // quants are stored 32 too high.
  static __device__ TileWords load(const Matrix& m, int tile) {
    TileWords words;
    load_nibbles(m, tile, words);
    const int row = LanePlace().row;
    const uint8_t* uppers = m.base + m.blocks * 128 + 1024LL * tile + 8 * lane_id();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint2 two[2] = {load8(uppers + 512 * i), load8(uppers + 512 * i + 256)};
      words.part[4 + i] = make_uint4(two[0].x, two[0].y, two[1].x, two[1].y);
    }
    const uint8_t* scale = m.base + m.blocks * 192 + 256LL * tile + 16 * row;
    words.part[6] = load16(scale), words.part[7] = load16(scale + 128);
    const uint16_t* d = reinterpret_cast<const uint16_t*>(m.base + m.blocks * 208 + 32LL * tile) + row;
    words.part[8] = make_uint4(__ldg(d), __ldg(d + 8), 0, 0);
    return words;
  }

  static __device__ void add(const TileWords& tile, const Input& in, int superblock, float (&sum)[2]) {
    const LanePlace at;
    const uint4 scales[2] = {tile.part[6], tile.part[7]};
    const uint32_t d_of[2] = {tile.part[8].x, tile.part[8].y};
    const int limb = at.row < 3 ? at.row : at.row < 6 ? at.row - 3 : 0;
    const uint32_t mine = (at.row < 3) == (at.pair < 2) ? 0xffffffffu : 0u;
    const int shift[2] = {at.pair < 2 ? 0 : 8, at.pair == 0 ? 0 : 8};  // of the columns' scales
    int total[4] = {};
#pragma unroll
    for (int group = 0; group < 8; ++group) {
      const uint4 words = tile.part[group / 2];
      const uint32_t upper = word(tile.part[4 + group / 4], group & 3);
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t high = i < 2 ? upper << (4 - 2 * i) : upper >> (2 * i - 4);
        a[i] = ((word(words, i) >> (4 * (group & 1))) & 0x0f0f0f0fu) | (high & 0x30303030u);
      }
      uint2 b = limb_operand(in, limb, 8 * superblock + group, at.pair);
      b.x &= mine, b.y &= mine;
      const int2 start = *reinterpret_cast<const int2*>(in.offsets + 8 * ((in.first >> 5) + 8 * superblock + group) + 2 * at.pair);
      int dot[4] = {start.x, start.y, start.x, start.y};
      mma(dot, a, b);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t pair = word(scales[r], group / 2) >> (16 * (group & 1));
        total[2 * r] += signed_byte(pair >> shift[0], 0) * dot[2 * r];
        total[2 * r + 1] += signed_byte(pair >> shift[1], 0) * dot[2 * r + 1];
      }
    }
    const float first = at.pair == 3 ? 0.0f : limb_worth((2 * at.pair) % 3);
    const float second = at.pair == 3 ? 0.0f : limb_worth((2 * at.pair + 1) % 3);
    const float unit = in.scales[(in.first >> 8) + superblock];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float dots = fmaf(static_cast<float>(total[2 * r]), first, static_cast<float>(total[2 * r + 1]) * second);
      sum[r] = fmaf(unit * from_half(d_of[r]), dots, sum[r]);
    }
  }
};

// What a warp asked for before it could use it: the first superblock of its next `tile_sum`. The
// registers for it are few where three blocks share a multiprocessor: then nothing is held.
template <bool EARLY>
struct TileAhead {
  TileWords words;
};
template <>
struct TileAhead<false> {};

// One warp: superblocks `from`, `from + step`, ... of a tile. Lanes of row r (and r + 8) all receive
// the rows' sums over those. EARLY: the first is here already, and each further one is asked for
// before the last is added.
template <class F, bool EARLY>
__device__ inline void tile_sum(const Matrix& m, int tile, int from, int step, const Input& in,
                                TileAhead<EARLY> ahead, float (&sum)[2]) {
  const int superblocks = m.columns / 256;
  sum[0] = sum[1] = 0;
#pragma unroll 1
  for (int s = from; s < superblocks; s += step) {
    if constexpr (EARLY) {
      const TileWords words = ahead.words;
      if (s + step < superblocks) ahead.words = F::load(m, tile * superblocks + s + step);
      F::add(words, in, s, sum);
    } else {
      F::add(F::load(m, tile * superblocks + s), in, s, sum);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 1);
    sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 2);
  }
}

// For `any_tile_sum` from there on.
template <bool EARLY>
__device__ inline TileAhead<EARLY> tile_ahead(const Matrix& m, int tile, int from) {
  TileAhead<EARLY> ahead = {};
  if constexpr (EARLY) {
    const int superblocks = m.columns / 256;
    const int at = tile * superblocks + from;
    if (from < superblocks) ahead.words = m.format == FORMAT_Q4_K_TILED ? TileQ4_K::load(m, at) : TileQ6_K::load(m, at);
  }
  return ahead;
}

template <bool EARLY>
__device__ inline void any_tile_sum(const Matrix& m, int tile, int from, int step, const Input& in,
                                    TileAhead<EARLY> ahead, float (&sum)[2]) {
  if (m.format == FORMAT_Q4_K_TILED) {
    tile_sum<TileQ4_K, EARLY>(m, tile, from, step, in, ahead, sum);
  } else {
    tile_sum<TileQ6_K, EARLY>(m, tile, from, step, in, ahead, sum);
  }
}
