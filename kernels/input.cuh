// The vector that a block multiplies rows with, staged in shared memory: normed on the way where
// the kernel asks for it, rounded to int8 (q8_k) where the numerics does. (Tiles have fixed.cuh.)
#pragma once

#include "common.cuh"

constexpr int kRounded = 256;  // values that share a scale

// Where column k lies. Lanes read pieces 64 columns apart: four values of padding for each 64 put
// them into different banks.
__device__ inline int padded(int k) { return k + ((k >> 6) << 2); }

struct Input {
  const float* values;    // [padded(columns)]
  const int8_t* rounded;  // [columns], only where ROUND_ACTIVATIONS
  const float* scales;    // [columns / 256], of `rounded`
  int first;              // column at which the vector begins; the others of a batch lie beside it

  __device__ float value(int k) const { return values[padded(first + k)]; }
  __device__ float4 four(int k) const {
    return *reinterpret_cast<const float4*>(values + padded(first + k));
  }
  __device__ int four_rounded(int k) const {
    return *reinterpret_cast<const int*>(rounded + first + k);
  }
  __device__ float scale(int k) const { return scales[(first + k) / kRounded]; }
  __device__ Input from(int column) const {
    Input moved = *this;
    moved.first += column;
    return moved;
  }
};

// Bytes of shared memory that `columns` values take; kernels/launch.py computes the same.
__host__ __device__ constexpr int input_bytes(int columns) {
  return 4 * (columns + (columns / 64 + 1) * 4) +
         (ROUND_ACTIVATIONS ? (columns / kRounded) * (kRounded + 4) : 0);
}

// 1 / sqrt(mean(x^2) + eps) out of each thread's sum of squares; float64 as in the reference.
__device__ inline float rms_scale(double sum, int columns, float eps) {
  __shared__ double partial[kWarps];
  sum = warp_sum(sum);
  if (lane_id() == 0) partial[warp_id()] = sum;
  __syncthreads();
  double total = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total += partial[warp];
  return static_cast<float>(rsqrt(total / columns + static_cast<double>(eps)));
}

// Rounds the staged values by groups of 256: scale max|x| / 127, half to even; a group that is not
// finite gets a NaN scale, so that it cannot pass unseen. One warp a group.
__device__ inline void round_input(float* values, int8_t* rounded, float* scales, int columns) {
  for (int group = warp_id(); group < columns / kRounded; group += kWarps) {
    float largest = 0;
    bool finite = true;
    for (int i = lane_id(); i < kRounded; i += 32) {
      const float x = fabsf(values[padded(group * kRounded + i)]);
      finite = finite && isfinite(x);
      largest = fmaxf(largest, x);
    }
    largest = warp_max(largest);
    finite = __all_sync(kAllLanes, finite);
    const double inverse = largest > 0 && finite ? 127.0 / static_cast<double>(largest) : 0.0;
    for (int i = lane_id(); i < kRounded; i += 32) {
      const double x = values[padded(group * kRounded + i)];
      rounded[group * kRounded + i] = finite ? static_cast<int8_t>(__double2int_rn(x * inverse)) : 0;
    }
    if (lane_id() == 0) {
      scales[group] = finite ? static_cast<float>(static_cast<double>(largest) / 127.0)
                             : __int_as_float(0x7fffffff);
    }
  }
}

// Values of a vector that a thread holds: COUNT runs of WIDTH neighbours (4; 1 of odd vectors).
template <int WIDTH, int HELD>
struct Held {
  static constexpr int COUNT = HELD / WIDTH;
  static constexpr int SPAN = HELD * kThreads;  // columns that all threads hold together
  float values[COUNT][WIDTH];

  __device__ static int column(int base, int i) { return base + (threadIdx.x + i * kThreads) * WIDTH; }

  __device__ void read(const float* from, int base, int columns) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int k = column(base, i);
      if (k >= columns) continue;
      if constexpr (WIDTH == 4) {
        const float4 four = *reinterpret_cast<const float4*>(from + k);
        values[i][0] = four.x, values[i][1] = four.y, values[i][2] = four.z, values[i][3] = four.w;
      } else {
        values[i][0] = from[k];
      }
    }
  }

  __device__ void write(float* to, int base, int columns) const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int k = column(base, i);
      if (k >= columns) continue;
      if constexpr (WIDTH == 4) {
        *reinterpret_cast<float4*>(to + padded(k)) =
            make_float4(values[i][0], values[i][1], values[i][2], values[i][3]);
      } else {
        to[padded(k)] = values[i][0];
      }
    }
  }

  __device__ double squares(int base, int columns) const {
    double sum = 0;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (column(base, i) >= columns) continue;
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) {
        const double wide = values[i][j];
        sum = fma(wide, wide, sum);
      }
    }
    return sum;
  }

  __device__ void scale(float by, const Held& weight) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) values[i][j] = values[i][j] * by * weight.values[i][j];
    }
  }
};

// Copies x, or its RMSNorm, to shared memory, once the kernel that wrote x has ended. What fits the
// threads' registers is read once; a longer vector that is to be normed is read again. `meanwhile`
// runs once the first reads are on their way: requests made before them would be served before them.
template <int WIDTH, int HELD, class Meanwhile>
__device__ inline void stage_values(const float* x, int columns, const float* norm, float eps,
                                    float* values, Meanwhile meanwhile) {
  Held<WIDTH, HELD> held, weight;
  if (norm != nullptr) weight.read(norm, 0, columns);
  take_over();
  held.read(x, 0, columns);
  meanwhile();
  if (norm == nullptr) {
    held.write(values, 0, columns);
    for (int base = held.SPAN; base < columns; base += held.SPAN) {
      held.read(x, base, columns);
      held.write(values, base, columns);
    }
    return;
  }
  double sum = held.squares(0, columns);
  Held<WIDTH, HELD> more;
  for (int base = held.SPAN; base < columns; base += held.SPAN) {
    more.read(x, base, columns);
    sum += more.squares(base, columns);
  }
  const float scale = rms_scale(sum, columns, eps);
  held.scale(scale, weight);
  held.write(values, 0, columns);
  for (int base = held.SPAN; base < columns; base += held.SPAN) {
    more.read(x, base, columns);
    weight.read(norm, base, columns);
    more.scale(scale, weight);
    more.write(values, base, columns);
  }
}

// Waits for the predecessor, then stages x [columns] into `memory` (input_bytes(columns)). `norm`
// [columns] is the weight of an RMSNorm to apply, or null; `trace` receives the normed values where
// it is not null. HELD values of a thread are read at once; `meanwhile` runs while they are on their
// way.
template <int HELD = 8, class Meanwhile = Nothing>
__device__ inline Input stage_input(const float* x, int columns, const float* norm, float eps,
                                    float* trace, void* memory, Meanwhile meanwhile = {}) {
  float* values = static_cast<float*>(memory);
  if (columns % 4 == 0) {
    stage_values<4, HELD>(x, columns, norm, eps, values, meanwhile);
  } else {
    stage_values<1, HELD>(x, columns, norm, eps, values, meanwhile);
  }
  Input input = {};
  input.values = values;
#if ROUND_ACTIVATIONS
  float* scales = values + columns + (columns / 64 + 1) * 4;
  int8_t* rounded = reinterpret_cast<int8_t*>(scales + columns / kRounded);
  __syncthreads();
  round_input(values, rounded, scales, columns);
  input.rounded = rounded;
  input.scales = scales;
#endif
  __syncthreads();
  if (trace != nullptr && blockIdx.x == 0) {
    for (int k = threadIdx.x; k < columns; k += kThreads) trace[k] = values[padded(k)];
  }
  return input;
}
