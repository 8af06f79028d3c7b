// Memory layout of the matrix unit's operands, and the transposes that produce it.
// Included by attention_amx.cpp, after bfloat16_operands.inl.

constexpr int64_t kTileFloats = 16 * 16;
constexpr int64_t kTileHalves = 16 * 32;

struct Scratch {
  Scratch(void* base, int64_t dim, int64_t panels) {
    const int64_t columns = matrix_dim(dim), tile = row_tile(columns);
    output = static_cast<float*>(base);
    logits = output + panels * columns * kRoles * kLanes;
    // The bounded path alternates between two groups' logits, even if a tile has only one group.
    const int64_t logit_rows = tile < 2 * kGroupRows ? 2 * kGroupRows : tile;
    rows = reinterpret_cast<uint16_t*>(logits + logit_rows * kRoles * kLanes);
    arranged = rows + tile * columns;
    weights = arranged + tile * columns;
    bytes = reinterpret_cast<char*>(weights + tile * kRoles * kLanes) - static_cast<char*>(base);
  }
  float* output;       // [panels, columns / 16, 2, 16 columns, 16 queries]
  float* logits;       // [max(groups, 2), 32 rows, 2, 16 queries]
  uint16_t* rows;      // [row_tile, columns], if the memory cannot be read in place
  uint16_t* arranged;  // [groups, columns / 16, 16 columns, 32 rows]
  uint16_t* weights;   // [groups, 2, 16 row pairs, 16 queries, 2]
  int64_t bytes;
};

int64_t scratch_bytes(int64_t dim, int64_t panels) {
  return Scratch(reinterpret_cast<void*>(kAlignment), dim, panels).bytes;
}

RRD_INLINE __m512i load_quarters(const uint16_t* from, int64_t stride) {
  const auto at = [&](int64_t row) __attribute__((always_inline)) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + row * stride));
  };
  __m512i value = _mm512_castsi128_si512(at(0));
  value = _mm512_inserti32x4(value, at(8), 1);
  value = _mm512_inserti32x4(value, at(16), 2);
  return _mm512_inserti32x4(value, at(24), 3);
}

// [32 rows, 8 columns] -> [8 columns, 32 rows]. Quarter l of vector i is loaded with row 8 l + i.
// So quarter l of the eight vectors is the 8 x 8 block of rows 8 l to 8 l + 7, transposed in place.
RRD_INLINE void transpose_block(const uint16_t* from, int64_t stride, uint16_t* to) {
  __m512i a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) a[i] = load_quarters(from + i * stride, stride);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = _mm512_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm512_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    a[4 * i] = _mm512_unpacklo_epi32(b[4 * i], b[4 * i + 2]);
    a[4 * i + 1] = _mm512_unpackhi_epi32(b[4 * i], b[4 * i + 2]);
    a[4 * i + 2] = _mm512_unpacklo_epi32(b[4 * i + 1], b[4 * i + 3]);
    a[4 * i + 3] = _mm512_unpackhi_epi32(b[4 * i + 1], b[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = _mm512_unpacklo_epi64(a[i], a[4 + i]);
    b[2 * i + 1] = _mm512_unpackhi_epi64(a[i], a[4 + i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) _mm512_store_si512(to + i * kGroupRows, b[i]);
}

// M^T, the first operand of the second product.
void arrange_rows(const Rows& rows, int64_t columns, uint16_t* to) {
  for (int64_t group = 0; group < rows.groups; ++group) {
    const uint16_t* from = rows.data + group * kGroupRows * rows.stride;
    for (int64_t column = 0; column < columns; column += 8, to += 8 * kGroupRows) {
      transpose_block(from + column, rows.stride, to);
    }
  }
}

// output^T of one panel -> [2, 16 queries, padded_dim]
void untranspose(const float* output, int64_t dim, float* to) {
  const int64_t padded = padded_dim(dim);
  for (int64_t column = 0; column < padded; column += 16) {
    for (int role = 0; role < kRoles; ++role, output += kTileFloats) {
      __m512i block[16];
      for (int d = 0; d < 16; ++d) block[d] = _mm512_load_si512(output + d * kLanes);
      transpose_16x16(block);
      for (int q = 0; q < 16; ++q) {
        _mm512_storeu_si512(to + (role * kLanes + q) * padded + column, block[q]);
      }
    }
  }
}
