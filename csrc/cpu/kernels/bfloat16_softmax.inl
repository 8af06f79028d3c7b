// Turns logits into bfloat16 weights and their sums. Included after bfloat16_operands.inl.

constexpr int64_t kLogitFloats = kGroupRows * kRoles * kLanes;
// One role's weights for one group and one panel.
constexpr int64_t kWeightHalves = kGroupRows * kLanes;

// 2^x for any x, NaN and infinities included. Relative error 7.5e-5, twenty times finer than the
// rounding to bfloat16. The polynomial of the fraction is minimax (Remez) on [0, 1).
RRD_INLINE Vec<float> exp2_coarse(Vec<float> x) {
  constexpr int kRoundDown = 1;
  const Vec<float> f =
      reinterpret_cast<Vec<float>>(_mm512_reduce_ps(reinterpret_cast<__m512>(x), kRoundDown));
  const Vec<float> power = ((0.07802452f * f + 0.22606716f) * f + 0.69583356f) * f + 0.9999252f;
  return reinterpret_cast<Vec<float>>(
      _mm512_scalef_ps(reinterpret_cast<__m512>(power), reinterpret_cast<__m512>(x)));
}

// Two rows of 16 weights -> 16 pairs of bfloat16.
RRD_INLINE __m512i interleave(Vec<float> even, Vec<float> odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512bh both =
      _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(odd), reinterpret_cast<__m512>(even));
  return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(both));
}

// sum[q] + a[q, 0] b[q, 0] + a[q, 1] b[q, 1]
RRD_INLINE Vec<float> add_products(Vec<float> sum, __m512i a, __m512i b) {
  return reinterpret_cast<Vec<float>>(_mm512_dpbf16_ps(
      reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
}

RRD_INLINE Vec<float> add_pairs(Vec<float> sum, __m512i pairs) {
  constexpr int32_t kTwoOnes = 0x3f803f80;
  return add_products(sum, pairs, _mm512_set1_epi32(kTwoOnes));
}

struct Statistics {
  Vec<float> sum[kRoles] = {};
  Vec<float> cross = {};
};

// Logits [kGroupRows, 2, 16 queries] -> weights [2, kGroupRows / 2, 16 queries, 2], for the first
// `count` rows of the group; the others get zero. A pair of rows is one 32-bit element.
template <bool kBounded, Sums kSums>
RRD_INLINE void softmax_group(const float* logit, int64_t count, const Vec<float> (&shift)[kRoles],
                              uint16_t* out, Statistics& statistics) {
  const auto one = [&](int64_t row, Vec<float>(&p)[kRoles]) __attribute__((always_inline)) {
    const Vec<float> student = load(logit + row * kRoles * kLanes);
    const Vec<float> teacher = load(logit + (row * kRoles + kTeacher) * kLanes);
    p[kStudent] = exp2_coarse(kBounded ? student : student - shift[kStudent]);
    p[kTeacher] = exp2_coarse(kBounded ? teacher : teacher - shift[kTeacher]);
    if constexpr (kSums != Sums::kRows) {
      statistics.sum[kStudent] += p[kStudent];
      statistics.sum[kTeacher] += p[kTeacher];
      statistics.cross += p[kTeacher] * (kSums == Sums::kCross ? student : student - teacher);
    }
  };
  const auto pair = [&](int64_t row, bool has_odd) __attribute__((always_inline)) {
    Vec<float> even[kRoles], odd[kRoles] = {};
    one(row, even);
    if (has_odd) one(row + 1, odd);
    if constexpr (kSums == Sums::kRows) {
      for (int role = 0; role < kRoles; ++role) {
        // Sums the rounded weights: they multiply the rows, so the output is a true average.
        const __m512i weights = interleave(even[role], odd[role]);
        statistics.sum[role] = add_pairs(statistics.sum[role], weights);
        _mm512_store_si512(out + role * kWeightHalves + row * kLanes, weights);
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
  if constexpr (kSums == Sums::kRows) {
    for (; row < kGroupRows; row += 2) {
      _mm512_store_si512(out + row * kLanes, _mm512_setzero_si512());
      _mm512_store_si512(out + kWeightHalves + row * kLanes, _mm512_setzero_si512());
    }
  }
}
