// Products of weight matrices and one vector: Q, K and V; the attention's output; the logits.
#include "rows.cuh"

// Calls `store(row, value)` for all rows of `m` times the input; this block takes every
// gridDim.x-th sixteen.
template <bool TILED, bool EARLY, class Store>
__device__ inline void for_each_row(const Matrix& m, const Input& in, TileAhead<EARLY> ahead, Store store) {
  const int step = gridDim.x * kBlockRows;
  for (int row = blockIdx.x * kBlockRows; row < m.rows; row += step) {
    const Matrix* const matrices[1] = {&m};
    float out[1];
    block_rows<1, TILED, EARLY>(matrices, row, m.rows - row, in, ahead, out);
    if (row + step < m.rows) ahead = tile_ahead<EARLY>(m, tile_of(row + step), warp_id());
    if (threadIdx.x < min(kBlockRows, m.rows - row)) store(row + threadIdx.x, out[0]);
  }
}

// Asks for the rows that `for_each_row` will read first, before the predecessor has ended.
template <bool TILED, bool EARLY>
__device__ inline TileAhead<EARLY> first_rows(const Matrix& m) {
  const int row = blockIdx.x * kBlockRows;
  if (row >= m.rows) return {};
  prefetch_block<TILED>(m, row, m.rows - row);
  return tile_ahead<EARLY>(m, tile_of(row), warp_id());
}

// -- Q, K and V --------------------------------------------------------------------------------

struct QkvArgs {
  Matrix q, k, v;     // [q_width, hidden], [kv_width, hidden] twice
  const float* x;     // [hidden]
  const float* norm;  // [hidden]: attn_norm, applied on the way
  float* out;         // [q_width + 2 kv_width]
  float* trace_norm;  // [hidden] or null
  float eps;
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

template <bool TILED>
__device__ inline void qkv_rows(const QkvArgs& a) {
  extern __shared__ __align__(16) uint8_t memory[];
  const int items = (a.q.rows + kBlockRows - 1) / kBlockRows + 2 * ((a.k.rows + kBlockRows - 1) / kBlockRows);
  if (blockIdx.x < items) {
    const QkvRows first = sixteen_rows(a, blockIdx.x);
    prefetch_block<TILED>(first.m, first.row, first.m.rows - first.row);
  }
  const Input in = stage_input(a.x, a.q.columns, a.norm, a.eps, a.trace_norm, memory);
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const QkvRows rows = sixteen_rows(a, item);
    const int left = rows.m.rows - rows.row;
    const Matrix* const matrices[1] = {&rows.m};
    float out[1];
    block_rows<1, TILED, false>(matrices, rows.row, left, in, {}, out);
    if (threadIdx.x < min(kBlockRows, left)) rows.out[rows.row + threadIdx.x] = out[0];
  }
}
ROW_KERNEL(qkv, QkvArgs, kTiledResident)

// -- attention's output, added to the residual -----------------------------------------------------

struct AttentionOutputArgs {
  Matrix o;             // [hidden, q_width]
  const float* mixed;   // [q_width]
  float* residual;      // [hidden], added to in place
  float* trace_out;     // [hidden] or null: the product alone
};
static_assert(sizeof(AttentionOutputArgs) == ATTENTION_OUTPUT_ARGS_BYTES, "differs from kernels/matvec.py");

template <bool TILED>
__device__ inline void attention_output_rows(const AttentionOutputArgs& a) {
  extern __shared__ __align__(16) uint8_t memory[];
  const auto ahead = first_rows<TILED, TILED>(a.o);
  const Input in = stage_input<16>(a.mixed, a.o.columns, nullptr, 0, nullptr, memory);
  for_each_row<TILED, TILED>(a.o, in, ahead, [&](int row, float y) {
    if (a.trace_out != nullptr) a.trace_out[row] = y;
    a.residual[row] += y;
  });
}
ROW_KERNEL(attention_output, AttentionOutputArgs, 1)

// -- logits ---------------------------------------------------------------------------------------

struct LogitsArgs {
  Matrix output;      // [vocab, hidden]
  const float* x;     // [hidden]
  const float* norm;  // [hidden]: output_norm, applied on the way
  float* logits;      // [vocab]
  float* trace_norm;  // [hidden] or null
  float eps;
  int padding;
};
static_assert(sizeof(LogitsArgs) == LOGITS_ARGS_BYTES, "differs from kernels/matvec.py");

template <bool TILED>
__device__ inline void logits_rows(const LogitsArgs& a) {
  extern __shared__ __align__(16) uint8_t memory[];
  const auto ahead = first_rows<TILED, false>(a.output);
  const Input in = stage_input(a.x, a.output.columns, a.norm, a.eps, a.trace_norm, memory);
  for_each_row<TILED, false>(a.output, in, ahead, [&](int row, float y) { a.logits[row] = y; });
}
ROW_KERNEL(logits, LogitsArgs, kTiledResident)

// -- one matrix by itself: what the kernel benchmarks and tests launch ------------------------------

struct MatvecArgs {
  Matrix m;        // [rows, columns]
  const float* x;  // [columns]
  float* out;      // [rows]
};
static_assert(sizeof(MatvecArgs) == MATVEC_ARGS_BYTES, "differs from kernels/matvec.py");

template <bool TILED>
__device__ inline void matvec_rows(const MatvecArgs& a) {
  extern __shared__ __align__(16) uint8_t memory[];
  const auto ahead = first_rows<TILED, false>(a.m);
  const Input in = stage_input(a.x, a.m.columns, nullptr, 0, nullptr, memory);
  for_each_row<TILED, false>(a.m, in, ahead, [&](int row, float y) { a.out[row] = y; });
}
ROW_KERNEL(matvec, MatvecArgs, kTiledResident)
