// bfloat16 products on the matrix unit (AMX), float32 logits and sums.
//
// With tiles of 16 rows by 64 bytes, both products take the memory as their first operand:
//   logits^T[k, q]  = M[k, d] Q^T[d, q]      M read in place, Q^T packed once per call;
//   output^T[d, q] += M^T[d, k] P^T[k, q]    M^T packed once per tile, P^T written by the softmax.
// Lanes are queries throughout, so that sums and maxima need no reduction across a vector.
#include "cpu/kernels/attention.h"
#include "cpu/kernels/select.h"

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>

#include <limits>

#define RRD_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,amx-tile,amx-bf16"
#include "cpu/kernels/target_begin.inl"

#define RRD_VECTOR_BYTES 64

namespace rrd::cpu {
namespace amx {
#include "cpu/kernels/simd.inl"

#include "cpu/kernels/prefetch.inl"

constexpr int64_t kGroupRows = 32;
constexpr int64_t kMostTileRows = 512;
#include "cpu/kernels/bfloat16_operands.inl"

#include "cpu/kernels/bfloat16_softmax.inl"

#include "cpu/kernels/amx_layout.inl"

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

constexpr int64_t kLogitRowBytes = kRoles * kLanes * int64_t(sizeof(float));

RRD_INLINE void load_operands(const uint16_t* rows, int64_t stride, const uint16_t* queries) {
  const int64_t bytes = stride * int64_t(sizeof(uint16_t));
  _tile_loadd(4, rows, bytes);
  _tile_loadd(5, rows + 16 * stride, bytes);
  _tile_loadd(6, queries, 64);
  _tile_loadd(7, queries + kTileHalves, 64);
}

// Logits of 32 rows with one panel, [32, 2, 16], left in tiles 0 to 3 for store_logits. The
// previous group's logits are stored between the first products: a store waits for its tile, and
// four stores in a row would leave the matrix unit idle.
RRD_INLINE void logits(const uint16_t* rows, int64_t stride, const uint16_t* queries,
                       int64_t columns, float* previous) {
  load_operands(rows, stride, queries);
  _tile_stored(0, previous, kLogitRowBytes);
  _tile_zero(0);
  _tile_dpbf16ps(0, 4, 6);
  _tile_stored(1, previous + kLanes, kLogitRowBytes);
  _tile_zero(1);
  _tile_dpbf16ps(1, 4, 7);
  _tile_stored(2, previous + 16 * kRoles * kLanes, kLogitRowBytes);
  _tile_zero(2);
  _tile_dpbf16ps(2, 5, 6);
  _tile_stored(3, previous + 16 * kRoles * kLanes + kLanes, kLogitRowBytes);
  _tile_zero(3);
  _tile_dpbf16ps(3, 5, 7);
  for (int64_t d = 32; d < columns; d += 32) {
    load_operands(rows + d, stride, queries + d * kRoles * kLanes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

RRD_INLINE void store_logits(float* out) {
  _tile_stored(0, out, kLogitRowBytes);
  _tile_stored(1, out + kLanes, kLogitRowBytes);
  _tile_stored(2, out + 16 * kRoles * kLanes, kLogitRowBytes);
  _tile_stored(3, out + 16 * kRoles * kLanes + kLanes, kLogitRowBytes);
}

// output^T += M^T P^T for one panel.
void add_output(const Scratch& scratch, int64_t groups, int64_t dim, float* output) {
  const int64_t columns = matrix_dim(dim);
  const int64_t group_stride = columns * kGroupRows;
  for (int64_t column = 0; column < columns; column += 32, output += 4 * kTileFloats) {
    _tile_loadd(0, output, 64);
    _tile_loadd(1, output + kTileFloats, 64);
    _tile_loadd(2, output + 2 * kTileFloats, 64);
    _tile_loadd(3, output + 3 * kTileFloats, 64);
    for (int64_t group = 0; group < groups; ++group) {
      const uint16_t* rows = scratch.arranged + group * group_stride + column * kGroupRows;
      const uint16_t* weights = scratch.weights + group * kRoles * kTileHalves;
      _tile_loadd(4, rows, 64);
      _tile_loadd(5, rows + kTileHalves, 64);
      _tile_loadd(6, weights, 64);
      _tile_loadd(7, weights + kTileHalves, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, output, 64);
    _tile_stored(1, output + kTileFloats, 64);
    _tile_stored(2, output + 2 * kTileFloats, 64);
    _tile_stored(3, output + 3 * kTileFloats, 64);
  }
}

// Logits of a whole memory tile with one panel.
void tile_logits(const Rows& rows, const uint16_t* queries, int64_t columns, const Scratch& scratch,
                 Prefetch& prefetch) {
  for (int64_t group = 0; group < rows.groups; ++group) {
    // The first group has no previous logits: what it stores here is overwritten by its own.
    logits(rows.data + group * kGroupRows * rows.stride, rows.stride, queries, columns,
           scratch.logits + (group > 0 ? group - 1 : 0) * kLogitFloats);
    prefetch.step();
  }
  store_logits(scratch.logits + (rows.groups - 1) * kLogitFloats);
}

// One tile of the memory with one panel: logits, weights and their sums.
template <Sums kSums>
Statistics bounded_tile(const Rows& rows, const uint16_t* queries, int64_t columns,
                        const Scratch& scratch, Prefetch& prefetch) {
  Statistics statistics;
  const Vec<float> none[kRoles] = {};
  const auto softmax = [&](int64_t group) __attribute__((always_inline)) {
    softmax_group<true, kSums>(scratch.logits + group % 2 * kLogitFloats, rows.in_group(group),
                               none, scratch.weights + group * kRoles * kTileHalves, statistics);
  };
  for (int64_t group = 0; group < rows.groups; ++group) {
    logits(rows.data + group * kGroupRows * rows.stride, rows.stride, queries, columns,
           scratch.logits + (group + 1) % 2 * kLogitFloats);
    prefetch.step();
    if (group > 0) softmax(group - 1);
  }
  store_logits(scratch.logits + (rows.groups - 1) % 2 * kLogitFloats);
  softmax(rows.groups - 1);
  return statistics;
}

// output^T[:, q] *= factor[q] for one panel
void rescale(float* output, int64_t dim, const Vec<float> (&factor)[kRoles]) {
  for (int64_t tile = 0; tile < matrix_dim(dim) / 16; ++tile) {
    for (int role = 0; role < kRoles; ++role, output += kTileFloats) {
      for (int64_t d = 0; d < 16; ++d) {
        store<float>(output + d * kLanes, load(output + d * kLanes) * factor[role]);
      }
    }
  }
}

struct Output {
  float* data;
  int64_t panel_floats;
};

// Where the pass adds up outputs: in scratch, transposed; attend() untransposes them at the end.
Output output_of(const AttentionTask<float>& task, const Scratch& scratch) {
  return {scratch.output, matrix_dim(task.memory.dim) * kRoles * kLanes};
}

#include "cpu/kernels/bfloat16_pass.inl"

void attend(const AttentionTask<float>& task) {
  const TileConfig config;
  _tile_loadconfig(&config);
  attend_task(task);
  _tile_release();
  if (task.partial.output == nullptr) return;
  const int64_t dim = task.memory.dim;
  const Output outputs = output_of(task, Scratch(task.scratch, dim, task.panels));
  for (int64_t panel = 0; panel < task.panels; ++panel) {
    untranspose(outputs.data + panel * outputs.panel_floats, dim,
                task.partial.output + panel * kRoles * kLanes * padded_dim(dim));
  }
}

}  // namespace amx

// Not a constant: its initialisation would run this file's instructions on any machine. The work
// per sample, normalize and combine, is that of the float32 products.
AttentionKernel<float> amx_kernel() {
  return {"amx_bf16",          true,
          amx::kLanes,         amx::kBlockPanels,
          amx::padded_dim,     amx::panel_bytes,
          amx::scratch_bytes,  kAvx512Float.normalize,
          amx::pack,           amx::attend,
          kAvx512Float.combine};
}

}  // namespace rrd::cpu

#include "cpu/kernels/target_end.inl"
#endif
