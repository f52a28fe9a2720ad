// What every kernel shares: the decode state, warp reductions, and the choice of numerics.
//
// Numerics are chosen when the kernels are compiled (kernels/family.py): ACCUMULATOR is one of
// F32, F64, KAHAN, CHUNKED, QUAD; ROUND_ACTIVATIONS is 1 for q8_k, FIXED_ACTIVATIONS for i24;
// SOFTMAX_F64, WEIGHTED_SUM_F64 and SWIGLU_F64 widen one step each; STABLE_TOP_K is the epsilon of a stable top-k, in logits.
#pragma once

#include <cuda_fp16.h>
#include <stdint.h>

#define F32 1
#define F64 2
#define KAHAN 3
#define CHUNKED 4
#define QUAD 5

#ifndef ACCUMULATOR
#define ACCUMULATOR F32
#endif
#ifndef ROUND_ACTIVATIONS
#define ROUND_ACTIVATIONS 0
#endif
#ifndef FIXED_ACTIVATIONS
#define FIXED_ACTIVATIONS 0
#endif
#ifndef SOFTMAX_F64
#define SOFTMAX_F64 0
#endif
#ifndef WEIGHTED_SUM_F64
#define WEIGHTED_SUM_F64 0
#endif
#ifndef SWIGLU_F64
#define SWIGLU_F64 0
#endif

constexpr int kThreads = 256;  // of every block, unless its kernel says otherwise
constexpr int kWarps = kThreads / 32;
// Blocks of kernels over plain rows that a multiprocessor should hold at a time, which bounds their
// registers (the wider accumulators and q8_k would spill, so they are not bounded).
constexpr int kResident = ACCUMULATOR == F32 && !ROUND_ACTIVATIONS ? 2 : 1;
constexpr unsigned kAllLanes = 0xffffffffu;

// Where the decode stands; lives in device memory, so that a captured graph can be replayed.
struct State {
  int position;  // of the token being decoded: positions filled before it
  int token;     // its id
};

// A kernel of the decode may begin while its predecessor still runs (harness/backends/cuda/graph.py;
// sm_90 and later). It then asks for weights, and `take_over` waits until all that the predecessor
// wrote is visible; before it, nothing may be written, and nothing be read that the predecessor
// writes. The successor may begin from then on: what ran two kernels before it has ended.
//
// A kernel may let its successor begin before (`let_in`) if that one, until it takes over, reads only what
// had been written before this kernel's predecessor had taken over.
__device__ inline void let_in() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ inline void take_over() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  let_in();
}

// What there is to do while something else is under way, where there is nothing.
struct Nothing {
  template <class... Whatever>
  __device__ void operator()(const Whatever&...) const {}
};

__device__ inline int lane_id() { return threadIdx.x & 31; }
__device__ inline int warp_id() { return threadIdx.x >> 5; }
// For whole warps alone: the compiler knows it to be the same in all lanes, and writes no code for
// lanes that part at a branch on it.
__device__ inline int whole_warp_id() { return __shfl_sync(kAllLanes, threadIdx.x >> 5, 0); }

// Butterfly: every lane ends with the same sum, added in the same order.
template <class T>
__device__ inline T warp_sum(T value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

__device__ inline float warp_max(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

// Eight neighbouring values, of a vector that other kernels write: read past the L1, which may hold
// another layer's where a kernel began early.
__device__ inline void read_eight(const float* from, float (&into)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    const float4 four = __ldcg(reinterpret_cast<const float4*>(from + i));
    into[i] = four.x, into[i + 1] = four.y, into[i + 2] = four.z, into[i + 3] = four.w;
  }
}

// Sixteen bytes from global to shared memory, without a register and past the L1.
__device__ inline void copy_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until no more than PENDING of this thread's last commits are under way.
template <int PENDING>
__device__ inline void await_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// Whether this block is the last of `blocks` to arrive; resets the counter for the next launch.
// All that the blocks wrote to global memory before is visible to the last one.
__device__ inline bool last_to_arrive(unsigned* counter, unsigned blocks) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // one thread's fence behind a barrier is the whole block's
    last = atomicAdd(counter, 1) == blocks - 1;
    if (last) *counter = 0;
    __threadfence();
  }
  __syncthreads();
  return last;
}
