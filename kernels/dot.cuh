// Rows of a weight matrix times the staged input: one warp computes ROWS rows at a time, in the
// accumulator that the numerics names. Every order of summation is fixed.
#pragma once

#include "formats.cuh"
#include "input.cuh"

#if ACCUMULATOR == F64
// Exact products, float64 sums; rounds once, after the reduction.
struct Accumulator {
  double sum = 0;
  __device__ void add(float w, float x) {
    sum = fma(static_cast<double>(w), static_cast<double>(x), sum);
  }
  __device__ void add(float value) { sum += static_cast<double>(value); }
  __device__ float total() { return __double2float_rn(warp_sum(sum)); }
};
#elif ACCUMULATOR == KAHAN
// Compensated: `lost` is what the last additions rounded away.
struct Accumulator {
  float sum = 0, lost = 0;
  __device__ void add(float w, float x) {
    const float y = __fmaf_rn(w, x, -lost);
    const float next = __fadd_rn(sum, y);
    lost = __fsub_rn(__fsub_rn(next, sum), y);
    sum = next;
  }
  __device__ void add(float value) { add(value, 1.0f); }
  __device__ float total() {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
      const float other = __shfl_xor_sync(kAllLanes, sum, offset);
      const float other_lost = __shfl_xor_sync(kAllLanes, lost, offset);
      // Two-sum (Knuth): the error of sum + other, exactly, whichever is larger.
      const float next = __fadd_rn(sum, other);
      const float back = __fsub_rn(next, sum);
      const float error =
          __fadd_rn(__fsub_rn(sum, __fsub_rn(next, back)), __fsub_rn(other, back));
      lost = __fsub_rn(__fadd_rn(lost, other_lost), error);
      sum = next;
    }
    return __fsub_rn(sum, lost);
  }
};
#else
struct Accumulator {
  float sum = 0;
  __device__ void add(float w, float x) { sum = __fmaf_rn(w, x, sum); }
  __device__ void add(float value) { sum = __fadd_rn(sum, value); }
  __device__ float total() { return warp_sum(sum); }
};
#endif

#if ACCUMULATOR == CHUNKED
// Each lane adds up a contiguous chunk of the row.
template <class F>
__device__ inline float ordered_dot(const typename F::Row& row, const Input& in, int columns) {
  const int chunk = (columns + 31) / 32;
  const int first = lane_id() * chunk, end = min(columns, first + chunk);
  Accumulator sum;
  for (int k = first; k < end; ++k) sum.add(F::value(row, k), in.value(k));
  return sum.total();
}
#elif ACCUMULATOR == QUAD
// The CPU's order (harness/backends/cpu/matvec.py): four accumulators of eight lanes, here one
// thread each. Accumulator j takes the groups of 32 at 32 j of every 128 values, or of a plain row
// the values 8 j .. 8 j + 7 of every 32; then (a0 + a1) + (a2 + a3), then halves upon halves of the
// lanes, then what a plain row has behind its last whole 32.
template <class F>
__device__ inline float ordered_dot(const typename F::Row& row, const Input& in, int columns) {
  const int quarter = lane_id() >> 3, lane = lane_id() & 7;
  Accumulator sum;
  if (F::GROUPED) {
    for (int block = 32 * quarter; block < columns; block += 128) {
      for (int k = block + lane; k < block + 32; k += 8) sum.add(F::value(row, k), in.value(k));
    }
  } else {
    for (int k = lane_id(); k < columns / 32 * 32; k += 32) {
      sum.add(F::value(row, k), in.value(k));
    }
  }
  float total = sum.sum;
#pragma unroll
  for (int step = 0; step < 5; ++step) {
    const int offset = step == 0 ? 8 : step == 1 ? 16 : 16 >> step;  // 8, 16, 4, 2, 1
    total += __shfl_xor_sync(kAllLanes, total, offset);
  }
  float rest = 0;
  for (int k = columns / 32 * 32; k < columns; ++k) {
    rest = __fmaf_rn(F::value(row, k), in.value(k), rest);
  }
  return total + rest;
}
#else
// A row that is no whole number of pieces, value by value.
template <class F>
__device__ inline float ordered_dot(const typename F::Row& row, const Input& in, int columns) {
  Accumulator sum;
  for (int k = lane_id(); k < columns; k += 32) sum.add(F::value(row, k), in.value(k));
  return sum.total();
}
#endif

constexpr bool kByPieces = ACCUMULATOR != CHUNKED && ACCUMULATOR != QUAD;

#if ROUND_ACTIVATIONS
template <class F, int ROWS>
__device__ inline void rounded_dots(const typename F::Row (&row)[ROWS], const Input& in, int columns,
                                    Accumulator (&sum)[ROWS]) {
  for (int piece = lane_id(); piece < columns / F::PIECE; piece += 32) {
    int x[F::PIECE / 4];
#pragma unroll
    for (int i = 0; i < F::PIECE / 4; ++i) {
      const int k = F::column(piece, 4 * i / F::RUN) + 4 * i % F::RUN;
      x[i] = in.four_rounded(k);
    }
    const float scale = in.scale(F::column(piece, 0));
#pragma unroll
    for (int r = 0; r < ROWS; ++r) sum[r].add(F::rounded(F::load(row[r], piece), piece, x, scale));
  }
}
#endif

template <class F, int ROWS>
__device__ inline void float_dots(const typename F::Row (&row)[ROWS], const Input& in, int columns,
                                  Accumulator (&sum)[ROWS]) {
  // Plain rows are long in pieces, and their pieces small: several are loaded ahead.
#pragma unroll(F::GROUPED ? 1 : ROWS == 1 ? 16 : 2)
  for (int piece = lane_id(); piece < columns / F::PIECE; piece += 32) {
    typename F::Raw raw[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) raw[r] = F::load(row[r], piece);
#pragma unroll
    for (int run = 0; run < F::PIECE / F::RUN; ++run) {
      float x[F::RUN], x_sum = 0;
#pragma unroll
      for (int i = 0; i < F::RUN; i += 4) {
        const float4 four = in.four(F::column(piece, run) + i);
        x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
        x_sum += (four.x + four.y) + (four.z + four.w);
      }
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
#if ACCUMULATOR == F32
        sum[r].add(F::dot(raw[r], piece, run, x, x_sum));
#else
        float w[F::PIECE];
        F::decode(raw[r], piece, w);  // of which one run is used, and the rest not computed
#pragma unroll
        for (int i = 0; i < F::RUN; ++i) sum[r].add(w[run * F::RUN + i], x[i]);
#endif
      }
    }
  }
}

template <class F, int ROWS>
__device__ inline void format_dots(const Matrix& m, const long long (&index)[ROWS], const Input& in,
                                   float (&out)[ROWS]) {
  typename F::Row row[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) row[r] = F::open(m, index[r]);
  Accumulator sum[ROWS];
  bool done = false;
#if ROUND_ACTIVATIONS
  if constexpr (F::K_QUANT) {
    rounded_dots<F, ROWS>(row, in, m.columns, sum);
    done = true;
  }
#endif
  if (!done && kByPieces && m.columns % F::PIECE == 0) {
    float_dots<F, ROWS>(row, in, m.columns, sum);
    done = true;
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    out[r] = done ? sum[r].total() : ordered_dot<F>(row[r], in, m.columns);
  }
}

// Rows `index` of m times the input: every lane of the warp receives the results.
template <int ROWS>
__device__ inline void dots(const Matrix& m, const long long (&index)[ROWS], const Input& in,
                            float (&out)[ROWS]) {
  switch (m.format) {
    case FORMAT_Q4_K: return format_dots<Q4_K, ROWS>(m, index, in, out);
    case FORMAT_Q6_K: return format_dots<Q6_K, ROWS>(m, index, in, out);
    case FORMAT_Q5_K: return format_dots<Q5_K, ROWS>(m, index, in, out);
    case FORMAT_Q8_0: return format_dots<Q8_0, ROWS>(m, index, in, out);
    case FORMAT_F32: return format_dots<PlainF32, ROWS>(m, index, in, out);
    case FORMAT_F16: return format_dots<PlainF16, ROWS>(m, index, in, out);
    case FORMAT_BF16: return format_dots<PlainBF16, ROWS>(m, index, in, out);
  }
  for (int r = 0; r < ROWS; ++r) out[r] = __int_as_float(0x7fffffff);  // an unknown format is NaN
}
