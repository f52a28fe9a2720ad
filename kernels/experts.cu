// The chosen experts: gate and up with SwiGLU in one kernel; down, weighted sum and residual in
// another.
#include "rows.cuh"

// The expert whose matrices a slot of the top-k multiplies. Read past the L1, which may hold the ids
// of another layer where a kernel began early.
__device__ inline int expert_of(const int* ids, int slot, int experts) {
#ifdef PLANT_WRONG_EXPERT
  if (slot == 0) return (__ldcg(ids) + 1) % experts;
#endif
  return __ldcg(ids + slot);
}

// -- gate, up, SwiGLU ---------------------------------------------------------------------------------

struct GateUpArgs {
  Matrix gate, up;      // [experts, width, hidden]
  const float* x;       // [hidden]
  const float* norm;    // [hidden]: ffn_norm, applied on the way
  const int* ids;       // [top_k]
  float* gated;         // [top_k, width]: silu(gate) * up
  float* trace_norm;    // [hidden] or null
  float* trace_gate;    // [top_k, width] or null, as the next two
  float* trace_up;
  float* trace_silu;
  float eps;
  int top_k;
  int experts;
  int padding;
};
static_assert(sizeof(GateUpArgs) == GATE_UP_ARGS_BYTES, "differs from kernels/experts.py");

__device__ inline float silu(float x) {
#if SWIGLU_F64
  return static_cast<float>(static_cast<double>(x) / (1.0 + exp(-static_cast<double>(x))));
#else
  return x / (1.0f + expf(-x));
#endif
}

__device__ inline float swiglu(float gate, float up) {
#if SWIGLU_F64
  const double x = gate;
  return static_cast<float>(x / (1.0 + exp(-x)) * static_cast<double>(up));
#else
  return silu(gate) * up;
#endif
}

// Rows of all slots are dealt out together: a block takes sixteen of gate and the same of up.
template <bool TILED>
__device__ inline void gate_up_rows(const GateUpArgs& a) {
  extern __shared__ __align__(16) uint8_t memory[];
  const int width = a.gate.rows, groups = (width + kBlockRows - 1) / kBlockRows, items = a.top_k * groups;
  const auto first_row = [&](int item) {
    return static_cast<long long>(expert_of(a.ids, item / groups, a.experts)) * width + item % groups * kBlockRows;
  };
  const Input in = stage_input(a.x, a.gate.columns, a.norm, a.eps, a.trace_norm, memory, [&] {
    if (blockIdx.x >= items) return;
    const int left = width - static_cast<int>(blockIdx.x) % groups * kBlockRows;
    const long long row = first_row(blockIdx.x);
    prefetch_block<TILED>(a.gate, row, left);
    prefetch_block<TILED>(a.up, row, left);
  });
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const int row = item % groups * kBlockRows, left = width - row;
    const Matrix* const matrices[2] = {&a.gate, &a.up};
    float out[2];
    block_rows<2, TILED, false>(matrices, first_row(item), left, in, {}, out);
    if (threadIdx.x >= min(kBlockRows, left)) continue;
    const int at = item / groups * width + row + threadIdx.x;
#ifdef PLANT_SILU_ON_WRONG_FACTOR
    a.gated[at] = swiglu(out[1], out[0]);
#else
    a.gated[at] = swiglu(out[0], out[1]);
#endif
    if (a.trace_gate != nullptr) {
      a.trace_gate[at] = out[0];
      a.trace_up[at] = out[1];
      a.trace_silu[at] = silu(out[0]);
    }
  }
}
ROW_KERNEL(gate_up, GateUpArgs, kTiledResident)

// -- down, weighted sum, residual -----------------------------------------------------------------------

struct DownArgs {
  Matrix down;           // [experts, hidden, width]
  const float* gated;    // [top_k, width]
  const int* ids;        // [top_k]
  const float* weights;  // [top_k]
  const State* state;
  float* residual;       // [hidden], added to in place
  float* trace_down;     // [top_k, hidden] or null: each expert's output
  float* trace_moe;      // [hidden] or null: their weighted sum
  int top_k;
  int experts;
  int last_layer;
  int padding;
};
static_assert(sizeof(DownArgs) == DOWN_ARGS_BYTES, "differs from kernels/experts.py");

// Rows of the residual that a block computes at a time: a tile's, or what a warp takes at a time.
template <bool TILED>
constexpr int kDownRows = TILED ? kTileRows : kWarpRows;

__device__ inline float mixing_weight(const DownArgs& a, int slot) {
#ifdef PLANT_DROP_TOP_EXPERT
  if (slot == 0) return 0.0f;
#endif
#ifdef PLANT_DROP_LOWEST_EXPERT
  if (slot == a.top_k - 1) return 0.0f;
#endif
#ifdef PLANT_SWAP_TWO_WEIGHTS
  if (slot == 0) return a.weights[a.top_k - 1];
  if (slot == a.top_k - 1) return a.weights[0];
#endif
  return a.weights[slot];
}

// One expert after the other, in router order; `outputs` are the experts' of one row, `stride` apart.
__device__ inline float weighted_sum(const DownArgs& a, const float* outputs, int stride) {
#if WEIGHTED_SUM_F64
  double sum = 0;
  for (int slot = 0; slot < a.top_k; ++slot) {
    sum = fma(static_cast<double>(mixing_weight(a, slot)), static_cast<double>(outputs[slot * stride]), sum);
  }
#else
  float sum = 0;
  for (int slot = 0; slot < a.top_k; ++slot) {
    sum = __fadd_rn(sum, __fmul_rn(mixing_weight(a, slot), outputs[slot * stride]));
  }
#endif
  return static_cast<float>(sum);
}

// One warp: an expert's rows `row` and on (counted over all experts; `left` exist) into out.
template <bool TILED>
__device__ inline void expert_rows(const Matrix& m, long long row, int left, const Input& in,
                                   TileAhead<TILED> ahead, float* out) {
  if constexpr (TILED) {
    float sum[2];
    any_tile_sum<true>(m, tile_of(row), 0, 1, in, ahead, sum);
    if ((lane_id() & 3) == 0) out[lane_id() >> 2] = sum[0], out[(lane_id() >> 2) + 8] = sum[1];
  } else {
    const long long index[kWarpRows] = {row, row + min(1, left - 1)};
    float result[kWarpRows];
    dots<kWarpRows>(m, index, in, result);
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      if (lane_id() == r) out[r] = result[r];
    }
  }
}

// A warp takes an expert at a time; the block meets in shared memory to add them up.
template <bool TILED>
__device__ inline void down_rows(const DownArgs& a) {
  extern __shared__ __align__(16) uint8_t memory[];
  constexpr int kRows = kDownRows<TILED>;
  const int hidden = a.down.rows, width = a.down.columns;
  const auto first_row = [&](int slot, int row) {
    return static_cast<long long>(expert_of(a.ids, slot, a.experts)) * hidden + row;
  };
  const int ahead_row = blockIdx.x * kRows;
  // The router ran two kernels before this one: its ids are there.
  for (int slot = 0; slot < a.top_k && ahead_row < hidden; ++slot) {
    if (TILED) {
      prefetch_block<TILED>(a.down, first_row(slot, ahead_row), hidden - ahead_row);
    } else if (slot % kWarps == warp_id()) {
      prefetch_rows(a.down, first_row(slot, ahead_row), min(kRows, hidden - ahead_row));
    }
  }
  TileAhead<TILED> ahead = {};
  if (ahead_row < hidden && warp_id() < a.top_k) {
    ahead = tile_ahead<TILED>(a.down, tile_of(first_row(warp_id(), ahead_row)), 0);
  }
  const Input in = stage_input<24>(a.gated, a.top_k * width, nullptr, 0, nullptr, memory);
  float* outputs = reinterpret_cast<float*>(memory + (input_bytes(a.top_k * width) + 15) / 16 * 16);
  for (int first = ahead_row; first < hidden; first += gridDim.x * kRows) {
    for (int slot = warp_id(); slot < a.top_k; slot += kWarps) {
      const long long row = first_row(slot, first);
      if (slot != warp_id() || first != ahead_row) ahead = tile_ahead<TILED>(a.down, tile_of(row), 0);
      expert_rows<TILED>(a.down, row, hidden - first, in.from(slot * width), ahead, outputs + slot * kRows);
    }
    __syncthreads();
    const int row = first + threadIdx.x;
    if (threadIdx.x < kRows && row < hidden) {
      float sum = weighted_sum(a, outputs + threadIdx.x, kRows);
#ifdef PLANT_NAN
      if (a.last_layer && a.state->position == 1 && row == hidden / 2) sum = NAN;
#endif
      if (a.trace_moe != nullptr) a.trace_moe[row] = sum;
      if (a.trace_down != nullptr) {
        for (int slot = 0; slot < a.top_k; ++slot) {
          a.trace_down[slot * hidden + row] = outputs[slot * kRows + threadIdx.x];
        }
      }
      a.residual[row] += sum;
    }
    __syncthreads();
  }
}
ROW_KERNEL(down, DownArgs, 1)
