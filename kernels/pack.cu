// Packs blocks of GGUF into the tiles that tiles.cuh reads; runs once, when weights are uploaded.
#include "formats.cuh"

struct PackArgs {
  const uint8_t* blocks;  // [rows, superblocks] blocks as GGUF has them; rows a multiple of 16
  Matrix to;              // the whole tensor; its format says how
  long long first_tile;   // of `to` that these rows become
  int rows;
  int padding;
};
static_assert(sizeof(PackArgs) == PACK_ARGS_BYTES, "differs from kernels/pack.py");

// A four-byte word at any even address.
__device__ inline uint32_t unaligned(const uint8_t* at) {
  const uint16_t* half = reinterpret_cast<const uint16_t*>(at);
  return half[0] | static_cast<uint32_t>(half[1]) << 16;
}

// Where a word of the nibble plane comes from: lane (row, pair) of chunk j holds the words of rows
// row and row + 8 with columns 8 * pair .. 8 * pair + 3, then of both with the four behind.
struct WordPlace {
  int chunk, row, column;
  __device__ explicit WordPlace(int index) {
    const int lane = index % 128 / 4, i = index & 3;
    chunk = index / 128;
    row = (lane >> 2) + 8 * (i & 1);
    column = 8 * (lane & 3) + 4 * (i >> 1);
  }
};

__device__ inline void pack_q4_k(const PackArgs& a, long long tile, int superblock, int index) {
  const int superblocks = a.to.columns / 256;
  const long long to = (a.first_tile + tile) * superblocks + superblock;
  uint8_t* base = const_cast<uint8_t*>(a.to.base);
  const auto block = [&](int row) { return a.blocks + ((tile * 16 + row) * superblocks + superblock) * 144; };
  if (index < 512) {
    const WordPlace at(index);
    const uint8_t* from = block(at.row) + 16 + 32 * at.chunk + at.column;
    *reinterpret_cast<uint32_t*>(base + to * 2048 + 4 * index) = *reinterpret_cast<const uint32_t*>(from);
  } else if (index < 576) {
    const int row = (index - 512) / 4, part = index & 3;
    uint8_t* head = base + a.to.blocks * 128 + to * 256 + 16 * row + 4 * part;
    *reinterpret_cast<uint32_t*>(head) = *reinterpret_cast<const uint32_t*>(block(row) + 4 * part);
  }
}

// The low four (UPPER: the high two) bits of a column's quant.
template <bool UPPER>
__device__ inline uint32_t q6_bits(const uint8_t* block, int column) {
  const int half = column / 128, run = column / 32 % 4, l = column % 32;
  if (UPPER) return block[128 + 32 * half + l] >> (2 * run) & 3;
  return block[64 * half + 32 * (run & 1) + l] >> (run & 2 ? 4 : 0) & 15;
}

__device__ inline void pack_q6_k(const PackArgs& a, long long tile, int superblock, int index) {
  const int superblocks = a.to.columns / 256;
  const long long to = (a.first_tile + tile) * superblocks + superblock;
  uint8_t* base = const_cast<uint8_t*>(a.to.base);
  const auto block = [&](int row) { return a.blocks + ((tile * 16 + row) * superblocks + superblock) * 210; };
  if (index < 512) {
    const WordPlace at(index);
    uint32_t packed = 0;
    for (int b = 0; b < 4; ++b) {
      const int column = 64 * at.chunk + at.column + b;
      packed |= (q6_bits<false>(block(at.row), column) | q6_bits<false>(block(at.row), column + 32) << 4) << (8 * b);
    }
    *reinterpret_cast<uint32_t*>(base + to * 2048 + 4 * index) = packed;
  } else if (index < 768) {
    // Upper bits of a chunk's even and odd group; field i of a byte belongs to the lane's word i.
    const int at = index - 512, chunk = at / 64, lane = at % 64 / 2, odd = at & 1;
    uint32_t packed = 0;
    for (int i = 0; i < 4; ++i) {
      const WordPlace place(128 * chunk + 4 * lane + i);
      for (int b = 0; b < 4; ++b) {
        const int column = 64 * chunk + 32 * odd + place.column + b;
        packed |= q6_bits<true>(block(place.row), column) << (8 * b + 2 * i);
      }
    }
    *reinterpret_cast<uint32_t*>(base + a.to.blocks * 128 + to * 1024 + 4 * at) = packed;
  } else if (index < 832) {
    const int row = (index - 768) / 4, part = index & 3;
    *reinterpret_cast<uint32_t*>(base + a.to.blocks * 192 + to * 256 + 16 * row + 4 * part) = unaligned(block(row) + 192 + 4 * part);
  } else if (index < 848) {
    const int row = index - 832;
    *reinterpret_cast<uint16_t*>(base + a.to.blocks * 208 + to * 32 + 2 * row) = *reinterpret_cast<const uint16_t*>(block(row) + 208);
  }
}

// A block packs one tile of one superblock.
extern "C" __global__ void __launch_bounds__(kThreads, 1) pack(const PackArgs a) {
  const int superblocks = a.to.columns / 256;
  for (long long item = blockIdx.x; item < static_cast<long long>(a.rows / 16) * superblocks; item += gridDim.x) {
    const long long tile = item / superblocks;
    const int superblock = item % superblocks;
    for (int index = threadIdx.x; index < 848; index += kThreads) {
      if (a.to.format == FORMAT_Q4_K_TILED) {
        pack_q4_k(a, tile, superblock, index);
      } else {
        pack_q6_k(a, tile, superblock, index);
      }
    }
  }
}
