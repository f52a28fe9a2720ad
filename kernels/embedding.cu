// A token's embedding row, and what its position turns heads by (RoPE).
#include "formats.cuh"

struct EmbedArgs {
  Matrix table;              // [vocab, hidden]
  const State* state;
  const double* frequencies; // [head_dim / 2]
  float* x;                  // [hidden]
  float* rotation;           // [2, 2, head_dim / 2]: cosines and sines, of queries, then of keys
  int half_dim;
  int padding;
};
static_assert(sizeof(EmbedArgs) == EMBED_ARGS_BYTES, "differs from kernels/embedding.py");

template <class F>
__device__ inline void copy_row(const EmbedArgs& a, int token) {
  const typename F::Row row = F::open(a.table, token);
  const int stride = gridDim.x * kThreads;
  for (int k = blockIdx.x * kThreads + threadIdx.x; k < a.table.columns; k += stride) {
    a.x[k] = F::value(row, k);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) embed(const EmbedArgs a) {
  take_over();
  const int token = a.state->token;
  switch (a.table.format) {
    case FORMAT_Q4_K: copy_row<Q4_K>(a, token); break;
    case FORMAT_Q6_K: copy_row<Q6_K>(a, token); break;
    case FORMAT_Q5_K: copy_row<Q5_K>(a, token); break;
    case FORMAT_Q8_0: copy_row<Q8_0>(a, token); break;
    case FORMAT_F32: copy_row<PlainF32>(a, token); break;
    case FORMAT_F16: copy_row<PlainF16>(a, token); break;
    case FORMAT_BF16: copy_row<PlainBF16>(a, token); break;
  }
  if (blockIdx.x != 0) return;
  for (int i = threadIdx.x; i < 2 * a.half_dim; i += kThreads) {
    const bool key = i >= a.half_dim;
    const int pair = i - (key ? a.half_dim : 0);
#ifdef PLANT_ROPE_Q_OFF_BY_ONE
    const int position = a.state->position + (key ? 0 : 1);
#else
    const int position = a.state->position;
#endif
    const double angle = position * a.frequencies[pair];
    float* to = a.rotation + (key ? 2 * a.half_dim : 0);
    to[pair] = static_cast<float>(cos(angle));
    to[a.half_dim + pair] = static_cast<float>(sin(angle));
  }
}
