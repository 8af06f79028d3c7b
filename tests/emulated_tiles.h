// The matrix unit's instructions in plain C++, for machines that have none:
// csrc/cpu/kernels/attention_amx.cpp then runs, and AddressSanitizer sees what its tiles read and
// write, which it does not of the unit. Forced into every file by RRD_EMULATE_TILES=1 (setup.py).
// Tiles are 16 rows of 64 bytes, as there.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace rrd_emulated {

constexpr int kRows = 16, kBytes = 64;
inline thread_local char tiles[8][kRows][kBytes];

inline void load(int tile, const void* from, int64_t stride) {
  for (int row = 0; row < kRows; ++row) {
    std::memcpy(tiles[tile][row], static_cast<const char*>(from) + row * stride, kBytes);
  }
}

inline void store(int tile, void* to, int64_t stride) {
  for (int row = 0; row < kRows; ++row) {
    std::memcpy(static_cast<char*>(to) + row * stride, tiles[tile][row], kBytes);
  }
}

inline float widened(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// sum[m, n] += a[m, 2k] b[k, 2n] + a[m, 2k + 1] b[k, 2n + 1]
inline void add_products(int sum, int a, int b) {
  float total[kRows][16];
  uint16_t first[kRows][32], second[kRows][32];
  std::memcpy(total, tiles[sum], sizeof(total));
  std::memcpy(first, tiles[a], sizeof(first));
  std::memcpy(second, tiles[b], sizeof(second));
  for (int m = 0; m < kRows; ++m) {
    for (int k = 0; k < 32; ++k) {
      const float weight = widened(first[m][k]);
      for (int n = 0; n < 16; ++n) total[m][n] += weight * widened(second[k / 2][2 * n + k % 2]);
    }
  }
  std::memcpy(tiles[sum], total, sizeof(total));
}

}  // namespace rrd_emulated

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) static_cast<void>(config)
#define _tile_release() static_cast<void>(0)
#define _tile_loadd(tile, from, stride) rrd_emulated::load(tile, from, stride)
#define _tile_stored(tile, to, stride) rrd_emulated::store(tile, to, stride)
#define _tile_zero(tile) \
  std::memset(rrd_emulated::tiles[tile], 0, sizeof(rrd_emulated::tiles[tile]))
#define _tile_dpbf16ps(sum, a, b) rrd_emulated::add_products(sum, a, b)
