// Products of weight matrices and one vector: Q, K and V; the attention's output; the logits. Each
// kernel has a form for plain matrices and, where the numerics has tiles, one for those: the launcher
// picks by the matrices' formats.
#include "announce.cuh"
#include "rows.cuh"
#include "stream.cuh"

// -- Q, K and V --------------------------------------------------------------------------------

struct QkvArgs {
  Matrix q, k, v;     // [q_width, hidden], [kv_width, hidden] twice
  const float* x;     // [hidden]
  const float* norm;  // [hidden]: attn_norm, applied on the way
  float* out;         // [q_width + 2 kv_width]
  float* trace_norm;  // [hidden] or null
  float* announced;   // [experts]: logits to forget (announce.cuh), or null
  float eps;
  int batch;          // items that a block takes at a time (stream.cuh)
  int experts;
  int padding;
};
static_assert(sizeof(QkvArgs) == QKV_ARGS_BYTES, "differs from kernels/matvec.py");

// Sixteen rows, counted over the three matrices as if they were one.
struct QkvRows {
  Matrix m;
  int row;     // of m
  float* out;  // of m's first row
};

__device__ inline QkvRows sixteen_rows(const QkvArgs& a, int item) {
  const int q_items = (a.q.rows + kBlockRows - 1) / kBlockRows;
  const int k_items = (a.k.rows + kBlockRows - 1) / kBlockRows;
  if (item < q_items) return {a.q, item * kBlockRows, a.out};
  item -= q_items;
  if (item < k_items) return {a.k, item * kBlockRows, a.out + a.q.rows};
  return {a.v, (item - k_items) * kBlockRows, a.out + a.q.rows + a.k.rows};
}

__device__ inline int qkv_items(const QkvArgs& a) {
  return (a.q.rows + kBlockRows - 1) / kBlockRows + 2 * ((a.k.rows + kBlockRows - 1) / kBlockRows);
}

extern "C" __global__ void __launch_bounds__(kThreads, kResident) qkv(const QkvArgs a) {
  extern __shared__ __align__(16) uint8_t memory[];
  const int items = qkv_items(a);
  if (blockIdx.x < items) {
    const QkvRows first = sixteen_rows(a, blockIdx.x);
    prefetch_block(first.m, first.row, first.m.rows - first.row);
  }
  const Input in = stage_input(a.x, a.q.columns, a.norm, a.eps, a.trace_norm, memory);
  retract(a.announced, a.experts);
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const QkvRows rows = sixteen_rows(a, item);
    const int left = rows.m.rows - rows.row;
    const Matrix* const matrices[1] = {&rows.m};
    float out[1];
    block_rows<1>(matrices, rows.row, left, in, out);
    if (threadIdx.x < min(kBlockRows, left)) rows.out[rows.row + threadIdx.x] = out[0];
  }
}

#if FIXED_ACTIVATIONS
extern "C" __global__ void __launch_bounds__(kTiledThreads, kTiledResident) qkv_tiled(const QkvArgs a) {
  extern __shared__ __align__(16) uint8_t memory[];
  const int superblocks = a.q.columns / 256, q_rows = a.q.rows / kTileRows, k_rows = a.k.rows / kTileRows;
  const auto source = [&](int item, int part) {
    const bool q = item < q_rows, k = item < q_rows + k_rows;
    const Matrix m = {q ? a.q.base : k ? a.k.base : a.v.base, 0, 0, a.q.columns, q ? a.q.format : k ? a.k.format : a.v.format};
    return tile_of(m, item - (q ? 0 : k ? q_rows : q_rows + k_rows), part);
  };
  const int slot = max(max(tile_bytes(a.q.format), tile_bytes(a.k.format)), tile_bytes(a.v.format));
  TileStream<2> stream({q_rows + k_rows + a.v.rows / kTileRows, superblocks, a.batch}, memory, slot);
  stream.begin(source);
  const FixedInput in = stage_fixed<true, 1>(a.x, a.q.columns, a.norm, stream.behind());
  __syncthreads();
  retract(a.announced, a.experts);
  // Results of the three lie one behind the other.
  stream.run(in, source, [&] { find_scale(in, a.eps); }, NothingBefore(),
             [&](int item, int row, const float* products, float) {
               const float out = sum_products(products, superblocks) * in.scale[0];
               if (row_lane() == 0) a.out[item * kTileRows + row] = out;
             });
  trace_normed(in, a.x, a.norm, a.trace_norm);
}
#endif

// -- rows of one matrix ------------------------------------------------------------------------------

// Asks for the rows that `for_each_row` will read first, before the predecessor has ended.
__device__ inline void prefetch_first(const Matrix& m) {
  const int row = blockIdx.x * kBlockRows;
  if (row < m.rows) prefetch_block(m, row, m.rows - row);
}

// Calls `store(row, value)` for all rows of `m` times the input; this block takes every
// gridDim.x-th sixteen.
template <class Store>
__device__ inline void for_each_row(const Matrix& m, const Input& in, Store store) {
  for (int row = blockIdx.x * kBlockRows; row < m.rows; row += gridDim.x * kBlockRows) {
    const Matrix* const matrices[1] = {&m};
    float out[1];
    block_rows<1>(matrices, row, m.rows - row, in, out);
    if (threadIdx.x < min(kBlockRows, m.rows - row)) store(row + threadIdx.x, out[0]);
  }
}

#if FIXED_ACTIVATIONS
// All tiles of `m` times x, or its RMSNorm if NORMED: calls `store(row, value)`.
template <bool NORMED, class Store>
__device__ inline FixedInput for_each_tiled_row(const Matrix& m, int batch, const float* x, const float* norm,
                                                float eps, uint8_t* memory, Store store) {
  const int superblocks = m.columns / 256;
  const auto source = [&](int item, int part) { return tile_of(m, item, part); };
  TileStream<2> stream({m.rows / kTileRows, superblocks, batch}, memory, tile_bytes(m.format));
  stream.begin(source);
  const FixedInput in = stage_fixed<NORMED, 1>(x, m.columns, norm, stream.behind());
  __syncthreads();
  stream.run(
      in, source,
      [&] {
        if (NORMED) find_scale(in, eps);
      },
      NothingBefore(),
      [&](int item, int row, const float* products, float) {
        const float out = sum_products(products, superblocks) * (NORMED ? in.scale[0] : 1.0f);
        if (row_lane() == 0) store(item * kTileRows + row, out);
      });
  return in;
}
#endif

// -- attention's output, and the residual ------------------------------------------------------------

struct AttentionOutputArgs {
  Matrix o;               // [hidden, q_width]
  const float* mixed;     // [q_width]
  const float* residual;  // [hidden]
  float* sum;             // [hidden]: residual and product
  float* trace_out;       // [hidden] or null: the product alone
  Announcing announcing;  // null for plain matrices
  int batch;
  int padding;
};
static_assert(sizeof(AttentionOutputArgs) == ATTENTION_OUTPUT_ARGS_BYTES, "differs from kernels/matvec.py");

extern "C" __global__ void __launch_bounds__(kThreads, kResident) attention_output(const AttentionOutputArgs a) {
  extern __shared__ __align__(16) uint8_t memory[];
  prefetch_first(a.o);
  const Input in = stage_input<16>(a.mixed, a.o.columns, nullptr, 0, nullptr, memory);
  for_each_row(a.o, in, [&](int row, float y) {
    if (a.trace_out != nullptr) a.trace_out[row] = y;
    a.sum[row] = a.residual[row] + y;
  });
}

#if FIXED_ACTIVATIONS
extern "C" __global__ void __launch_bounds__(kTiledThreads, kTiledResident) attention_output_tiled(const AttentionOutputArgs a) {
  extern __shared__ __align__(16) uint8_t memory[];
  const int superblocks = a.o.columns / 256;
  const auto source = [&](int item, int part) { return tile_of(a.o, item, part); };
  TileStream<1> stream({a.o.rows / kTileRows, superblocks, a.batch}, memory, tile_bytes(a.o.format));
  uint8_t* const staged = stream.behind();
  Announcer<kTiledThreads> announcer(a.announcing, a.residual, a.o.columns,
                                     reinterpret_cast<float*>(staged + fixed_bytes(a.o.columns)));
  stream.begin(source);
  announcer.combine();
  const FixedInput in = stage_fixed<false, 1>(a.mixed, a.o.columns, nullptr, staged,
                                              [&](int column, const float (&x)[8]) { announcer.add(column, x); });
  announcer.meet();
  __syncthreads();
  announcer.announce(a.mixed);
  stream.run(
      in, source, Nothing(), [&](int item, int row) { return __ldcg(a.residual + item * kTileRows + row); },
      [&](int item, int row, const float* products, float before) {
        const float out = sum_products(products, superblocks);
        if (row_lane() != 0) return;
        const int at = item * kTileRows + row;
        if (a.trace_out != nullptr) a.trace_out[at] = out;
        a.sum[at] = before + out;
      });
}
#endif

// -- logits ---------------------------------------------------------------------------------------

struct LogitsArgs {
  Matrix output;      // [vocab, hidden]
  const float* x;     // [hidden]
  const float* norm;  // [hidden]: output_norm, applied on the way
  float* logits;      // [vocab]
  float* trace_norm;  // [hidden] or null
  float eps;
  int batch;
};
static_assert(sizeof(LogitsArgs) == LOGITS_ARGS_BYTES, "differs from kernels/matvec.py");

extern "C" __global__ void __launch_bounds__(kThreads, kResident) logits(const LogitsArgs a) {
  extern __shared__ __align__(16) uint8_t memory[];
  prefetch_first(a.output);
  const Input in = stage_input(a.x, a.output.columns, a.norm, a.eps, a.trace_norm, memory);
  for_each_row(a.output, in, [&](int row, float y) { a.logits[row] = y; });
}

#if FIXED_ACTIVATIONS
extern "C" __global__ void __launch_bounds__(kTiledThreads, kTiledResident) logits_tiled(const LogitsArgs a) {
  extern __shared__ __align__(16) uint8_t memory[];
  const FixedInput in = for_each_tiled_row<true>(a.output, a.batch, a.x, a.norm, a.eps, memory,
                                                 [&](int row, float y) { a.logits[row] = y; });
  trace_normed(in, a.x, a.norm, a.trace_norm);
}
#endif

// -- one matrix by itself: what the kernel benchmarks and tests launch ------------------------------

struct MatvecArgs {
  Matrix m;        // [rows, columns]
  const float* x;  // [columns]
  float* out;      // [rows]
  int batch;
  int padding;
};
static_assert(sizeof(MatvecArgs) == MATVEC_ARGS_BYTES, "differs from kernels/matvec.py");

extern "C" __global__ void __launch_bounds__(kThreads, kResident) matvec(const MatvecArgs a) {
  extern __shared__ __align__(16) uint8_t memory[];
  prefetch_first(a.m);
  const Input in = stage_input(a.x, a.m.columns, nullptr, 0, nullptr, memory);
  for_each_row(a.m, in, [&](int row, float y) { a.out[row] = y; });
}

#if FIXED_ACTIVATIONS
extern "C" __global__ void __launch_bounds__(kTiledThreads, 1) matvec_tiled(const MatvecArgs a) {
  extern __shared__ __align__(16) uint8_t memory[];
  for_each_tiled_row<false>(a.m, a.batch, a.x, nullptr, 0, memory,
                            [&](int row, float y) { a.out[row] = y; });
}
#endif
