// The experts' logits, ahead of what they follow from.
//
// A layer's router sees the residual behind the attention: r + O m, of the residual r before it and
// the heads' output m. The scale of its RMSNorm is the same for all experts, so that a logit is,
// but for it, R n r + (R n O) m, of the router's rows R and the norm's weight n. The second matrix is
// made when weights are uploaded (kernels/fold.cu). So each block of attention_output has an expert's
// logit as soon as m is there, before its own products, and announces it: gate_up chooses while
// attention_output is still at work, and no kernel lies between the two.
#pragma once

#include "common.cuh"

struct Announcing {
  const float* router;  // [experts, hidden]; null: nothing is announced
  const float* norm;    // [hidden]: ffn_norm
  const float* folded;  // [experts, q_width]
  float* logits;        // [experts]: less the norm's scale; `kAbsent` until they are announced
  int experts, hidden;  // hidden, as q_width, is a multiple of 8
};

// What stands where no logit has been announced yet: a NaN, but none that arithmetic makes.
constexpr uint32_t kAbsent = 0xffffffffu;

// All blocks, behind their predecessor's end: the last one, which has the least to do, forgets the last
// layer's logits. Who chooses by the next ones begins three kernels later.
__device__ inline void retract(float* logits, int experts) {
  if (logits == nullptr || blockIdx.x != gridDim.x - 1) return;
#pragma unroll 1
  for (int e = threadIdx.x; e < experts; e += blockDim.x) logits[e] = __uint_as_float(kAbsent);
}

// A block's experts, every gridDim.x-th; a block has THREADS threads. All of them compute the first
// expert's logit, out of m as the block stages it; the others', where there are more experts than blocks,
// are a warp's each, behind that. Takes a float of shared memory for each warp (kernels/launch.py).
template <int THREADS>
class Announcer {
 public:
  // Asks for what there is before the predecessor has ended: rows of weights, and the residual, which
  // was written three kernels before. `combine` waits for it.
  __device__ Announcer(const Announcing& a, const float* residual, int columns, float* memory)
      : a_(a), residual_(residual), columns_(columns), sums_(memory) {
    if (!announces()) return;
    const int column = 8 * threadIdx.x;
    if (column < columns_) read_eight(row(blockIdx.x) + column, weight_);
    if (column < a_.hidden) ask(blockIdx.x, column);
  }
  __device__ void combine() {
    if (!announces()) return;
#pragma unroll 1
    for (int column = 8 * threadIdx.x; column < a_.hidden; column += 8 * THREADS) {
      if (column >= 8 * THREADS) ask(blockIdx.x, column);
      sum_ += of_residual();
    }
  }

  // A thread: values `column` and on of m. Calls it for all that it stages, eight at a time, every
  // 8 * THREADS columns from 8 * threadIdx.x on.
  __device__ void add(int column, const float (&x)[8]) {
    if (!announces()) return;
    if (column >= 8 * THREADS) read_eight(row(blockIdx.x) + column, weight_);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum_ = fmaf(weight_[i], x[i], sum_);
  }

  // All warps, when they have added up all, for `announce` to read behind the block's next barrier.
  __device__ void meet() {
    if (!announces()) return;
    const float sum = warp_sum(sum_);
    if (lane_id() == 0) sums_[warp_id()] = sum;
  }

  // All warps: the last one the first expert, whichever are left over the others.
  __device__ void announce(const float* m) {
    constexpr int kLast = THREADS / 32 - 1;
    if (announces() && whole_warp_id() == kLast) {
      publish(blockIdx.x, warp_sum(lane_id() <= kLast ? sums_[lane_id()] : 0.0f));
    }
#pragma unroll 1
    for (int e = blockIdx.x + (1 + whole_warp_id()) * gridDim.x; announces() && e < a_.experts; e += (kLast + 1) * gridDim.x) {
      float sum = 0;
#pragma unroll 1
      for (int column = 8 * lane_id(); column < a_.hidden; column += 8 * 32) {
        ask(e, column);
        sum += of_residual();
      }
#pragma unroll 1
      for (int k = 8 * lane_id(); k < columns_; k += 8 * 32) {
        float x[8], weight[8];
        read_eight(m + k, x);
        read_eight(row(e) + k, weight);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fmaf(weight[i], x[i], sum);
      }
      publish(e, warp_sum(sum));
    }
  }

 private:
  __device__ bool announces() const { return a_.router != nullptr && blockIdx.x < a_.experts; }
  __device__ const float* row(int e) const { return a_.folded + static_cast<long long>(e) * columns_; }

  // Eight columns of the residual, and what they give expert e.
  __device__ void ask(int e, int column) {
    read_eight(a_.router + static_cast<long long>(e) * a_.hidden + column, router_);
    read_eight(a_.norm + column, norm_);
    read_eight(residual_ + column, x_);
  }
  __device__ float of_residual() const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(x_[i] * norm_[i], router_[i], sum);
    return sum;
  }

  // One warp, one access of four bytes, to the L2: whoever polls sees the logit or its absence.
  __device__ void publish(int e, float logit) {
    if (lane_id() == 0) *const_cast<volatile float*>(a_.logits + e) = logit;
  }

  const Announcing& a_;
  const float* residual_;
  int columns_;
  float* sums_;  // [warps], in shared memory
  float sum_ = 0, weight_[8] = {}, router_[8], norm_[8], x_[8];
};

// Four logits as they are now, in the L2; zeros where there are only `left`.
__device__ inline float4 peek(const float* from, int left) {
  float4 four = {};
  if (left >= 4) {
    asm volatile("ld.volatile.global.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(four.x), "=f"(four.y), "=f"(four.z), "=f"(four.w) : "l"(from) : "memory");
  } else {
    const volatile float* at = from;
    four.x = at[0];
    if (left > 1) four.y = at[1];
    if (left > 2) four.z = at[2];
  }
  return four;
}

__device__ inline bool some_absent(const float4& four) {
  return max(max(__float_as_uint(four.x), __float_as_uint(four.y)), max(__float_as_uint(four.z), __float_as_uint(four.w))) == kAbsent;
}

// Four logits, or `left`, that may not have been announced yet. Waits for some microseconds; if they are not
// there by then, for the predecessor's end.
__device__ inline float4 announced(const float* logits, int left) {
  constexpr int kPatience = 64;  // reads of the L2
  float4 four = peek(logits, left);
#pragma unroll 1
  for (int i = 0; i < kPatience && some_absent(four); ++i) four = peek(logits, left);
  if (!some_absent(four)) return four;
  take_over();
  return peek(logits, left);
}
