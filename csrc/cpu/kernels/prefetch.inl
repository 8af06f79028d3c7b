RRD_INLINE int64_t bytes_of(Element element) {
  if (element == Element::kDouble) return 8;
  return element == Element::kFloat ? 4 : 2;
}

// To the second level: the first one's few outstanding misses would make the loads wait.
RRD_INLINE void prefetch_bytes(const char* from, int64_t count) {
  constexpr int kRead = 0, kSecondLevel = 2;
  for (int64_t byte = 0; byte < count; byte += 64) {
    __builtin_prefetch(from + byte, kRead, kSecondLevel);
  }
}

// Prefetches the next tile during work on this one, a few rows per step. A tile's first accesses
// are too scattered for the hardware's prefetcher; prefetching all rows at once would stall.
struct Prefetch {
  const char* row;
  int64_t row_stride;  // in bytes
  int64_t row_bytes;
  int64_t rows;  // left
  int64_t rows_per_step;

  // Rows [begin, min(begin + tile_rows, end)) of the memory, over `steps` calls of step().
  Prefetch(const MemoryView& memory, int64_t begin, int64_t end, int64_t tile_rows, int64_t steps) {
    const int64_t element = bytes_of(memory.element);
    row_stride = memory.row_stride * element;
    row_bytes = memory.dim * element;
    row = static_cast<const char*>(memory.data) + begin * row_stride;
    rows = begin + tile_rows < end ? tile_rows : end - begin;
    if (memory.column_stride != 1) rows = 0;
    rows_per_step = (tile_rows + steps - 1) / steps;
  }

  RRD_INLINE void step() {
    const int64_t left = rows > rows_per_step ? rows - rows_per_step : 0;
    for (; rows > left; --rows, row += row_stride) prefetch_bytes(row, row_bytes);
  }
};
