// The next token: argmax of the logits, ties to the lower id; moves the decode on by one position.
#include "common.cuh"

struct ArgmaxArgs {
  const float* logits;  // [vocab]
  float* best;          // [blocks]: scratch
  int* best_id;         // [blocks]
  unsigned* arrived;    // zero between launches
  State* state;         // receives the token and the next position
  int* tokens;          // [capacity]: the token chosen at each position
  int vocab;
  int padding;
};
static_assert(sizeof(ArgmaxArgs) == ARGMAX_ARGS_BYTES, "differs from kernels/argmax.py");

struct Best {
  float logit;
  int id;
  // NaN comes first, as it does for numpy's argmax.
  __device__ void meet(const Best& other) {
    const bool nan = isnan(logit), other_nan = isnan(other.logit);
    const bool better = nan != other_nan ? other_nan
                                         : !nan && other.logit != logit ? other.logit > logit
                                                                        : other.id < id;
    if (better) *this = other;
  }
};

__device__ inline Best best_of_block(Best best) {
  __shared__ Best found[kWarps];
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) {
    best.meet({__shfl_xor_sync(kAllLanes, best.logit, offset), __shfl_xor_sync(kAllLanes, best.id, offset)});
  }
  __syncthreads();
  if (lane_id() == 0) found[warp_id()] = best;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) best.meet(found[warp]);
  return best;
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) argmax(const ArgmaxArgs a) {
  take_over();
  Best best{-INFINITY, a.vocab};
  for (int id = blockIdx.x * kThreads + threadIdx.x; id < a.vocab; id += gridDim.x * kThreads) {
    best.meet({a.logits[id], id});
  }
  best = best_of_block(best);
  if (threadIdx.x == 0) a.best[blockIdx.x] = best.logit, a.best_id[blockIdx.x] = best.id;
  if (!last_to_arrive(a.arrived, gridDim.x)) return;
  best = {-INFINITY, a.vocab};
  for (int block = threadIdx.x; block < gridDim.x; block += kThreads) {
    best.meet({__ldcg(a.best + block), __ldcg(a.best_id + block)});
  }
  best = best_of_block(best);
  if (threadIdx.x == 0) {
    // All logits -inf: the first id, as numpy's argmax has it.
    const int token = best.id == a.vocab ? 0 : best.id;
    a.tokens[a.state->position] = token;
    a.state->token = token;
    a.state->position += 1;
  }
}
