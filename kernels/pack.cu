// Packs blocks of GGUF into the tiles that tiles.cuh reads; runs once, when weights are uploaded.
#include "tiles.cuh"

struct PackArgs {
  const uint8_t* blocks;  // [rows, superblocks] blocks as GGUF has them; rows a multiple of 16
  Matrix to;              // the whole tensor; its format says how
  long long first_tile;   // of `to` that these rows become
  int rows;
  int padding;
};
static_assert(sizeof(PackArgs) == PACK_ARGS_BYTES, "differs from kernels/pack.py");

// Where a word of a tile's quants comes from: lane (row, pair) of chunk j holds the words of rows row and
// row + 8 with columns 8 * pair .. 8 * pair + 3, then of both with the four behind.
struct WordPlace {
  int chunk, row, column;  // the column within 32
  __device__ explicit WordPlace(int index) {
    const int lane = index % 128 / 4, i = index & 3;
    chunk = index / 128;
    row = (lane >> 2) + 8 * (i & 1);
    column = 8 * (lane & 3) + 4 * (i >> 1);
  }
};

// The row of word `index` behind a tile's quants.
__device__ inline int head_row(int index) { return index / 8 + 8 * (index & 1); }

// Word `index` of a tile whose 16 rows' blocks `block(row)` gives.
template <class Block>
__device__ inline uint32_t word_q4_k(Block block, int index) {
  if (index < 512) {
    const WordPlace at(index);
    return *reinterpret_cast<const uint32_t*>(block(at.row) + 16 + 32 * at.chunk + at.column);
  }
  const int which = (index - 512) / 2 & 3;
  const uint4 head = *reinterpret_cast<const uint4*>(block(head_row(index - 512)));
  if (which == 3) return head.x;
  uint32_t packed = 0;
  for (int i = 0; i < 4; ++i) {
    const int even = six_bits<true>(head, 2 * i), odd = six_bits<true>(head, 2 * i + 1);
    const int byte = which == 2 ? (even & 15) | (odd & 15) << 4
                                : six_bits<false>(head, 2 * i + which) | (which == 0 ? even : odd) >> 4 << 6;
    packed |= static_cast<uint32_t>(byte) << (8 * i);
  }
  return packed;
}

// A quant, less 32, as six bits of two's complement.
__device__ inline uint32_t quant_q6_k(const uint8_t* block, int column) {
  const int half = column / 128, run = column / 32 % 4, l = column % 32;
  const uint32_t low = block[64 * half + 32 * (run & 1) + l] >> (run & 2 ? 4 : 0) & 15;
  const uint32_t upper = block[128 + 32 * half + l] >> (2 * run) & 3;
  return (low | upper << 4) ^ 32;
}

template <class Block>
__device__ inline uint32_t word_q6_k(Block block, int index) {
  uint32_t packed = 0;
  if (index < 768) {
    // For each four groups of 32 three words: a byte's upper six bits are a quant of that word's group,
    // the lower two are of the fourth group's, its highest in the first word.
    const int first = index / 384 * 4, which = index / 128 % 3;
    const WordPlace at(index);
    for (int b = 0; b < 4; ++b) {
      const int column = 32 * first + at.column + b;
      const uint32_t own = quant_q6_k(block(at.row), column + 32 * which), fourth = quant_q6_k(block(at.row), column + 96);
      packed |= (own << 2 | (fourth >> (4 - 2 * which) & 3)) << (8 * b);
    }
  } else if (index < 832) {
    const uint8_t* const scales = block(head_row(index - 768)) + 192 + 8 * (index / 4 & 1) + (index / 2 & 1);
    for (int b = 0; b < 4; ++b) packed |= static_cast<uint32_t>(scales[2 * b]) << (8 * b);
  } else {
    const int row = 2 * (index - 832);  // two d
    for (int r = 0; r < 2; ++r) {
      packed |= static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(block(row + r) + 208)) << (16 * r);
    }
  }
  return packed;
}

// A block packs one tile.
extern "C" __global__ void __launch_bounds__(kThreads, 1) pack(const PackArgs a) {
  const int superblocks = a.to.columns / 256;
  const bool q4_k = a.to.format == FORMAT_Q4_K_TILED;
  const int words = tile_bytes(a.to.format) / 4, block_bytes = q4_k ? 144 : 210;
  for (long long item = blockIdx.x; item < static_cast<long long>(a.rows / kTileRows) * superblocks; item += gridDim.x) {
    const long long tile = item / superblocks;
    const int superblock = item % superblocks;
    const auto block = [&](int row) {
      return a.blocks + ((tile * kTileRows + row) * superblocks + superblock) * block_bytes;
    };
    uint32_t* to = reinterpret_cast<uint32_t*>(const_cast<uint8_t*>(a.to.base) + 4LL * words * (a.first_tile * superblocks + item));
    for (int index = threadIdx.x; index < words; index += kThreads) {
      to[index] = q4_k ? word_q4_k(block, index) : word_q6_k(block, index);
    }
  }
}
