// Sixteen rows of a plain weight matrix times the staged input, by a whole block. (Tiles have
// stream.cuh.)
#pragma once

#include "dot.cuh"

constexpr int kBlockRows = 16;
constexpr int kWarpRows = kBlockRows / kWarps;  // that a warp computes at a time
static_assert(kWarpRows == 2, "a warp asks for two rows at a time");

// Asks for a block's rows from `row` on (counted over all experts), of which `left` exist.
__device__ inline void prefetch_block(const Matrix& m, long long row, int left) {
  const int mine = warp_id() * kWarpRows;
  if (mine < left) prefetch_rows(m, row + mine, min(kWarpRows, left - mine));
}

// Rows `row` and on (counted over all experts; `left` of them exist) of N matrices of one shape:
// thread i < 16 receives the results of row + i. Every thread of the block takes part.
template <int N>
__device__ inline void block_rows(const Matrix* const (&m)[N], long long row, int left, const Input& in,
                                  float (&out)[N]) {
  static_assert(N <= 2, "one matrix or two");
  __shared__ float part[N][kBlockRows];
  __syncthreads();  // whoever still reads the last results is done
#pragma unroll 1
  for (int n = 0; n < N; ++n) {  // one after the other: together they would not fit the registers
    const Matrix one = n == 0 ? *m[0] : *m[N - 1];
    const int mine = warp_id() * kWarpRows;
    long long index[kWarpRows];
    float result[kWarpRows];
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) index[r] = row + min(mine + r, left - 1);
    dots<kWarpRows>(one, index, in, result);
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      if (lane_id() == r) part[n][mine + r] = result[r];
    }
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) out[n] = threadIdx.x < kBlockRows ? part[n][threadIdx.x] : 0.0f;
}
