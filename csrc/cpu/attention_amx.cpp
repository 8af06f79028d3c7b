// bfloat16 products on the matrix unit (AMX), float32 logits and sums.
//
// With tiles of 16 rows by 64 bytes, both products take the memory as their first operand:
//   logits^T[k, q]  = M[k, d] Q^T[d, q]      M as it lies, Q^T packed once per call;
//   output^T[d, q] += M^T[d, k] P^T[k, q]    M^T packed once per tile, P^T written by the softmax.
// Lanes are queries throughout, so that sums and maxima need no reduction across a vector.
#include "cpu/attention.h"
#include "cpu/kernels.h"

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>

#include <limits>

#define RRD_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,amx-tile,amx-bf16"
#include "cpu/target_begin.inl"

#define RRD_VECTOR_BYTES 64

namespace rrd::cpu {
namespace amx {
#include "cpu/simd.inl"

#include "cpu/prefetch.inl"

#include "cpu/amx_layout.inl"

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The logits of 32 rows with one panel, [32, 2, 16], left in tiles 0 to 3 until store_logits.
// The previous group's logits leave those tiles while the first products are under way: a store
// waits for its tile, and four in a row would leave the matrix unit idle.
constexpr int64_t kLogitRowBytes = kRoles * kLanes * int64_t(sizeof(float));

RRD_INLINE void load_operands(const uint16_t* rows, int64_t stride, const uint16_t* queries) {
  const int64_t bytes = stride * int64_t(sizeof(uint16_t));
  _tile_loadd(4, rows, bytes);
  _tile_loadd(5, rows + 16 * stride, bytes);
  _tile_loadd(6, queries, 64);
  _tile_loadd(7, queries + kTileHalves, 64);
}

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

// 2^x to 7.5e-5, twenty times finer than the bfloat16 that it is rounded to: the fraction's
// polynomial is minimax (Remez) on [0, 1). Any x, NaN and infinities included.
RRD_INLINE Vec<float> exp2_coarse(Vec<float> x) {
  constexpr int kRoundDown = 1;
  const Vec<float> f =
      reinterpret_cast<Vec<float>>(_mm512_reduce_ps(reinterpret_cast<__m512>(x), kRoundDown));
  const Vec<float> power = ((0.07802452f * f + 0.22606716f) * f + 0.69583356f) * f + 0.9999252f;
  return reinterpret_cast<Vec<float>>(
      _mm512_scalef_ps(reinterpret_cast<__m512>(power), reinterpret_cast<__m512>(x)));
}

// Two rows of 16 probabilities -> 16 pairs of bfloat16.
RRD_INLINE __m512i interleave(Vec<float> even, Vec<float> odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512bh both =
      _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(odd), reinterpret_cast<__m512>(even));
  return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(both));
}

// sum[q] + pairs[q, 0] + pairs[q, 1]
RRD_INLINE Vec<float> add_pairs(Vec<float> sum, __m512i pairs) {
  constexpr int32_t kTwoOnes = 0x3f803f80;
  return reinterpret_cast<Vec<float>>(
      _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(pairs),
                       reinterpret_cast<__m512bh>(_mm512_set1_epi32(kTwoOnes))));
}

struct Statistics {
  Vec<float> sum[kRoles] = {};
  Vec<float> cross = {};
};

// Probabilities of one group of rows with one panel, of which the first `count` rows exist.
template <bool kBounded, bool kNeedGrad>
RRD_INLINE void softmax_group(const float* logit, int64_t count,
                              const Vec<float> (&maximum)[kRoles], uint16_t* out,
                              Statistics& statistics) {
  const auto one = [&](int64_t row, Vec<float>(&p)[kRoles]) __attribute__((always_inline)) {
    const Vec<float> student = load(logit + row * kRoles * kLanes);
    const Vec<float> teacher = load(logit + (row * kRoles + kTeacher) * kLanes);
    p[kStudent] = exp2_coarse(kBounded ? student : student - maximum[kStudent]);
    p[kTeacher] = exp2_coarse(kBounded ? teacher : teacher - maximum[kTeacher]);
    if constexpr (!kNeedGrad) {
      statistics.sum[kStudent] += p[kStudent];
      statistics.sum[kTeacher] += p[kTeacher];
      statistics.cross += p[kTeacher] * student;
    }
  };
  const auto pair = [&](int64_t row, bool has_odd) __attribute__((always_inline)) {
    Vec<float> even[kRoles], odd[kRoles] = {};
    one(row, even);
    if (has_odd) one(row + 1, odd);
    if constexpr (kNeedGrad) {
      for (int role = 0; role < kRoles; ++role) {
        // The sum is of the weights as rounded, so that what they multiply adds up to an average.
        const __m512i weights = interleave(even[role], odd[role]);
        statistics.sum[role] = add_pairs(statistics.sum[role], weights);
        _mm512_store_si512(out + role * kTileHalves + row * kLanes, weights);
      }
    }
  };
  if (count == kGroupRows) {
#pragma GCC unroll 2
    for (int64_t row = 0; row < kGroupRows; row += 2) pair(row, true);
    return;
  }
  int64_t row = 0;
  for (; row < count; row += 2) pair(row, row + 1 < count);
  if constexpr (kNeedGrad) {
    for (; row < kGroupRows; row += 2) {
      _mm512_store_si512(out + row * kLanes, _mm512_setzero_si512());
      _mm512_store_si512(out + kTileHalves + row * kLanes, _mm512_setzero_si512());
    }
  }
}

// output^T += M^T P^T for one panel.
void add_output(const uint16_t* transposed, const uint16_t* probabilities, int64_t groups,
                int64_t columns, float* output) {
  const int64_t group_stride = columns * kGroupRows;
  for (int64_t column = 0; column < columns; column += 32, output += 4 * kTileFloats) {
    _tile_loadd(0, output, 64);
    _tile_loadd(1, output + kTileFloats, 64);
    _tile_loadd(2, output + 2 * kTileFloats, 64);
    _tile_loadd(3, output + 3 * kTileFloats, 64);
    for (int64_t group = 0; group < groups; ++group) {
      const uint16_t* rows = transposed + group * group_stride + column * kGroupRows;
      const uint16_t* weights = probabilities + group * kRoles * kTileHalves;
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

// One tile of the memory with one panel: logits, probabilities and their sums.
template <bool kNeedGrad>
Statistics bounded_tile(const Rows& rows, const uint16_t* queries, int64_t columns,
                        const Scratch& scratch, Prefetch& prefetch) {
  Statistics statistics;
  const Vec<float> none[kRoles] = {};
  const auto softmax = [&](int64_t group) __attribute__((always_inline)) {
    const int64_t left = rows.count - group * kGroupRows;
    softmax_group<true, kNeedGrad>(
        scratch.logits + group % 2 * kLogitFloats, left < kGroupRows ? left : kGroupRows, none,
        scratch.probabilities + group * kRoles * kTileHalves, statistics);
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

// The same relative to the running maximum, which it raises; `factor` is what earlier sums and
// outputs are to be multiplied with.
template <bool kNeedGrad>
Statistics online_tile(const Rows& rows, const uint16_t* queries, int64_t columns,
                       const Scratch& scratch, Prefetch& prefetch, float* maximum,
                       Vec<float> (&factor)[kRoles]) {
  Vec<float> highest[kRoles] = {load(maximum), load(maximum + kLanes)};
  for (int64_t group = 0; group < rows.groups; ++group) {
    // The first group's previous logits are none: it writes where it will be written itself.
    logits(rows.data + group * kGroupRows * rows.stride, rows.stride, queries, columns,
           scratch.logits + (group > 0 ? group - 1 : 0) * kLogitFloats);
    prefetch.step();
  }
  store_logits(scratch.logits + (rows.groups - 1) * kLogitFloats);
  for (int64_t row = 0; row < rows.count; ++row) {
    for (int role = 0; role < kRoles; ++role) {
      const Vec<float> value = load(scratch.logits + (row * kRoles + role) * kLanes);
      highest[role] = value > highest[role] ? value : highest[role];
    }
  }
  for (int role = 0; role < kRoles; ++role) {
    factor[role] = exp2_nonpositive<float>(load(maximum + role * kLanes) - highest[role]);
    store<float>(maximum + role * kLanes, highest[role]);
  }
  Statistics statistics;
  for (int64_t group = 0; group < rows.groups; ++group) {
    const int64_t left = rows.count - group * kGroupRows;
    softmax_group<false, kNeedGrad>(
        scratch.logits + group * kLogitFloats, left < kGroupRows ? left : kGroupRows, highest,
        scratch.probabilities + group * kRoles * kTileHalves, statistics);
  }
  return statistics;
}

// output^T[:, q] *= factor[q] for one panel
void rescale(float* output, int64_t columns, const Vec<float> (&factor)[kRoles]) {
  for (int64_t tile = 0; tile < columns / 16; ++tile) {
    for (int role = 0; role < kRoles; ++role, output += kTileFloats) {
      for (int64_t d = 0; d < 16; ++d) {
        store<float>(output + d * kLanes, load(output + d * kLanes) * factor[role]);
      }
    }
  }
}

template <typename T>
RRD_INLINE void fill(T* to, int64_t count, T value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

RRD_INLINE void multiply_add(float* to, Vec<float> factor, Vec<float> term) {
  store<float>(to, load(to) * factor + term);
}

template <bool kBounded, bool kNeedGrad>
void attend_rows(const AttentionTask<float>& task) {
  const MemoryView& memory = task.memory;
  const int64_t columns = matrix_dim(memory.dim);
  const int64_t queries = task.panels * kRoles * kLanes;
  const int64_t panel_floats = columns * kRoles * kLanes;
  const Scratch scratch(task.scratch, memory.dim, task.panels);
  const Partial<float>& partial = task.partial;
  fill(partial.sum, queries, 0.f);
  fill(partial.maximum, queries, kBounded ? 0.f : -std::numeric_limits<float>::max());
  if (kNeedGrad) fill(scratch.output, task.panels * panel_floats, 0.f);
  if (!kNeedGrad) fill(partial.cross, task.panels * kLanes, 0.f);

  const int64_t tile = row_tile(columns);
  for (int64_t row = task.row_begin; row < task.row_end; row += tile) {
    const int64_t left = task.row_end - row;
    const Rows rows = load_rows(memory, row, left < tile ? left : tile, scratch.rows);
    if (kNeedGrad) transpose_rows(rows, columns, scratch.transposed);
    Prefetch prefetch(memory, row + rows.count, task.row_end, tile, task.panels * rows.groups);
    for (int64_t panel = 0; panel < task.panels; ++panel) {
      const uint16_t* packed = static_cast<const uint16_t*>(task.queries) + panel * panel_floats;
      float* output = scratch.output + panel * panel_floats;
      float* sum = partial.sum + panel * kRoles * kLanes;
      Vec<float> factor[kRoles] = {broadcast(1.f), broadcast(1.f)};
      Statistics statistics;
      if constexpr (kBounded) {
        statistics = bounded_tile<kNeedGrad>(rows, packed, columns, scratch, prefetch);
      } else {
        statistics = online_tile<kNeedGrad>(rows, packed, columns, scratch, prefetch,
                                            partial.maximum + panel * kRoles * kLanes, factor);
        if (kNeedGrad) rescale(output, columns, factor);
      }
      multiply_add(sum, factor[kStudent], statistics.sum[kStudent]);
      multiply_add(sum + kLanes, factor[kTeacher], statistics.sum[kTeacher]);
      if constexpr (kNeedGrad) {
        add_output(scratch.transposed, scratch.probabilities, rows.groups, columns, output);
      } else {
        multiply_add(partial.cross + panel * kLanes, factor[kTeacher], statistics.cross);
      }
    }
  }
  if constexpr (kNeedGrad) {
    for (int64_t panel = 0; panel < task.panels; ++panel) {
      untranspose(scratch.output + panel * panel_floats, memory.dim,
                  partial.output + panel * kRoles * kLanes * padded_dim(memory.dim));
    }
  }
}

void attend(const AttentionTask<float>& task) {
  const TileConfig config;
  _tile_loadconfig(&config);
  const bool need_grad = task.partial.output != nullptr;
  if (task.bounded) {
    need_grad ? attend_rows<true, true>(task) : attend_rows<true, false>(task);
  } else {
    need_grad ? attend_rows<false, true>(task) : attend_rows<false, false>(task);
  }
  _tile_release();
}

}  // namespace amx

// Not a constant: its initialisation would run this file's instructions on any machine. What is
// done per sample is the same as with float32 products.
AttentionKernel<float> amx_kernel() {
  return {"amx_bf16",          true,
          amx::kLanes,         amx::kBlockPanels,
          amx::padded_dim,     amx::panel_bytes,
          amx::scratch_bytes,  kAvx512Float.normalize,
          amx::pack,           amx::attend,
          kAvx512Float.combine};
}

}  // namespace rrd::cpu

#include "cpu/target_end.inl"
#endif
