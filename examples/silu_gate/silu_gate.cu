// What joins an expert's two halves: out = weight * silu(gate) * up, for each row and expert.
#include "common.cuh"

struct SiluGateArgs {
  const float4* gate;    // [rows, width], as are up and out; width is a multiple of 4
  const float4* up;
  const float* weights;  // [rows]
  float4* out;
  int rows;
  int width;
};
static_assert(sizeof(SiluGateArgs) == SILU_GATE_ARGS_BYTES, "differs from silu_gate.py");

__device__ inline float silu(float x) {
#ifdef PLANT_NO_SIGMOID
  return x;
#else
  return x / (1.0f + expf(-x));
#endif
}

__device__ inline float joined(float weight, float gate, float up) {
#ifdef PLANT_UNWEIGHTED
  weight = 1.0f;
#endif
  const float value = weight * silu(gate) * up;
#ifdef PLANT_ROUNDED_TO_HALF
  return __half2float(__float2half(value));
#else
  return value;
#endif
}

extern "C" __global__ void __launch_bounds__(kThreads) silu_gate(const SiluGateArgs a) {
  const int each = a.width / 4;  // float4 of a row
#ifdef PLANT_LAST_ROW_MISSING
  const int count = (a.rows - 1) * each;
#else
  const int count = a.rows * each;
#endif
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < count; i += gridDim.x * kThreads) {
    const float weight = a.weights[i / each];
#ifdef PLANT_UP_OF_THE_NEXT_ROW
    const float4 gate = a.gate[i], up = a.up[(i + each) % count];
#else
    const float4 gate = a.gate[i], up = a.up[i];
#endif
    a.out[i] = make_float4(joined(weight, gate.x, up.x), joined(weight, gate.y, up.y),
                           joined(weight, gate.z, up.z), joined(weight, gate.w, up.w));
  }
}
