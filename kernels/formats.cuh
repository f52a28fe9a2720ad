// Weight matrices in quantised blocks, and how a warp reads them.
//
// A Matrix is what kernels/weights.py packs: rows of whole blocks. Q4_K and Q5_K keep GGUF's own
// blocks (144 and 176 bytes: both multiples of 16). Q6_K (210 bytes) and Q8_0 (34) do not align,
// so their planes lie apart: all quants, then all scales, then all block scales.
//
// A format splits a row into pieces that one lane loads at a time, as wide as alignment allows.
// A piece holds PIECE weights: PIECE / RUN runs of RUN neighbouring columns.
//
// Block layouts: gguf.quants, ggml's ggml-common.h.
#pragma once

#include "common.cuh"

enum Format {
  FORMAT_F32, FORMAT_F16, FORMAT_BF16, FORMAT_Q8_0, FORMAT_Q4_K, FORMAT_Q5_K, FORMAT_Q6_K,
  FORMAT_Q4_K_TILED, FORMAT_Q6_K_TILED  // tiles.cuh
};

struct Matrix {
  const uint8_t* base;
  long long blocks;  // in all rows of the tensor: where the planes behind the first begin
  int rows;          // of one expert, where there are several
  int columns;
  int format;
  int padding;
};

__device__ inline float from_half(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

// 8388608 + byte, exactly, out of one byte permutation; cheaper than a conversion.
__device__ inline float byte_as_float(uint32_t word, int byte) {
  return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7540 | byte)) - 8388608.0f;
}

__device__ inline float byte_less_32(uint32_t word, int byte) {
  return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7540 | byte)) - 8388640.0f;
}

// Asks for memory that will be read soon, from DRAM into the L2: the request returns nothing and
// waits for nothing, so it can be made before the input is there.
__device__ inline void prefetch(const uint8_t* from, long long bytes) {
  for (long long at = 128 * (threadIdx.x & 31); at < bytes; at += 128 * 32) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
  }
}

// Bytes of a row's quants in the first plane.
__device__ inline long long bulk_bytes(const Matrix& m) {
  switch (m.format) {
    case FORMAT_Q4_K: return m.columns / 256 * 144ll;
    case FORMAT_Q6_K: return m.columns / 256 * 192ll;
    case FORMAT_Q5_K: return m.columns / 256 * 176ll;
    case FORMAT_Q8_0: return m.columns;
    case FORMAT_F32: return 4ll * m.columns;
    default: return 2ll * m.columns;
  }
}

// A warp asks for the quants of `count` rows from `row` on.
__device__ inline void prefetch_rows(const Matrix& m, long long row, int count) {
  const long long bytes = bulk_bytes(m);
  prefetch(m.base + row * bytes, count * bytes);
}

__device__ inline int signed_byte(uint32_t word, int byte) {
  return static_cast<int>(static_cast<int8_t>(word >> (8 * byte)));
}

__device__ inline uint4 load16(const void* at) { return __ldg(static_cast<const uint4*>(at)); }
__device__ inline uint2 load8(const void* at) { return __ldg(static_cast<const uint2*>(at)); }

__device__ inline uint32_t word(const uint4& four, int index) {
  return index == 0 ? four.x : index == 1 ? four.y : index == 2 ? four.z : four.w;
}

// A piece times x, weight by weight: plain formats have one run a piece, and no scale.
template <class F>
__device__ inline float plain_dot(const typename F::Raw& raw, int piece, const float (&x)[F::RUN]) {
  float w[F::PIECE], sum = 0;
  F::decode(raw, piece, w);
#pragma unroll
  for (int i = 0; i < F::RUN; ++i) sum = fmaf(w[i], x[i], sum);
  return sum;
}

// -- plain formats --------------------------------------------------------------------------------

struct PlainF32 {
  static constexpr int BLOCK = 1, PIECE = 4, RUN = 4;
  static constexpr bool K_QUANT = false, GROUPED = false;
  struct Row { const float* values; };
  struct Raw { uint4 bits; };
  static __device__ Row open(const Matrix& m, long long row) {
    return {reinterpret_cast<const float*>(m.base) + row * m.columns};
  }
  static __device__ int column(int piece, int) { return piece * PIECE; }
  static __device__ Raw load(const Row& row, int piece) { return {load16(row.values + piece * PIECE)}; }
  static __device__ void decode(const Raw& raw, int, float (&w)[PIECE]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = __uint_as_float(word(raw.bits, i));
  }
  static __device__ float dot(const Raw& raw, int piece, int, const float (&x)[RUN], float) {
    return plain_dot<PlainF32>(raw, piece, x);
  }
  static __device__ float value(const Row& row, int k) { return __ldg(row.values + k); }
};

template <bool BRAIN>
struct Plain16 {
  static constexpr int BLOCK = 1, PIECE = 8, RUN = 8;
  static constexpr bool K_QUANT = false, GROUPED = false;
  struct Row { const uint16_t* values; };
  struct Raw { uint4 bits; };
  static __device__ float as_float(uint32_t bits) {
    return BRAIN ? __uint_as_float(bits << 16) : from_half(bits);
  }
  static __device__ Row open(const Matrix& m, long long row) {
    return {reinterpret_cast<const uint16_t*>(m.base) + row * m.columns};
  }
  static __device__ int column(int piece, int) { return piece * PIECE; }
  static __device__ Raw load(const Row& row, int piece) { return {load16(row.values + piece * PIECE)}; }
  static __device__ void decode(const Raw& raw, int, float (&w)[PIECE]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w[2 * i] = as_float(word(raw.bits, i) & 0xffffu);
      w[2 * i + 1] = as_float(word(raw.bits, i) >> 16);
    }
  }
  static __device__ float dot(const Raw& raw, int piece, int, const float (&x)[RUN], float) {
    return plain_dot<Plain16>(raw, piece, x);
  }
  static __device__ float value(const Row& row, int k) { return as_float(__ldg(row.values + k)); }
};
using PlainF16 = Plain16<false>;
using PlainBF16 = Plain16<true>;

// -- Q8_0: 32 int8 and an f16 scale ------------------------------------------------------------------

struct Q8_0 {
  static constexpr int BLOCK = 32, PIECE = 32, RUN = 16;
  static constexpr bool K_QUANT = false, GROUPED = true;
  struct Row { const uint8_t* quants; const uint16_t* scales; };
  struct Raw { uint4 low, high; uint16_t d; };
  static __device__ Row open(const Matrix& m, long long row) {
    const long long first = row * (m.columns / BLOCK);
    return {m.base + first * 32, reinterpret_cast<const uint16_t*>(m.base + m.blocks * 32) + first};
  }
  static __device__ int column(int piece, int run) { return piece * PIECE + run * RUN; }
  static __device__ Raw load(const Row& row, int piece) {
    const uint8_t* at = row.quants + piece * 32;
    return {load16(at), load16(at + 16), __ldg(row.scales + piece)};
  }
  static __device__ void decode(const Raw& raw, int, float (&w)[PIECE]) {
    const float d = from_half(raw.d);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const uint32_t four = word(i < 16 ? raw.low : raw.high, (i & 15) / 4);
      w[i] = d * static_cast<float>(signed_byte(four, i & 3));
    }
  }
  static __device__ float dot(const Raw& raw, int, int run, const float (&x)[RUN], float) {
    float even = 0, odd = 0;
#pragma unroll
    for (int i = 0; i < RUN; i += 2) {
      const uint32_t four = word(run ? raw.high : raw.low, i / 4);
      even = fmaf(static_cast<float>(signed_byte(four, i & 3)), x[i], even);
      odd = fmaf(static_cast<float>(signed_byte(four, (i & 3) + 1)), x[i + 1], odd);
    }
    return from_half(raw.d) * (even + odd);
  }
  static __device__ float value(const Row& row, int k) {
    const int q = static_cast<int8_t>(__ldg(row.quants + k));
    return static_cast<float>(q) * from_half(__ldg(row.scales + k / 32));
  }
};

// -- Q4_K and Q5_K: eight groups of 32 with 6-bit scales and mins --------------------------------------

// Scale (MIN: min) of a group out of a block's first 16 bytes: d, dmin, then 12 bytes of 6-bit
// numbers. Four lie in the low six bits of a byte; four have their low nibble in the last four
// bytes and their upper two bits on top of the former.
template <bool MIN>
__device__ inline int six_bits(const uint4& head, int group) {
  const int shift = 8 * (group & 3);
  const uint32_t own = (MIN ? head.z : head.y) >> shift;
  if (group < 4) return own & 63;
  return ((head.w >> (shift + (MIN ? 4 : 0))) & 15) | (((own >> 6) & 3) << 4);
}

// A piece is 16 bytes of nibbles: 16 columns of an even group (low) and of the odd one behind it.
template <int FIFTH_BIT>
struct Nibbles {
  static constexpr int BLOCK = 256, PIECE = 32, RUN = 16;
  static constexpr int BYTES = FIFTH_BIT ? 176 : 144, QUANTS = FIFTH_BIT ? 48 : 16;
  static constexpr bool K_QUANT = true, GROUPED = true;
  struct Row { const uint8_t* blocks; };
  struct Raw { uint4 head, quants, fifth; };
  static __device__ Row open(const Matrix& m, long long row) {
    return {m.base + row * (m.columns / BLOCK) * BYTES};
  }
  static __device__ int pair(int piece) { return (piece >> 1) & 3; }
  static __device__ int column(int piece, int run) {
    return (piece >> 3) * BLOCK + pair(piece) * 64 + (piece & 1) * 16 + run * 32;
  }
  static __device__ Raw load(const Row& row, int piece) {
    const uint8_t* block = row.blocks + (piece >> 3) * BYTES;
    const int half = 16 * (piece & 1);
    Raw raw{load16(block), load16(block + QUANTS + 32 * pair(piece) + half), {}};
    if (FIFTH_BIT) raw.fifth = load16(block + 16 + half);
    return raw;
  }
  // Four quants of a run, a byte each.
  static __device__ uint32_t quants(const Raw& raw, int piece, int run, int index) {
    uint32_t four = (word(raw.quants, index) >> (4 * run)) & 0x0f0f0f0fu;
    if (FIFTH_BIT) four |= ((word(raw.fifth, index) >> (2 * pair(piece) + run)) & 0x01010101u) << 4;
    return four;
  }
  static __device__ void decode(const Raw& raw, int piece, float (&w)[PIECE]) {
    const float d = from_half(raw.head.x & 0xffffu), dmin = -from_half(raw.head.x >> 16);
#pragma unroll
    for (int run = 0; run < 2; ++run) {
      const int group = 2 * pair(piece) + run;
      const float scale = d * static_cast<float>(six_bits<false>(raw.head, group));
      const float bias = dmin * static_cast<float>(six_bits<true>(raw.head, group));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t four = quants(raw, piece, run, i);
#pragma unroll
        for (int b = 0; b < 4; ++b) {
          w[run * 16 + 4 * i + b] = fmaf(byte_as_float(four, b), scale, bias);
        }
      }
    }
  }
  // A run times x: scale and min leave the sum, one multiplication a group and not one a weight.
  static __device__ float dot(const Raw& raw, int piece, int run, const float (&x)[RUN], float x_sum) {
    const int group = 2 * pair(piece) + run;
    float even = 0, odd = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t four = quants(raw, piece, run, i);
#pragma unroll
      for (int b = 0; b < 4; b += 2) {
        even = fmaf(byte_as_float(four, b), x[4 * i + b], even);
        odd = fmaf(byte_as_float(four, b + 1), x[4 * i + b + 1], odd);
      }
    }
    const float scale = from_half(raw.head.x & 0xffffu) * static_cast<float>(six_bits<false>(raw.head, group));
    const float bias = from_half(raw.head.x >> 16) * static_cast<float>(six_bits<true>(raw.head, group));
    return scale * (even + odd) - bias * x_sum;
  }
  static __device__ float value(const Row& row, int k) {
    const uint8_t* block = row.blocks + (k >> 8) * BYTES;
    const uint4 head = load16(block);
    const int group = (k >> 5) & 7, i = k & 31;
    int q = __ldg(block + QUANTS + 32 * (group >> 1) + i) >> (4 * (group & 1)) & 15;
    if (FIFTH_BIT) q |= (__ldg(block + 16 + i) >> group & 1) << 4;
    const float scale = from_half(head.x & 0xffffu) * static_cast<float>(six_bits<false>(head, group));
    const float bias = -from_half(head.x >> 16) * static_cast<float>(six_bits<true>(head, group));
    return fmaf(static_cast<float>(q), scale, bias);
  }
  // The piece times int8 activations of scale `dx`; `x` are the words of a run.
  static __device__ float rounded(const Raw& raw, int piece, const int (&x)[PIECE / 4], float dx) {
    int scaled = 0, mins = 0;
#pragma unroll
    for (int run = 0; run < 2; ++run) {
      const int group = 2 * pair(piece) + run;
      int dot = 0, sum = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        dot = __dp4a(static_cast<int>(quants(raw, piece, run, i)), x[4 * run + i], dot);
        sum = __dp4a(0x01010101, x[4 * run + i], sum);
      }
      scaled += six_bits<false>(raw.head, group) * dot;
      mins += six_bits<true>(raw.head, group) * sum;
    }
    const float d = dx * from_half(raw.head.x & 0xffffu), dmin = dx * from_half(raw.head.x >> 16);
    return d * static_cast<float>(scaled) - dmin * static_cast<float>(mins);
  }
};
using Q4_K = Nibbles<0>;
using Q5_K = Nibbles<1>;

// -- Q6_K: 16 groups of 16 with int8 scales ------------------------------------------------------------

// A piece is 8 columns at l, l + 32, l + 64 and l + 96 of half a block: three loads of 8 bytes.
struct Q6_K {
  static constexpr int BLOCK = 256, PIECE = 32, RUN = 8;
  static constexpr bool K_QUANT = true, GROUPED = true;
  struct Row { const uint8_t* quants; const int8_t* scales; const uint16_t* d; };
  struct Raw { uint2 near, far, upper; int16_t scales[4]; uint16_t d; };
  static __device__ Row open(const Matrix& m, long long row) {
    const long long first = row * (m.columns / BLOCK);
    return {m.base + first * 192, reinterpret_cast<const int8_t*>(m.base + m.blocks * 192) + first * 16,
            reinterpret_cast<const uint16_t*>(m.base + m.blocks * 208) + first};
  }
  static __device__ int half(int piece) { return (piece >> 2) & 1; }
  static __device__ int first(int piece) { return 8 * (piece & 3); }
  static __device__ int column(int piece, int run) {
    return (piece >> 3) * BLOCK + half(piece) * 128 + run * 32 + first(piece);
  }
  static __device__ Raw load(const Row& row, int piece) {
    const uint8_t* block = row.quants + (piece >> 3) * 192;
    const uint8_t* low = block + 64 * half(piece) + first(piece);
    const uint2 scales = load8(row.scales + (piece >> 3) * 16 + 8 * half(piece));
    const int odd = 8 * (first(piece) >> 4);  // the second half of a group of 32 has its own scale
    Raw raw{load8(low), load8(low + 32), load8(block + 128 + 32 * half(piece) + first(piece)), {},
            __ldg(row.d + (piece >> 3))};
#pragma unroll
    for (int run = 0; run < 4; ++run) {
      const uint32_t pair = (run < 2 ? scales.x : scales.y) >> (16 * (run & 1));
      raw.scales[run] = static_cast<int8_t>(pair >> odd);
    }
    return raw;
  }
  // Four quants of a run, a byte each, 32 too high.
  static __device__ uint32_t quants(const Raw& raw, int run, int index) {
    const uint2 from = run & 1 ? raw.far : raw.near;
    const uint32_t low = ((index ? from.y : from.x) >> (run & 2 ? 4 : 0)) & 0x0f0f0f0fu;
    const uint32_t upper = ((index ? raw.upper.y : raw.upper.x) >> (2 * run)) & 0x03030303u;
    return low | (upper << 4);
  }
  static __device__ void decode(const Raw& raw, int, float (&w)[PIECE]) {
    const float d = from_half(raw.d);
#pragma unroll
    for (int run = 0; run < 4; ++run) {
      const float scale = d * static_cast<float>(raw.scales[run]);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        w[8 * run + i] = scale * byte_less_32(quants(raw, run, i >> 2), i & 3);
      }
    }
  }
  static __device__ float dot(const Raw& raw, int, int run, const float (&x)[RUN], float) {
    float even = 0, odd = 0;
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const uint32_t four = quants(raw, run, i >> 2);
      even = fmaf(byte_less_32(four, i & 3), x[i], even);
      odd = fmaf(byte_less_32(four, (i & 3) + 1), x[i + 1], odd);
    }
    return from_half(raw.d) * static_cast<float>(raw.scales[run]) * (even + odd);
  }
  static __device__ float value(const Row& row, int k) {
    const int block = k >> 8, half = (k >> 7) & 1, run = (k >> 5) & 3, l = k & 31;
    const uint8_t* at = row.quants + block * 192;
    const int low = __ldg(at + 64 * half + 32 * (run & 1) + l) >> (run & 2 ? 4 : 0) & 15;
    const int upper = __ldg(at + 128 + 32 * half + l) >> (2 * run) & 3;
    const int scale = __ldg(row.scales + block * 16 + 8 * half + 2 * run + (l >> 4));
    const float d = from_half(__ldg(row.d + block)) * static_cast<float>(scale);
    return static_cast<float>((low | upper << 4) - 32) * d;
  }
  static __device__ float rounded(const Raw& raw, int, const int (&x)[PIECE / 4], float dx) {
    int scaled = 0;
#pragma unroll
    for (int run = 0; run < 4; ++run) {
      int dot = 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int q = static_cast<int>(__vsub4(quants(raw, run, i), 0x20202020u));
        dot = __dp4a(q, x[2 * run + i], dot);
      }
      scaled += raw.scales[run] * dot;
    }
    return dx * from_half(raw.d) * static_cast<float>(scaled);
  }
};
