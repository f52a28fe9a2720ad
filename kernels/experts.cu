// The chosen experts: gate and up with SwiGLU in one kernel; down, weighted sum and residual in
// another. Both choose by themselves. Each has a form for plain matrices and, where the numerics has
// tiles, one for those: the launcher picks by the matrices' formats.
#include "choose.cuh"
#include "rows.cuh"
#include "stream.cuh"

// The expert whose matrices a slot of the top-k multiplies.
__device__ inline int expert_of(const Chosen& chosen, int slot) {
#ifdef PLANT_WRONG_EXPERT
  if (slot == 0) return (chosen.ids[0] + 1) % chosen.choosing.experts;
#endif
  return chosen.ids[slot];
}

// -- gate, up, SwiGLU ---------------------------------------------------------------------------------

struct GateUpArgs {
  Matrix gate, up;      // [experts, width, hidden]
  Choosing choosing;
  const float* x;       // [hidden]
  const float* norm;    // [hidden]: ffn_norm, applied on the way
  float* gated;         // [top_k, width]: silu(gate) * up
  float* trace_norm;    // [hidden] or null
  float* trace_gate;    // [top_k, width] or null, as the next two
  float* trace_up;
  float* trace_silu;
  float eps;
  int batch;            // items that a block takes at a time (stream.cuh)
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

// Result `at` of [top_k, width].
__device__ inline void store_gated(const GateUpArgs& a, int at, float gate, float up) {
#ifdef PLANT_SILU_ON_WRONG_FACTOR
  a.gated[at] = swiglu(up, gate);
#else
  a.gated[at] = swiglu(gate, up);
#endif
  if (a.trace_gate == nullptr) return;
  a.trace_gate[at] = gate;
  a.trace_up[at] = up;
  a.trace_silu[at] = silu(gate);
}

// Rows of all slots are dealt out together: a block takes sixteen of gate and the same of up.
extern "C" __global__ void __launch_bounds__(kThreads, kResident) gate_up(const GateUpArgs a) {
  extern __shared__ __align__(16) uint8_t memory[];
  const int width = a.gate.rows, groups = (width + kBlockRows - 1) / kBlockRows;
  const int items = a.choosing.top_k * groups;
  void* choice = memory + (input_bytes(a.gate.columns) + 15) / 16 * 16;
  const Chosen chosen(a.choosing, choice);
  const auto first_row = [&](int item) {
    return static_cast<long long>(expert_of(chosen, item / groups)) * width +
           item % groups * kBlockRows;
  };
  const Input in = stage_input(a.x, a.gate.columns, a.norm, a.eps, a.trace_norm, memory, [&] {
    choose<kThreads>(a.choosing, choice);
    if (blockIdx.x == gridDim.x - 1 && whole_warp_id() == 0) weigh(chosen, 1);
    if (blockIdx.x >= items) return;
    const int left = width - static_cast<int>(blockIdx.x) % groups * kBlockRows;
    const long long row = first_row(blockIdx.x);
    prefetch_block(a.gate, row, left);
    prefetch_block(a.up, row, left);
  });
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const int row = item % groups * kBlockRows, left = width - row;
    const Matrix* const matrices[2] = {&a.gate, &a.up};
    float out[2];
    block_rows<2>(matrices, first_row(item), left, in, out);
    if (threadIdx.x < min(kBlockRows, left)) store_gated(a, item / groups * width + row + threadIdx.x, out[0], out[1]);
  }
}

#if FIXED_ACTIVATIONS
// An item is a row of gate's tiles, then the same of up's.
extern "C" __global__ void __launch_bounds__(kTiledThreads, kTiledResident) gate_up_tiled(const GateUpArgs a) {
  extern __shared__ __align__(16) uint8_t memory[];
  const int width = a.gate.rows, superblocks = a.gate.columns / 256;
  const Divisor groups(width / kTileRows);
  TileStream<3> stream({a.choosing.top_k * groups.by, 2 * superblocks, a.batch}, memory,
                       max(tile_bytes(a.gate.format), tile_bytes(a.up.format)));
  uint8_t* const staged = stream.behind();
  uint8_t* const choice = staged + fixed_bytes(a.gate.columns);
  const Chosen chosen(a.choosing, choice);
  const auto source = [&](int item, int part) {
    const int slot = groups.of(item), row = (expert_of(chosen, slot) - slot) * groups.by + item;
    return part < superblocks ? tile_of(a.gate, row, part) : tile_of(a.up, row, part - superblocks);
  };
  if (!a.choosing.announced) take_over();
  choose<kTiledThreads>(a.choosing, choice);
  const FixedInput in = stage_fixed<true, 1>(a.x, a.gate.columns, a.norm, staged);
  __syncthreads();
  // Not before: a multiprocessor has only so many bytes on their way, and the residual would come behind
  // all that these tiles take.
  stream.begin(source);
  const auto besides = [&] {
    find_scale(in, a.eps);
    __syncwarp();
    // The last block has the fewest rows.
    if (blockIdx.x == gridDim.x - 1) weigh(chosen, a.choosing.announced ? in.scale[0] : 1);
  };
  stream.run(in, source, besides, NothingBefore(),
             [&](int item, int row, const float* products, float) {
               // Results lie one item behind the other, as [top_k, width].
               float sum[2];
               sum_products(products, superblocks, sum);
               const float scale = in.scale[0];
               if (row_lane() == 0) store_gated(a, item * kTileRows + row, sum[0] * scale, sum[1] * scale);
             });
  trace_normed(in, a.x, a.norm, a.trace_norm);
}
#endif

// -- down, weighted sum, residual -----------------------------------------------------------------------

struct DownArgs {
  Matrix down;           // [experts, hidden, width]
  Choosing choosing;
  const float* gated;    // [top_k, width]
  const State* state;
  const float* before;   // [hidden]: the residual
  float* residual;       // [hidden]: with the experts' sum
  float* trace_down;     // [top_k, hidden] or null: each expert's output
  float* trace_moe;      // [hidden] or null: their weighted sum
  int last_layer;
  int batch;
};
static_assert(sizeof(DownArgs) == DOWN_ARGS_BYTES, "differs from kernels/experts.py");

__device__ inline float mixing_weight(const float* weights, int slot, [[maybe_unused]] int top_k) {
#ifdef PLANT_DROP_TOP_EXPERT
  if (slot == 0) return 0.0f;
#endif
#ifdef PLANT_DROP_LOWEST_EXPERT
  if (slot == top_k - 1) return 0.0f;
#endif
#ifdef PLANT_SWAP_TWO_WEIGHTS
  if (slot == 0) return weights[top_k - 1];
  if (slot == top_k - 1) return weights[0];
#endif
  return weights[slot];
}

// A row's lanes (whole warps of them) add it up over all experts, in router order, and onto what the
// residual was. An expert's result is the sum of `parts` values, `stride` apart from `outputs` on; the
// next expert's lie behind them. Nothing is stored of a row that does not exist.
__device__ inline void store_mixed(const DownArgs& a, const Chosen& chosen, int row, bool exists, float before,
                                   const float* outputs, int parts, int stride) {
  const int top_k = a.choosing.top_k, lane = row_lane();
#if WEIGHTED_SUM_F64
  double sum = 0;
#else
  float sum = 0;
#endif
#pragma unroll 1
  for (int first = 0; first < top_k; first += kRowLanes) {
    const int slot = first + lane;
    float out = 0, weight = 0;
    if (slot < top_k) {
      weight = mixing_weight(chosen.weights(), slot, top_k);
#pragma unroll 4
      for (int part = 0; part < parts; ++part) out += outputs[(slot * parts + part) * stride];
      if (exists && a.trace_down != nullptr) a.trace_down[slot * a.down.rows + row] = out;
    }
#pragma unroll
    for (int i = 0; i < kRowLanes; ++i) {
      const float factor = __shfl_sync(kAllLanes, weight, i, kRowLanes);
      const float term = __shfl_sync(kAllLanes, out, i, kRowLanes);
      if (first + i >= top_k) continue;
#if WEIGHTED_SUM_F64
      sum = fma(static_cast<double>(factor), static_cast<double>(term), sum);
#else
      sum = __fadd_rn(sum, __fmul_rn(factor, term));
#endif
    }
  }
  if (!exists || lane != 0) return;
  float mixed = static_cast<float>(sum);
#ifdef PLANT_NAN
  if (a.last_layer && a.state->position == 1 && row == a.down.rows / 2) mixed = NAN;
#endif
  if (a.trace_moe != nullptr) a.trace_moe[row] = mixed;
  a.residual[row] = before + mixed;
}

// A warp takes an expert at a time, and of it two rows; the block meets in shared memory to add them
// up.
extern "C" __global__ void __launch_bounds__(kThreads, kResident) down(const DownArgs a) {
  extern __shared__ __align__(16) uint8_t memory[];
  const int hidden = a.down.rows, width = a.down.columns, top_k = a.choosing.top_k;
  uint8_t* const choice = memory + (input_bytes(top_k * width) + 15) / 16 * 16;
  float* const outputs = reinterpret_cast<float*>(choice + choose_bytes(a.choosing.experts, top_k));
  // Who made the logits ran two kernels before this one: they are there.
  const Chosen chosen = choose<kThreads>(a.choosing, choice);
  const auto first_row = [&](int slot, int row) {
    return static_cast<long long>(expert_of(chosen, slot)) * hidden + row;
  };
  const int ahead = blockIdx.x * kWarpRows;
  for (int slot = warp_id(); slot < top_k && ahead < hidden; slot += kWarps) {
    prefetch_rows(a.down, first_row(slot, ahead), min(kWarpRows, hidden - ahead));
  }
  const Input in = stage_input<24>(a.gated, top_k * width, nullptr, 0, nullptr, memory,
                                   [&] { if (whole_warp_id() == 0) read_weights(chosen); });
  for (int first = ahead; first < hidden; first += gridDim.x * kWarpRows) {
    const int left = min(kWarpRows, hidden - first);
    for (int slot = warp_id(); slot < top_k; slot += kWarps) {
      const long long row = first_row(slot, first);
      const long long index[kWarpRows] = {row, row + left - 1};
      float result[kWarpRows];
      dots<kWarpRows>(a.down, index, in.from(slot * width), result);
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        if (lane_id() == r) outputs[slot * kWarpRows + r] = result[r];
      }
    }
    __syncthreads();
    if (warp_id() == 0) {
      const int r = min(lane_id() / kRowLanes, left - 1);
      store_mixed(a, chosen, first + r, lane_id() < left * kRowLanes, a.before[first + r], outputs + r, 1, kWarpRows);
    }
    __syncthreads();
  }
}

#if FIXED_ACTIVATIONS
// An item is sixteen rows of the residual: their tiles of all chosen experts.
extern "C" __global__ void __launch_bounds__(kTiledThreads, kTiledResident) down_tiled(const DownArgs a) {
  extern __shared__ __align__(16) uint8_t memory[];
  const int hidden = a.down.rows, top_k = a.choosing.top_k, columns = top_k * a.down.columns;
  const Divisor superblocks(a.down.columns / 256);
  TileStream<2> stream({hidden / kTileRows, top_k * superblocks.by, a.batch}, memory, tile_bytes(a.down.format));
  uint8_t* const staged = stream.behind();
  // Who made the logits ran two kernels before this one: they are there.
  const Chosen chosen = choose<kTiledThreads>(a.choosing, staged + fixed_bytes(columns));
  const auto source = [&](int item, int part) {
    const int slot = superblocks.of(part);
    Tile tile = tile_of(a.down, expert_of(chosen, slot) * (hidden / kTileRows) + item, part - slot * superblocks.by);
    tile.superblock = part;  // the experts' inputs lie one behind the other
    return tile;
  };
  stream.begin(source);
  take_over();
  const bool weighs = threadIdx.x < top_k;  // more experts than threads would not fit with their inputs
  const float weight = weighs ? __ldcg(a.choosing.weights + threadIdx.x) : 0.0f;
  const FixedInput in = stage_fixed<false, 2>(a.gated, columns, nullptr, staged);
  if (weighs) chosen.weights()[threadIdx.x] = weight;
  __syncthreads();
  stream.run(
      in, source, Nothing(), [&](int item, int row) { return __ldcg(a.before + item * kTileRows + row); },
      [&](int item, int row, const float* products, float before) {
        store_mixed(a, chosen, item * kTileRows + row, true, before, products, superblocks.by, kTileRows);
      });
}
#endif
