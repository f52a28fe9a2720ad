// The router: logits of all experts, where they are not announced (announce.cuh). Who reads them chooses
// (choose.cuh).
#include "dot.cuh"

struct RouteArgs {
  Matrix router;      // [experts, hidden]
  const float* x;     // [hidden]
  const float* norm;  // [hidden]: ffn_norm, applied on the way
  float* logits;      // [experts]
  float eps;
  int padding;
};
static_assert(sizeof(RouteArgs) == ROUTE_ARGS_BYTES, "differs from kernels/router.py");

// Rows of plain floats, a block each, where the sum may be taken in any order: a thread holds its
// columns of row and norm before the predecessor has ended, and the norm's scale is left to the end.
constexpr bool kHeldRows = ACCUMULATOR == F32 && !ROUND_ACTIVATIONS;
constexpr int kHeldColumns = 8;  // of a thread at a time (read_eight)

__device__ inline void held_row(const RouteArgs& a) {
  __shared__ float products[kWarps], squares[kWarps];
  const int columns = a.router.columns, mine = kHeldColumns * threadIdx.x;
  const float* row = reinterpret_cast<const float*>(a.router.base) + static_cast<long long>(blockIdx.x) * columns;
  float weight[kHeldColumns] = {}, norm[kHeldColumns] = {}, x[kHeldColumns];
  if (mine < columns) {
    read_eight(row + mine, weight);
    read_eight(a.norm + mine, norm);
  }
  take_over();
  float product = 0, square = 0;
#pragma unroll 1
  for (int k = mine; k < columns; k += kHeldColumns * kThreads) {
    read_eight(a.x + k, x);
    if (k != mine) {
      read_eight(row + k, weight);
      read_eight(a.norm + k, norm);
    }
#pragma unroll
    for (int i = 0; i < kHeldColumns; ++i) {
      product = fmaf(x[i] * norm[i], weight[i], product);
      square = fmaf(x[i], x[i], square);
    }
  }
  product = warp_sum(product);
  square = warp_sum(square);
  if (lane_id() == 0) products[warp_id()] = product, squares[warp_id()] = square;
  __syncthreads();
  float square_sum = 0, sum = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) square_sum += squares[warp], sum += products[warp];
  const float scale = __frsqrt_rn(square_sum / static_cast<float>(columns) + a.eps);
  if (threadIdx.x == 0) a.logits[blockIdx.x] = sum * scale;
}

// A block an expert: so many multiprocessors read, and each all of its row at once.
extern "C" __global__ void __launch_bounds__(kThreads, 1) route(const RouteArgs a) {
  extern __shared__ __align__(16) uint8_t memory[];
  if (kHeldRows && a.router.format == FORMAT_F32 && a.router.columns % kHeldColumns == 0) {
    held_row(a);
    return;
  }
  const int e = blockIdx.x;
  if (warp_id() == 0) prefetch_rows(a.router, e, 1);
  const Input in = stage_input(a.x, a.router.columns, a.norm, a.eps, nullptr, memory);
  if (warp_id() != 0) return;
  const long long index[1] = {e};
  float out[1];
  dots<1>(a.router, index, in, out);
  if (lane_id() == 0) a.logits[e] = out[0];
}
