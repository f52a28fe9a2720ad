// Sixteen rows of any weight matrix times the staged input, by a whole block.
#pragma once

#include "dot.cuh"
#include "tiles.cuh"

// Tiled blocks that a multiprocessor should hold at a time; sm_120's compiler would spill at three.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kTiledResident = 2;
#else
constexpr int kTiledResident = 3;
#endif
constexpr int kBlockRows = 16;                     // a tile's
constexpr int kWarpRows = kBlockRows / kWarps;     // of a plain matrix, that a warp computes
static_assert(kBlockRows == kTileRows && kWarpRows == 2, "a block's rows are a tile, two a warp");

// Asks for a block's rows from `row` on (counted over all experts), of which `left` exist.
template <bool TILED>
__device__ inline void prefetch_block(const Matrix& m, long long row, int left) {
  if constexpr (TILED) {
    const int superblocks = m.columns / 256;
    const long long at = static_cast<long long>(tile_of(row)) * superblocks;
    const auto ask = [&](long long plane, int bytes_each) {
      const uint8_t* from = m.base + m.blocks * plane + at * bytes_each;
      for (int k = 128 * threadIdx.x; k < superblocks * bytes_each; k += 128 * kThreads) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + k));
      }
    };
    ask(0, 2048);
    if (m.format == FORMAT_Q4_K_TILED) return ask(128, 256);
    ask(128, 1024);
    ask(192, 256);
    ask(208, 32);
  } else {
    const int mine = warp_id() * kWarpRows;
    if (mine < left) prefetch_rows(m, row + mine, min(kWarpRows, left - mine));
  }
}

// Rows `row` and on (counted over all experts; `left` of them exist) of N matrices of one shape:
// thread i < 16 receives the results of row + i. Every thread of the block takes part. `ahead` is this
// warp's, of the first matrix.
//
// A tile's superblocks are dealt out to the warps, and the warps' sums added in their order; of a
// plain matrix a warp computes two rows.
template <int N, bool TILED, bool EARLY>
__device__ inline void block_rows(const Matrix* const (&m)[N], long long row, int left, const Input& in,
                                  TileAhead<EARLY> ahead, float (&out)[N]) {
  static_assert(N <= 2, "one matrix or two");
  __shared__ float part[N][TILED ? kWarps : 1][kBlockRows];
  __syncthreads();  // whoever still reads the last results is done
#pragma unroll 1
  for (int n = 0; n < N; ++n) {  // one after the other: together they would not fit the registers
    const Matrix one = n == 0 ? *m[0] : *m[N - 1];
    if constexpr (TILED) {
      float sum[2];
      any_tile_sum<EARLY>(one, tile_of(row), warp_id(), kWarps, in, ahead, sum);
      if (n + 1 < N) ahead = tile_ahead<EARLY>(*m[N - 1], tile_of(row), warp_id());
      if ((lane_id() & 3) == 0) {
        part[n][warp_id()][lane_id() >> 2] = sum[0];
        part[n][warp_id()][(lane_id() >> 2) + 8] = sum[1];
      }
    } else {
      const int mine = warp_id() * kWarpRows;
      long long index[kWarpRows];
      float result[kWarpRows];
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) index[r] = row + min(mine + r, left - 1);
      dots<kWarpRows>(one, index, in, result);
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        if (lane_id() == r) part[n][0][mine + r] = result[r];
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    out[n] = threadIdx.x < kBlockRows ? part[n][0][threadIdx.x] : 0.0f;
    if (TILED && threadIdx.x < kBlockRows) {
#pragma unroll
      for (int warp = 1; warp < kWarps; ++warp) out[n] += part[n][TILED ? warp : 0][threadIdx.x];
    }
  }
}

// Each kernel over rows is compiled for plain matrices and, where the numerics has tiles, for tiled
// ones under the name NAME_tiled: the launcher picks by the matrices' formats. RESIDENT tiled blocks
// fit a multiprocessor at a time, which bounds their registers.
#if FIXED_ACTIVATIONS
#define ROW_KERNEL(NAME, ARGS, RESIDENT)                                                           \
  extern "C" __global__ void __launch_bounds__(kThreads, kResident) NAME(const ARGS a) {           \
    NAME##_rows<false>(a);                                                                         \
  }                                                                                                \
  extern "C" __global__ void __launch_bounds__(kThreads, RESIDENT) NAME##_tiled(const ARGS a) {    \
    NAME##_rows<true>(a);                                                                          \
  }
#else
#define ROW_KERNEL(NAME, ARGS, RESIDENT)                                                 \
  extern "C" __global__ void __launch_bounds__(kThreads, kResident) NAME(const ARGS a) { \
    NAME##_rows<false>(a);                                                               \
  }
#endif
