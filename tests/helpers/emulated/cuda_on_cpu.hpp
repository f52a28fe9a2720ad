// Enough of CUDA to run this project's kernels on a CPU, block after block: each thread of a block
// is a fiber, which gives way where it must wait for others (a barrier, a warp's exchange).
//
// What it shows: wrong indices, wrong arithmetic, barriers that not all reach (a deadlock is told),
// shared memory read before it was written (it holds NaN). What it cannot: races, which a fiber that
// only gives way at barriers does not have, and anything about time.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __forceinline__ inline

struct Index { unsigned x, y, z; };

namespace emulated {

constexpr int kMostShared = 232448, kStack = 128 << 10;

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  char* stack = nullptr;
  bool begun = false, done = false;
  const unsigned* waits_for = nullptr;  // until this is no longer ...
  unsigned while_it_is = 0;             // ... that
  unsigned exchanges = 0;               // of its warp, so far
};

struct Warp {
  int alive = 0, arrived = 0;
  unsigned turn = 0;
  uint64_t values[2][32];  // two, so that the next exchange does not overwrite what is still read
};

alignas(128) inline uint8_t dynamic_shared[kMostShared];
inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline int current = 0, alive = 0, arrived = 0;
inline unsigned turn = 0;
inline jmp_buf scheduler;
inline void (*entry)(const void*) = nullptr;
inline const void* arguments = nullptr;

inline Index thread_index, block_index, block_size, grid_size;

inline void give_way(const unsigned* word, unsigned value) {
  Fiber& me = fibers[current];
  me.waits_for = word, me.while_it_is = value;
  if (!_setjmp(me.at)) _longjmp(scheduler, 1);
}

// All that are alive arrive; the last one lets them go on.
inline void meet(int& arrived_so_far, int everyone, unsigned& turn_of) {
  if (++arrived_so_far == everyone) {
    arrived_so_far = 0, ++turn_of;
  } else {
    give_way(&turn_of, turn_of);
  }
}

inline void meet_block() { meet(arrived, alive, turn); }

inline void finish() {
  Warp& warp = warps[current / 32];
  fibers[current].done = true;
  if (--alive && arrived == alive) arrived = 0, ++turn;
  --warp.alive;
  if (warp.arrived > 0) {
    fprintf(stderr, "a lane has ended, and %d of its warp wait for its value\n", warp.arrived);
    abort();
  }
  _longjmp(scheduler, 1);
}

inline void begin() {
  entry(arguments);
  finish();
}

// Every lane gives a value and reads others': all 32 of the warp must come.
template <class T, class Read>
inline auto exchange(T mine, Read read) {
  static_assert(sizeof(T) <= 8);
  const int lane = current & 31;
  Warp& warp = warps[current / 32];
  if (warp.alive != 32) {
    fprintf(stderr, "a warp of %d lanes exchanges values: all 32 are named in the mask\n", warp.alive);
    abort();
  }
  uint64_t* values = warp.values[fibers[current].exchanges++ & 1];
  memcpy(&values[lane], &mine, sizeof(T));
  meet(warp.arrived, 32, warp.turn);
  return read([&](int from) {
    T value;
    memcpy(&value, &values[from & 31], sizeof(T));
    return value;
  }, lane);
}

inline void run_block() {
  const int threads = static_cast<int>(block_size.x);
  memset(dynamic_shared, 0xff, sizeof dynamic_shared);  // NaN, however it is read
  if (static_cast<int>(fibers.size()) < threads) fibers.resize(threads);
  warps.assign((threads + 31) / 32, Warp());
  alive = threads, arrived = 0;
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    if (fiber.stack == nullptr) fiber.stack = static_cast<char*>(malloc(kStack));
    fiber.begun = fiber.done = false, fiber.waits_for = nullptr, fiber.exchanges = 0;
    ++warps[t / 32].alive;
  }
  while (alive > 0) {
    bool moved = false;
    for (int t = 0; t < threads; ++t) {
      Fiber& fiber = fibers[t];
      if (fiber.done || (fiber.waits_for != nullptr && *fiber.waits_for == fiber.while_it_is)) continue;
      moved = true;
      fiber.waits_for = nullptr;
      current = t;
      thread_index = {static_cast<unsigned>(t), 0, 0};
      if (_setjmp(scheduler)) continue;
      if (fiber.begun) _longjmp(fiber.at, 1);
      fiber.begun = true;
      getcontext(&fiber.start);
      fiber.start.uc_stack.ss_sp = fiber.stack;
      fiber.start.uc_stack.ss_size = kStack;
      fiber.start.uc_link = nullptr;
      makecontext(&fiber.start, begin, 0);
      setcontext(&fiber.start);
    }
    if (!moved) {
      fprintf(stderr, "block (%u, %u, %u): %d threads wait for others that will never come\n",
              block_index.x, block_index.y, block_index.z, alive);
      abort();
    }
  }
}

inline void launch(void (*kernel)(const void*), const void* with, Index grid, unsigned threads) {
  entry = kernel, arguments = with, grid_size = grid, block_size = {threads, 1, 1};
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = {x, y, z};
        run_block();
      }
    }
  }
}

template <class A>
inline void call(void (*kernel)(A), const void* with) {
  kernel(*static_cast<const std::remove_cv_t<A>*>(with));
}

}  // namespace emulated

#define threadIdx emulated::thread_index
#define blockIdx emulated::block_index
#define blockDim emulated::block_size
#define gridDim emulated::grid_size

// -- vectors, halves ---------------------------------------------------------------------------------

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct __half { _Float16 value; };
struct __half2 { __half x, y; };
inline float __half2float(__half h) { return static_cast<float>(h.value); }
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }
inline __half __float2half(float x) { return __float2half_rn(x); }
inline __half __ushort_as_half(unsigned short bits) {
  __half h;
  memcpy(&h, &bits, 2);
  return h;
}
inline __half2 __half2half2(__half h) { return {h, h}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }

// -- arithmetic -----------------------------------------------------------------------------------------

template <class To, class From>
inline To as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline unsigned __float_as_uint(float x) { return as<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return as<float>(x); }
inline float __int_as_float(int x) { return as<float>(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
inline int __double2int_rn(double x) { return static_cast<int>(nearbyint(x)); }
inline int __float2int_rn(float x) {
  if (isnan(x)) return 0;
  return static_cast<int>(nearbyint(std::min(2147483647.0, std::max(-2147483648.0, static_cast<double>(x)))));
}
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<uint64_t>(a) * b >> 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
using std::isfinite;
using std::isnan;
template <class A, class B>
inline std::common_type_t<A, B> min(A a, B b) { using T = std::common_type_t<A, B>; return std::min<T>(a, b); }
template <class A, class B>
inline std::common_type_t<A, B> max(A a, B b) { using T = std::common_type_t<A, B>; return std::max<T>(a, b); }

inline unsigned prmt(unsigned low, unsigned high, unsigned selector) {
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned choice = selector >> (4 * i) & 0xf;
    unsigned byte = both >> (8 * (choice & 7)) & 0xff;
    if (choice & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}
// The compiler leaves of a selector's nibbles three bits.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) { return prmt(low, high, selector & 0x7777); }
inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
inline float __fdividef(float a, float b) { return a / b; }
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  return sum;
}
inline unsigned __vsub4(unsigned a, unsigned b) {
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= ((a >> (8 * i)) - (b >> (8 * i)) & 0xff) << (8 * i);
  return result;
}

// -- memory -----------------------------------------------------------------------------------------------

template <class T> inline T __ldg(const T* at) { return *at; }
template <class T> inline T __ldcg(const T* at) { return *at; }
template <class T> inline T __ldcs(const T* at) { return *at; }
inline void __threadfence() {}
inline void __threadfence_block() {}
template <class T, class B> inline T atomicAdd(T* at, B by) { const T old = *at; *at += by; return old; }

// -- meeting ------------------------------------------------------------------------------------------------

inline void __syncthreads() { emulated::meet_block(); }
inline void __syncwarp(unsigned = 0xffffffffu) {
  emulated::exchange(0, [](auto value, int) { return value(0); });
}
template <class T> inline T __shfl_xor_sync(unsigned, T mine, int mask) {
  return emulated::exchange(mine, [&](auto value, int lane) { return value(lane ^ mask); });
}
template <class T> inline T __shfl_sync(unsigned, T mine, int from, int width = 32) {
  return emulated::exchange(mine, [&](auto value, int lane) { return value(lane / width * width + from % width); });
}
inline unsigned __reduce_max_sync(unsigned, unsigned mine) {
  return emulated::exchange(mine, [](auto value, int) {
    unsigned most = 0;
    for (int lane = 0; lane < 32; ++lane) most = std::max(most, value(lane));
    return most;
  });
}
inline unsigned __ballot_sync(unsigned, bool mine) {
  return emulated::exchange(static_cast<int>(mine), [](auto value, int) {
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= static_cast<unsigned>(value(lane)) << lane;
    return bits;
  });
}
inline bool __all_sync(unsigned mask, bool mine) { return __ballot_sync(mask, mine) == 0xffffffffu; }

// d += a * b, of mma.m16n8k32 with u8 rows and s8 columns. A fragment (PTX ISA): a[0] is row g, a[1]
// row g + 8, of columns 4 t to 4 t + 3; a[2] and a[3] the same 16 columns on; b.x rows 4 t on, b.y 16
// further, of column g; d: rows g, g + 8, columns 2 t, 2 t + 1; with g = lane / 4, t = lane % 4.
template <class B>
inline void mma_m16n8k32(int (&d)[4], const uint32_t (&a)[4], const B& b, bool signed_a = false) {
  const int lane = emulated::current & 31, g = lane / 4, t = lane % 4;
  // Every lane lays its words open to the others: six exchanges of one word each.
  uint32_t rows[4][32], columns[2][32];
  for (int i = 0; i < 4; ++i) {
    emulated::exchange(a[i], [&](auto value, int) { for (int l = 0; l < 32; ++l) rows[i][l] = value(l); return 0; });
  }
  const uint32_t mine[2] = {static_cast<uint32_t>(b.x), static_cast<uint32_t>(b.y)};
  for (int i = 0; i < 2; ++i) {
    emulated::exchange(mine[i], [&](auto value, int) { for (int l = 0; l < 32; ++l) columns[i][l] = value(l); return 0; });
  }
  for (int r = 0; r < 2; ++r) {
    for (int c = 0; c < 2; ++c) {
      int sum = d[2 * r + c];
      for (int k = 0; k < 32; ++k) {
        const uint32_t word = rows[r + 2 * (k / 16)][4 * g + k % 16 / 4];
        const uint8_t byte = word >> (8 * (k & 3));
        const int8_t x = columns[k / 16][4 * (2 * t + c) + k % 16 / 4] >> (8 * (k & 3));
        sum += (signed_a ? static_cast<int8_t>(byte) : byte) * x;
      }
      d[2 * r + c] = sum;
    }
  }
}

// d = a * b, of mma.m16n8k16 with unsigned a: as above, without the second half of the depth.
inline void mma_m16n8k16(int (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  struct { uint32_t x, y; } const columns = {b, 0};
  memset(d, 0, sizeof(d));
  mma_m16n8k32(d, {a[0], a[1], 0, 0}, columns);
}

// d += a * b, of mma.m16n8k16 with f16 operands and f32 sums. Fragments as above, two columns a word:
// a[0] is row g, a[1] row g + 8, of columns 2 t and 2 t + 1; a[2] and a[3] the same 8 columns on; b[0]
// rows 2 t on, b[1] 8 further, of column g. Products are exact, and their sum is cut off, not rounded,
// as tensor cores do.
inline float toward_zero(double x) {
  const float rounded = static_cast<float>(x);
  return fabs(rounded) > fabs(x) ? nextafterf(rounded, 0.0f) : rounded;
}
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const int lane = emulated::current & 31, g = lane / 4, t = lane % 4;
  uint32_t rows[4][32], columns[2][32];
  for (int i = 0; i < 4; ++i) {
    emulated::exchange(a[i], [&](auto value, int) { for (int l = 0; l < 32; ++l) rows[i][l] = value(l); return 0; });
  }
  for (int i = 0; i < 2; ++i) {
    emulated::exchange(b[i], [&](auto value, int) { for (int l = 0; l < 32; ++l) columns[i][l] = value(l); return 0; });
  }
  const auto half_of = [](uint32_t word, int k) {
    return static_cast<double>(__half2float(__ushort_as_half(static_cast<unsigned short>(word >> (16 * (k & 1))))));
  };
  for (int r = 0; r < 2; ++r) {
    for (int c = 0; c < 2; ++c) {
      double sum = d[2 * r + c];
      for (int k = 0; k < 16; ++k) {
        sum += half_of(rows[r + 2 * (k / 8)][4 * g + k % 8 / 2], k) *
               half_of(columns[k / 8][4 * (2 * t + c) + k % 8 / 2], k);
      }
      d[2 * r + c] = toward_zero(sum);
    }
  }
}

// ldmatrix.m8n8.x4: lane 8 i + r says where row r of matrix i lies; d[i] is its row g, columns 2 t and
// 2 t + 1, or, transposed, its column g, rows 2 t and 2 t + 1.
inline void ldmatrix_x4(uint32_t (&d)[4], const void* from, bool transposed) {
  const uint16_t* rows[32];
  emulated::exchange(from, [&](auto value, int) {
    for (int l = 0; l < 32; ++l) rows[l] = static_cast<const uint16_t*>(value(l));
    return 0;
  });
  const int lane = emulated::current & 31, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const auto at = [&](int column) { return transposed ? rows[8 * i + column][g] : rows[8 * i + g][column]; };
    d[i] = at(2 * t) | static_cast<uint32_t>(at(2 * t + 1)) << 16;
  }
}
