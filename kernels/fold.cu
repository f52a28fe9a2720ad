// The router behind the attention's output matrix, folded into one matrix; runs once a layer, when
// weights are uploaded (announce.cuh says what for).
#include "formats.cuh"

struct FoldArgs {
  Matrix router;      // [experts, hidden], F32
  Matrix o;           // [hidden, q_width], not tiled
  const float* norm;  // [hidden]: ffn_norm
  float* folded;      // [experts, q_width]: router * norm * o, added up in float64
};
static_assert(sizeof(FoldArgs) == FOLD_ARGS_BYTES, "differs from kernels/fold.py");

constexpr int kFoldExperts = 8;  // of a block

// A block has a column a thread.
template <class F>
__device__ inline void fold_columns(const FoldArgs& a) {
  const int column = blockIdx.x * kThreads + threadIdx.x, first = blockIdx.y * kFoldExperts;
  if (column >= a.o.columns) return;
  const float* router = reinterpret_cast<const float*>(a.router.base);
  double sum[kFoldExperts] = {};
  for (int row = 0; row < a.o.rows; ++row) {
    const double weight = static_cast<double>(a.norm[row]) * static_cast<double>(F::value(F::open(a.o, row), column));
#pragma unroll
    for (int i = 0; i < kFoldExperts; ++i) {
      const long long e = min(first + i, a.router.rows - 1);
      sum[i] = fma(static_cast<double>(router[e * a.router.columns + row]), weight, sum[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kFoldExperts; ++i) {
    const long long e = first + i;
    if (e < a.router.rows) a.folded[e * a.o.columns + column] = static_cast<float>(sum[i]);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) fold(const FoldArgs a) {
  switch (a.o.format) {
    case FORMAT_Q4_K: fold_columns<Q4_K>(a); break;
    case FORMAT_Q6_K: fold_columns<Q6_K>(a); break;
    case FORMAT_Q5_K: fold_columns<Q5_K>(a); break;
    case FORMAT_Q8_0: fold_columns<Q8_0>(a); break;
    case FORMAT_F32: fold_columns<PlainF32>(a); break;
    case FORMAT_F16: fold_columns<PlainF16>(a); break;
    case FORMAT_BF16: fold_columns<PlainBF16>(a); break;
  }
}
