// Tiles in flight: a block's warps ask for tiles long before they multiply them.
//
// A block computes items: sixteen results each, out of `parts` tiles (those of a row of tiles; of
// gate's and of up's; of all experts'). It takes `batch` items at a time, every gridDim.x-th, and
// deals their tiles out to its warps, which copy them into shared memory by cp.async, up to DEPTH
// ahead. The tiles' products meet in shared memory, behind one barrier for a batch.
//
// The first tiles are asked for before the predecessor has ended (gate_up's behind it, experts.cu); the
// block is small enough for two successive kernels to share a multiprocessor, else that would have to wait
// for its end.
#pragma once

#include "tiles.cuh"

// Tiles that a warp can hold: multiprocessors have 100 KB of shared memory, 164 KB or 228 KB.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
constexpr int kDeepest = 1;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kDeepest = 2;
#else
constexpr int kDeepest = 3;
#endif
// Blocks that a multiprocessor should hold at a time, which bounds their registers: two, of successive
// kernels, where these overlap and have the room.
constexpr int kTiledResident = kDeepest == 3 ? 2 : 1;

// Divides small numbers by one that is known once: exactly, as long as their product is below 2^32.
struct Divisor {
  int by;
  unsigned inverse;
  __device__ explicit Divisor(int by) : by(by), inverse(0xffffffffu / by + 1) {}
  __device__ int of(int n) const { return by == 1 ? n : static_cast<int>(__umulhi(n, inverse)); }
};

// Neighbouring lanes that finish a row: a warp takes some five cycles for an instruction, whatever it
// does, so the sums are spread over as many lanes as a batch leaves.
constexpr int kRowLanes = 4;
__device__ inline int row_lane() { return threadIdx.x % kRowLanes; }

// What a block computes (above).
struct Items {
  int count;  // in all
  int parts;  // tiles of each
  int batch;  // that a block takes at a time
};

// A tile to multiply: where it lies, and which 256 columns of the input it meets.
struct Tile {
  const uint8_t* at;
  int format, superblock;
};

// Tile `superblock` of a row of tiles, counted over all experts.
__device__ inline Tile tile_of(const Matrix& m, int row, int superblock) {
  const int index = row * (m.columns / 256) + superblock;
  return {m.base + static_cast<long long>(index) * tile_bytes(m.format), m.format, superblock};
}

template <int WANTED>
class TileStream {
  static constexpr int DEPTH = WANTED < kDeepest ? WANTED : kDeepest;

 public:
  // Shared memory: slots of `slot_bytes` for tiles, then products; kernels/launch.py computes the
  // same.
  __device__ TileStream(const Items& items, uint8_t* memory, int slot_bytes)
      : items_(items), slot_bytes_(slot_bytes), slots_(memory),
        by_parts_(items.parts), ahead_{static_cast<int>(blockIdx.x), whole_warp_id()} {
    products_ = first_products();
  }

  // Where the shared memory is free again.
  __device__ uint8_t* behind() const { return reinterpret_cast<uint8_t*>(first_products() + 2 * tiles() * kTileRows); }

  // Asks for the first tiles. `source(item, part)` says which.
  template <class Source>
  __device__ void begin(Source source) {
#pragma unroll 1
    for (int slot = 0; slot < DEPTH; ++slot) ask(slot, source);
  }

  // All items: `finish(item, row, products)` receives, in kRowLanes lanes for each row, the products of
  // the item's tiles, kTileRows apart; what `prepare(item, row)` read before is its last argument. The
  // last warp, which has the fewest tiles, does `besides()` before any of it.
  template <class Source, class Besides, class Prepare, class Finish>
  __device__ void run(const FixedInput& in, Source source, Besides besides, Prepare prepare, Finish finish) {
    int slot = 0;
#pragma unroll 1
    for (int first = blockIdx.x; first < items_.count; first += items_.batch * gridDim.x) {
      const int of = threadIdx.x / (kTileRows * kRowLanes), row = threadIdx.x / kRowLanes % kTileRows;
      const int item = first + of * gridDim.x;
      const bool mine = of < items_.batch && item < items_.count;
      const int end = end_of(first);
      const float prepared = mine ? prepare(item, row) : 0.0f;
#pragma unroll 1
      for (Place at = {first, whole_warp_id()}; at.tile < end; at.tile += kTiledWarps) {
        await_copies<DEPTH - 1>();
        __syncwarp();  // the other lanes' have come, too
        const Tile tile = source(item_of(at), part_of(at));
        tile_product(slot_at(slot), tile.format, in, tile.superblock, products_ + at.tile * kTileRows);
        __syncwarp();  // all lanes are done with it
        ask(slot, source);
        slot = slot + 1 < DEPTH ? slot + 1 : 0;
      }
      if (first == blockIdx.x && whole_warp_id() == kTiledWarps - 1) besides();
      __syncthreads();
      if (mine) finish(item, row, products_ + of * items_.parts * kTileRows + row, prepared);
      // The next batch's products go to the other half: these are still being read.
      products_ = products_ == first_products() ? products_ + tiles() * kTileRows : first_products();
    }
  }

 private:
  __device__ int tiles() const { return items_.batch * items_.parts; }  // of a batch

  __device__ uint8_t* slot_at(int slot) const { return slots_ + (slot * kTiledWarps + whole_warp_id()) * slot_bytes_; }
  __device__ float* first_products() const {
    const bool single = items_.count <= items_.batch * static_cast<int>(gridDim.x);  // no further batch to ask for
    return reinterpret_cast<float*>(slots_ + (single ? min(tiles(), DEPTH * kTiledWarps) : DEPTH * kTiledWarps) * slot_bytes_);
  }

  // A tile of the batch that begins with item `first`.
  struct Place { int first, tile; };

  // How many tiles the batch that begins with item `first` has: fewer than `tiles()` where items end.
  __device__ int end_of(int first) const {
    int end = 0;
#pragma unroll 1
    for (int item = first; item < items_.count && end < tiles(); item += gridDim.x) end += items_.parts;
    return end;
  }

  __device__ int of(const Place& at) const { return by_parts_.of(at.tile); }
  __device__ int item_of(const Place& at) const { return at.first + of(at) * static_cast<int>(gridDim.x); }
  __device__ int part_of(const Place& at) const { return at.tile - of(at) * items_.parts; }

  // A commit for each call, whether there is a tile or not: `await_copies` counts them.
  template <class Source>
  __device__ void ask(int slot, Source source) {
    if (ahead_.tile < tiles() && item_of(ahead_) < items_.count) {
      const Tile tile = source(item_of(ahead_), part_of(ahead_));
      const uint8_t* const from = tile.at + 16 * lane_id();
      uint8_t* const to = slot_at(slot) + 16 * lane_id();
      constexpr int kStep = 16 * 32, kAll = kTileQ4_K / kStep * kStep;  // what a tile has at least
#pragma unroll
      for (int at = 0; at < kAll; at += kStep) copy_async(to + at, from + at);
      const int left = tile_bytes(tile.format) - 16 * lane_id();
#pragma unroll 1
      for (int at = kAll; at < left; at += kStep) copy_async(to + at, from + at);
      ahead_.tile += kTiledWarps;
      if (ahead_.tile >= tiles()) ahead_ = {ahead_.first + items_.batch * static_cast<int>(gridDim.x), whole_warp_id()};
    }
    commit_copies();
  }

  Items items_;
  int slot_bytes_;
  uint8_t* slots_;
  float* products_;  // of [2, tiles, kTileRows] the half in use
  Divisor by_parts_;
  Place ahead_;      // the next to ask for
};

// For items of which nothing has to be read before.
struct NothingBefore {
  template <class... Where>
  __device__ float operator()(Where...) const { return 0; }
};

// What a row's lanes add its products up to, each of them: N sums of `count` tiles' each.
template <int N>
__device__ inline void sum_products(const float* products, int count, float (&sum)[N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) sum[n] = 0;
#pragma unroll 2
  for (int part = row_lane(); part < count; part += kRowLanes) {
#pragma unroll
    for (int n = 0; n < N; ++n) sum[n] += products[(n * count + part) * kTileRows];
  }
#pragma unroll
  for (int offset = 1; offset < kRowLanes; offset *= 2) {
#pragma unroll
    for (int n = 0; n < N; ++n) sum[n] += __shfl_xor_sync(kAllLanes, sum[n], offset);
  }
}
__device__ inline float sum_products(const float* products, int count) {
  float sum[1];
  sum_products(products, count, sum);
  return sum[0];
}
