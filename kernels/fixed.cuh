// The vector that tiles are multiplied with, staged in shared memory as 24-bit fixed point.
//
// For each 256 values there is one unit, and each value is an integer below 2^23 times it (the
// rounding is as fine as a float32 sum's own), kept as three signed bytes: its limbs. The scale of
// an RMSNorm is the same for all columns, so it is left to whoever adds the products up: values
// become fixed point as soon as they are read, and one barrier is all that lies between.
#pragma once

#include "common.cuh"

constexpr int kTiledThreads = 512;  // of a block of a kernel over tiles
constexpr int kTiledWarps = kTiledThreads / 32;
constexpr int kUnit = 256;          // values that share a unit
constexpr int kLimbPadding = 16;    // bytes between limbs: 16 bytes of two then lie in different banks

struct FixedInput {
  const int8_t* limbs;   // [3, stride], in the order of `limb_place`
  const int8_t* zeros;   // [kUnit]: what is multiplied where nothing is wanted
  const int8_t* sums;    // [columns / 256, 4, 2, 4]: four limbs of the sums of even and odd groups of 32
  const float* units;    // [columns / 256]
  const float* squares;  // [columns / 256]: sums of x^2, of what an RMSNorm is to be applied to
  const float* scale;    // [1]: that RMSNorm's, behind `find_scale`
  int columns, stride;
};

// Bytes of shared memory that `columns` values take, a multiple of 16; kernels/launch.py computes the
// same.
__host__ __device__ constexpr int fixed_bytes(int columns) {
  return (kUnit + 3 * (columns + kLimbPadding) + columns / 32 * 4 + columns / kUnit * 8 + 4 + 15) / 16 * 16;
}

// Where eight values that begin at `column` of 256 have their limbs: an mma's lane reads those of its
// eight columns of all even groups of 32, or of all odd ones, in one run.
__device__ inline int limb_place(int column) {
  return (column & 32) * 4 + (column & 24) * 4 + column / 64 * 8;
}

__device__ inline FixedInput fixed_input(uint8_t* memory, int columns) {
  FixedInput in;
  in.columns = columns;
  in.stride = columns + kLimbPadding;
  in.zeros = reinterpret_cast<int8_t*>(memory);
  in.limbs = in.zeros + kUnit;
  in.sums = in.limbs + 3 * in.stride;
  in.units = reinterpret_cast<const float*>(in.sums + columns / 8);
  in.squares = in.units + columns / kUnit;
  in.scale = in.squares + columns / kUnit;
  return in;
}

// One warp: values 8 * lane and on of 256 become fixed point.
__device__ inline void fix_group(const FixedInput& in, int group, const float (&x)[8]) {
  constexpr float kMost = 8.3e6f;     // below 127 * 2^16, so that the highest byte is no larger than 127
  constexpr float kLeast = 0x1p-100f; // of a group's largest: below it values are zero before long
  uint32_t most = 0;                  // bits of the largest |x|: they rank as the floats do, NaN above infinity
#pragma unroll
  for (int i = 0; i < 8; ++i) most = max(most, __float_as_uint(x[i]) & 0x7fffffffu);
  most = __reduce_max_sync(kAllLanes, most);
  const float largest = fmaxf(__uint_as_float(most), kLeast);
  const float inverse = __fdividef(kMost, largest);
  // What is not finite gets a unit that is NaN, so that it cannot pass unseen.
  const float unit = most < 0x7f800000u ? largest * (1.0f / kMost) : __int_as_float(0x7fffffff);
  int sum = 0;
  const int first = group * kUnit + limb_place(8 * lane_id());
  uint32_t bytes[3][2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t raised[4];  // by 128 in each byte: then no byte borrows from the next
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int fixed = __float2int_rn(x[4 * half + i] * inverse);
      sum += fixed;
      raised[i] = static_cast<uint32_t>(fixed) + 0x00808080u;
    }
    const uint32_t low[2] = {__byte_perm(raised[0], raised[1], 0x5140), __byte_perm(raised[2], raised[3], 0x5140)};
    const uint32_t high[2] = {__byte_perm(raised[0], raised[1], 0x7362), __byte_perm(raised[2], raised[3], 0x7362)};
    bytes[0][half] = __byte_perm(low[0], low[1], 0x5410) ^ 0x80808080u;
    bytes[1][half] = __byte_perm(low[0], low[1], 0x7632) ^ 0x80808080u;
    bytes[2][half] = __byte_perm(high[0], high[1], 0x5410) ^ 0x80808080u;
  }
#pragma unroll
  for (int limb = 0; limb < 3; ++limb) {
    *reinterpret_cast<uint2*>(const_cast<int8_t*>(in.limbs) + limb * in.stride + first) =
        make_uint2(bytes[limb][0], bytes[limb][1]);
  }
  sum += __shfl_xor_sync(kAllLanes, sum, 1);
  sum += __shfl_xor_sync(kAllLanes, sum, 2);
  // Of a group's four lanes each writes one limb.
  const int limb = lane_id() & 3, of = lane_id() / 4;
  const uint32_t limbs = (static_cast<uint32_t>(sum) + 0x00808080u) ^ 0x00808080u;
  const_cast<int8_t*>(in.sums)[32 * group + 8 * limb + 4 * (of & 1) + of / 2] = static_cast<int8_t>(limbs >> (8 * limb));
  if (lane_id() == 0) const_cast<float*>(in.units)[group] = unit;
}

// Stages x [columns] in `memory` (fixed_bytes(columns)), behind the predecessor's end, for the block to
// read behind its next barrier. If NORMED, `norm` [columns] is the weight of an RMSNorm to apply; its
// scale is left out (`find_scale`). A warp asks for HELD groups of 256 at once; `also(column, values)` sees
// each eight values that a thread reads.
//
// Here as everywhere around tiles code is kept short and its loops rolled: a kernel of some
// microseconds runs most of its code once, some cycles for each instruction, whatever it does.
template <bool NORMED, int HELD, class Also = Nothing>
__device__ inline FixedInput stage_fixed(const float* x, int columns, const float* norm, uint8_t* memory,
                                         Also also = {}) {
  static_assert(HELD == 1 || HELD == 2, "one group or two");
  const FixedInput in = fixed_input(memory, columns);
  const int groups = columns / kUnit;
  float weight[8], value[HELD][8];
  const auto read = [&](const float* from, int group, float (&into)[8]) {
    if (group < groups) read_eight(from + group * kUnit + 8 * lane_id(), into);
  };
  if (NORMED) read(norm, whole_warp_id(), weight);
  if (threadIdx.x < kUnit / 4) const_cast<int*>(reinterpret_cast<const int*>(in.zeros))[threadIdx.x] = 0;
  take_over();
#pragma unroll
  for (int h = 0; h < HELD; ++h) read(x, whole_warp_id() + h * kTiledWarps, value[h]);
#pragma unroll 1
  for (int group = whole_warp_id(); group < groups; group += kTiledWarps) {
    if (NORMED) {
      float square = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        square = fmaf(value[0][i], value[0][i], square);
        value[0][i] *= weight[i];
      }
      square = warp_sum(square);
      if (lane_id() == 0) const_cast<float*>(in.squares)[group] = square;
    }
    also(group * kUnit + 8 * lane_id(), value[0]);
    fix_group(in, group, value[0]);
    if (HELD == 2) {
#pragma unroll
      for (int i = 0; i < 8; ++i) value[0][i] = value[1][i];
    }
    if (NORMED) read(norm, group + kTiledWarps, weight);
    read(x, group + HELD * kTiledWarps, value[HELD - 1]);
  }
  return in;
}

// One warp: 1 / sqrt(mean(x^2) + eps), which the products of a staged vector are to be multiplied by,
// for the block to read behind its next barrier.
__device__ inline void find_scale(const FixedInput& in, float eps) {
  float sum = 0;
#pragma unroll 1
  for (int group = lane_id(); group < in.columns / kUnit; group += 32) sum += in.squares[group];
  sum = warp_sum(sum);
  if (lane_id() == 0) const_cast<float*>(in.scale)[0] = __frsqrt_rn(sum / static_cast<float>(in.columns) + eps);
}

// The first block writes the normed x, where it is traced.
__device__ inline void trace_normed(const FixedInput& in, const float* x, const float* norm, float* trace) {
  if (trace == nullptr || blockIdx.x != 0) return;
#pragma unroll 1
  for (int k = threadIdx.x; k < in.columns; k += kTiledThreads) trace[k] = __ldcg(x + k) * in.scale[0] * norm[k];
}
