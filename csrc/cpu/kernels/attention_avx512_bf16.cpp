// bfloat16 products by vdpbf16ps, which adds the two products of two pairs to a float32 lane.
//
// Both products are outer-product micro-kernels whose accumulators live in registers:
//   logits:  vectors along the queries, pairs of memory columns broadcast: the memory needs no
//            packing;
//   output:  vectors along D, memory rows interleaved in pairs once per tile, pairs of weights
//            broadcast.
#include "cpu/kernels/attention.h"
#include "cpu/kernels/select.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <limits>

#define RRD_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"
#include "cpu/kernels/target_begin.inl"

#define RRD_VECTOR_BYTES 64

namespace rrd::cpu {
namespace avx512_bf16 {
#include "cpu/kernels/simd.inl"

#include "cpu/kernels/prefetch.inl"

constexpr int64_t kGroupRows = 12;
constexpr int64_t kMostTileRows = 96;
#include "cpu/kernels/bfloat16_operands.inl"

#include "cpu/kernels/bfloat16_softmax.inl"

constexpr int64_t kOutputQueries = 8;
constexpr int64_t kOutputVectors = 3;

struct Scratch {
  Scratch(void* base, int64_t dim, int64_t) {
    const int64_t columns = matrix_dim(dim), tile = row_tile(columns);
    logits = static_cast<float*>(base);
    rows = reinterpret_cast<uint16_t*>(logits + tile * kRoles * kLanes);
    arranged = rows + tile * columns;
    weights = arranged + tile * columns;
    bytes = reinterpret_cast<char*>(weights + tile * kRoles * kLanes) - static_cast<char*>(base);
  }
  float* logits;       // [row_tile, 2, 16 queries]
  uint16_t* rows;      // [row_tile, columns], if the memory cannot be read in place
  uint16_t* arranged;  // [row_tile / 2, columns, 2]
  uint16_t* weights;   // [groups, 2, 6 row pairs, 16 queries, 2]
  int64_t bytes;
};

int64_t scratch_bytes(int64_t dim, int64_t panels) {
  return Scratch(reinterpret_cast<void*>(kAlignment), dim, panels).bytes;
}

// [rows, columns] -> [rows / 2, columns, 2]
void arrange_rows(const Rows& rows, int64_t columns, uint16_t* to) {
  const auto widened = [](const uint16_t* from) __attribute__((always_inline)) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  };
  for (int64_t row = 0; row < rows.groups * kGroupRows; row += 2) {
    const uint16_t* even = rows.data + row * rows.stride;
    const uint16_t* odd = even + rows.stride;
    for (int64_t d = 0; d < columns; d += 16, to += 32) {
      const __m512i upper = _mm512_slli_epi32(widened(odd + d), 16);
      _mm512_store_si512(to, _mm512_or_si512(widened(even + d), upper));
    }
  }
}

RRD_INLINE __m512i broadcast_pair(const uint16_t* from) {
  int32_t pair;
  __builtin_memcpy(&pair, from, sizeof(pair));
  return _mm512_set1_epi32(pair);
}

// Logits of kGroupRows rows with one panel, [kGroupRows, 2, 16 queries].
RRD_INLINE void logits(const uint16_t* rows, int64_t stride, const uint16_t* queries,
                       int64_t columns, float* out) {
  Vec<float> sum[kGroupRows][kRoles] = {};
  for (int64_t block = 0; block < columns; block += 32, queries += kRoles * kBlockHalves) {
    for (int64_t d = 0; d < 32; d += 2) {
      const __m512i student = _mm512_load_si512(queries + d * kLanes);
      const __m512i teacher = _mm512_load_si512(queries + kBlockHalves + d * kLanes);
#pragma GCC unroll 12
      for (int64_t r = 0; r < kGroupRows; ++r) {
        const __m512i element = broadcast_pair(rows + r * stride + block + d);
        sum[r][kStudent] = add_products(sum[r][kStudent], student, element);
        sum[r][kTeacher] = add_products(sum[r][kTeacher], teacher, element);
      }
    }
  }
#pragma GCC unroll 12
  for (int64_t r = 0; r < kGroupRows; ++r) {
    store<float>(out + r * kRoles * kLanes, sum[r][kStudent]);
    store<float>(out + (r * kRoles + kTeacher) * kLanes, sum[r][kTeacher]);
  }
}

// Logits of a whole tile with one panel.
void tile_logits(const Rows& rows, const uint16_t* queries, int64_t columns, const Scratch& scratch,
                 Prefetch& prefetch) {
  for (int64_t group = 0; group < rows.groups; ++group) {
    prefetch.step();
    logits(rows.data + group * kGroupRows * rows.stride, rows.stride, queries, columns,
           scratch.logits + group * kLogitFloats);
  }
}

// One tile of the memory with one panel: logits, weights and their sums.
template <Sums kSums>
Statistics bounded_tile(const Rows& rows, const uint16_t* queries, int64_t columns,
                        const Scratch& scratch, Prefetch& prefetch) {
  Statistics statistics;
  const Vec<float> none[kRoles] = {};
  for (int64_t group = 0; group < rows.groups; ++group) {
    prefetch.step();
    logits(rows.data + group * kGroupRows * rows.stride, rows.stride, queries, columns,
           scratch.logits);
    softmax_group<true, kSums>(scratch.logits, rows.in_group(group), none,
                               scratch.weights + group * kRoles * kWeightHalves, statistics);
  }
  return statistics;
}

struct Output {
  float* data;
  int64_t panel_floats;
};

// Where the pass adds up outputs: directly in the partials.
Output output_of(const AttentionTask<float>& task, const Scratch&) {
  return {task.partial.output, padded_dim(task.memory.dim) * kRoles * kLanes};
}

// output[q, :] *= factor[q] for one panel
void rescale(float* output, int64_t dim, const Vec<float> (&factor)[kRoles]) {
  const int64_t padded = padded_dim(dim);
  for (int role = 0; role < kRoles; ++role) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float by = factor[role][lane];
      float* row = output + (role * kLanes + lane) * padded;
      for (int64_t d = 0; d < padded; d += kLanes) store<float>(row + d, load(row + d) * by);
    }
  }
}

// output[kOutputQueries, kVectors * 16] += weights^T rows. `weights` [groups, 2, 6, 16, 2] starts
// at the first query, `rows` [groups, 6, columns, 2] at the first column.
template <int64_t kVectors>
RRD_INLINE void add_block(const uint16_t* rows, int64_t columns, const uint16_t* weights,
                          int64_t groups, float* output, int64_t padded) {
  Vec<float> sum[kOutputQueries][kVectors] = {};
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t pair = 0; pair < kGroupRows / 2; ++pair, rows += columns * 2) {
      __m512i value[kVectors];
#pragma GCC unroll 3
      for (int64_t v = 0; v < kVectors; ++v) value[v] = _mm512_load_si512(rows + v * 32);
#pragma GCC unroll 8
      for (int64_t q = 0; q < kOutputQueries; ++q) {
        const __m512i weight =
            broadcast_pair(weights + group * kRoles * kWeightHalves + pair * 32 + q * 2);
#pragma GCC unroll 3
        for (int64_t v = 0; v < kVectors; ++v) {
          sum[q][v] = add_products(sum[q][v], value[v], weight);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int64_t q = 0; q < kOutputQueries; ++q) {
    float* to = output + q * padded;
#pragma GCC unroll 3
    for (int64_t v = 0; v < kVectors; ++v) {
      store<float>(to + v * kLanes, load(to + v * kLanes) + sum[q][v]);
    }
  }
}

// Adds columns from `column` on to one panel's output. The loop over columns is outermost: a strip
// of the tile stays in the first-level cache for all queries.
template <int64_t kVectors>
void add_columns(const Scratch& scratch, int64_t groups, int64_t dim, int64_t column,
                 float* output) {
  const int64_t columns = matrix_dim(dim), padded = padded_dim(dim);
  for (; column + kVectors * kLanes <= padded; column += kVectors * kLanes) {
    for (int role = 0; role < kRoles; ++role) {
      for (int64_t query = 0; query < kLanes; query += kOutputQueries) {
        add_block<kVectors>(scratch.arranged + column * 2, columns,
                            scratch.weights + role * kWeightHalves + query * 2, groups,
                            output + (role * kLanes + query) * padded + column, padded);
      }
    }
  }
  if constexpr (kVectors > 1) {
    if (column < padded) add_columns<kVectors - 1>(scratch, groups, dim, column, output);
  }
}

void add_output(const Scratch& scratch, int64_t groups, int64_t dim, float* output) {
  add_columns<kOutputVectors>(scratch, groups, dim, 0, output);
}

#include "cpu/kernels/bfloat16_pass.inl"
}  // namespace avx512_bf16

// Not a constant, for the same reason as amx_kernel.
AttentionKernel<float> avx512_bf16_kernel() {
  return {"avx512_bf16",
          true,
          avx512_bf16::kLanes,
          avx512_bf16::kBlockPanels,
          avx512_bf16::padded_dim,
          avx512_bf16::panel_bytes,
          avx512_bf16::scratch_bytes,
          kAvx512Float.normalize,
          avx512_bf16::pack,
          avx512_bf16::attend_task,
          kAvx512Float.combine};
}

}  // namespace rrd::cpu

#include "cpu/kernels/target_end.inl"
#endif
