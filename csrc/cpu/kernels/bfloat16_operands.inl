// Queries and rows of the memory as operands of bfloat16 products. Included after simd.inl, in a
// namespace that defines kGroupRows (rows per step of the products) and kMostTileRows.

constexpr int64_t kLanes = 16;
constexpr int64_t kBlockPanels = 16;
constexpr int64_t kBlockHalves = 32 * kLanes;  // 32 columns of one role's queries

// Queries are packed in blocks of 32 columns.
int64_t matrix_dim(int64_t dim) { return round_up(dim, 32); }

int64_t padded_dim(int64_t dim) { return round_up(dim, kLanes); }

int64_t panel_bytes(int64_t dim) {
  return matrix_dim(dim) * kRoles * kLanes * int64_t(sizeof(uint16_t));
}

// Rows per tile: enough that the output stays in registers for a while, few enough that the rows
// arranged for the output product stay in the second-level cache.
int64_t row_tile(int64_t columns) {
  constexpr int64_t kElements = int64_t{1} << 17;
  const int64_t rows = kElements / columns / kGroupRows * kGroupRows;
  return rows < kGroupRows ? kGroupRows : rows > kMostTileRows ? kMostTileRows : rows;
}

RRD_INLINE uint16_t round_to_bfloat16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40u);  // quiet NaN
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// The transpose of a 16 x 16 matrix of 32-bit elements, row i in v[i].
RRD_INLINE void transpose_16x16(__m512i (&v)[16]) {
  __m512i w[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    w[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    w[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(w[i], w[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(w[i], w[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(w[i + 1], w[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(w[i + 1], w[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    w[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
    w[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
    w[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
    w[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    v[i] = _mm512_shuffle_i32x4(w[i], w[i + 8], 0x88);
    v[i + 8] = _mm512_shuffle_i32x4(w[i], w[i + 8], 0xdd);
  }
}

// Columns [d, d + 32) of one unit row, scaled, as bfloat16; zeros from `dim` on.
RRD_INLINE __m512i scaled_row(const float* row, int64_t d, int64_t dim, float scale) {
  const auto half = [&](int64_t at) __attribute__((always_inline)) {
    const int64_t left = dim - at;
    const __mmask16 inside = left >= kLanes ? __mmask16(0xffff)
                             : left <= 0    ? __mmask16(0)
                                            : __mmask16((1 << left) - 1);
    return _mm512_mul_ps(_mm512_maskz_loadu_ps(inside, row + at), _mm512_set1_ps(scale));
  };
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(half(d + kLanes), half(d)));
}

// Two halves -> [columns / 32, 2, 16 column pairs, 16 queries, 2]. A pair of columns is one 32-bit
// element.
void pack(const PanelHalf<float> (&halves)[kRoles], int64_t dim, void* panel) {
  uint16_t* out = static_cast<uint16_t*>(panel);
  for (int64_t d = 0; d < matrix_dim(dim); d += 32) {
    for (int half = 0; half < kRoles; ++half, out += kBlockHalves) {
      const PanelHalf<float>& from = halves[half];
      __m512i block[16] = {};
      for (int64_t q = 0; q < from.count; ++q) {
        block[q] = scaled_row(from.unit + q * padded_dim(dim), d, dim, from.scale);
      }
      transpose_16x16(block);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(out + i * 32, block[i]);
    }
  }
}

template <typename Stored>
RRD_INLINE uint16_t narrow(Stored value) {
  return round_to_bfloat16(float(widen(value)));
}
RRD_INLINE uint16_t narrow(BFloat16 value) { return value.bits; }

template <typename Stored>
void copy_rows(const MemoryView& memory, int64_t row, int64_t count, int64_t padded_count,
               uint16_t* to) {
  const int64_t columns = matrix_dim(memory.dim);
  const Stored* first = static_cast<const Stored*>(memory.data) + row * memory.row_stride;
  if (memory.column_stride != 1) {
    // Down the columns: those of a queue that is stored as [D, K] are contiguous.
    for (int64_t d = 0; d < memory.dim; ++d) {
      const Stored* from = first + d * memory.column_stride;
      for (int64_t r = 0; r < count; ++r) to[r * columns + d] = narrow(from[r * memory.row_stride]);
    }
  }
  for (int64_t r = 0; r < padded_count; ++r, to += columns) {
    const Stored* from = first + r * memory.row_stride;
    int64_t d = r < count ? memory.dim : 0;
    if (r < count && memory.column_stride == 1) {
      for (d = 0; d < memory.dim; ++d) to[d] = narrow(from[d]);
    }
    for (; d < columns; ++d) to[d] = 0;
  }
}

struct Rows {
  const uint16_t* data;
  int64_t stride;
  int64_t count;   // without padding
  int64_t groups;  // of kGroupRows rows; the last one is padded with zeros

  int64_t in_group(int64_t group) const {
    const int64_t left = count - group * kGroupRows;
    return left < kGroupRows ? left : kGroupRows;
  }
};

Rows load_rows(const MemoryView& memory, int64_t row, int64_t count, uint16_t* scratch) {
  const int64_t groups = (count + kGroupRows - 1) / kGroupRows;
  if (memory.element == Element::kBFloat16 && memory.column_stride == 1 &&
      memory.dim == matrix_dim(memory.dim) && count % kGroupRows == 0) {
    return {static_cast<const uint16_t*>(memory.data) + row * memory.row_stride, memory.row_stride,
            count, groups};
  }
  const int64_t padded = groups * kGroupRows;
  switch (memory.element) {
    case Element::kFloat:
      copy_rows<float>(memory, row, count, padded, scratch);
      break;
    case Element::kDouble:
      copy_rows<double>(memory, row, count, padded, scratch);
      break;
    case Element::kBFloat16:
      copy_rows<BFloat16>(memory, row, count, padded, scratch);
      break;
    case Element::kHalf:
      copy_rows<Half>(memory, row, count, padded, scratch);
      break;
  }
  return {scratch, matrix_dim(memory.dim), count, groups};
}
