// One pass over rows of the memory for blocks of queries, in plain vector arithmetic.
//
// Both products are outer-product micro-kernels whose accumulators live in registers:
//   logits:  vectors along the queries (packed once per call), memory elements broadcast: the
//            memory needs no packing;
//   output:  vectors along D (again without packing), weights broadcast.

template <typename T>
struct Blocking {
  static constexpr int64_t kLanes = Vector<T>::kLanes;
  static constexpr int64_t kRowTile = RRD_ROW_TILE;  // rows per tile, which stays in cache
  static constexpr int64_t kLogitRows = RRD_LOGIT_ROWS;
  static constexpr int64_t kSumColumns = 128;
  static constexpr int64_t kOutputQueries = kLanes < 8 ? kLanes : 8;
  static constexpr int64_t kOutputVectors = RRD_OUTPUT_VECTORS;
  static constexpr int64_t kBlockPanels = 64 / kLanes;
  static constexpr int64_t kPanelGroups = kRoles * kLanes / kOutputQueries;
  static_assert(kRowTile % kLogitRows == 0, "a tile is a whole number of micro-kernels");
};

template <typename T>
int64_t panel_bytes(int64_t dim) {
  return dim * kRoles * Vector<T>::kLanes * int64_t(sizeof(T));
}

template <typename T>
int64_t scratch_bytes(int64_t dim, int64_t panels) {
  using B = Blocking<T>;
  return (B::kRowTile * padded_dim<T>(dim) + panels * B::kRowTile * kRoles * B::kLanes) *
         int64_t(sizeof(T));
}

// Two halves -> [dim, 2, lanes]
template <typename T>
void pack(const PanelHalf<T> (&halves)[kRoles], int64_t dim, void* panel) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  const int64_t padded = padded_dim<T>(dim);
  T* out = static_cast<T*>(panel);
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    for (int half = 0; half < kRoles; ++half) {
      const PanelHalf<T>& from = halves[half];
      for (int64_t d = 0; d < dim; ++d) {
        out[(d * kRoles + half) * kLanes + lane] =
            lane < from.count ? from.unit[lane * padded + d] * from.scale : T(0);
      }
    }
  }
}

// Converts `count` rows of the memory to T, [tile_rows, padded]; pads rows and columns with zeros.
template <typename T, typename Stored>
void widen_tile(const MemoryView& memory, int64_t row, int64_t count, int64_t tile_rows,
                int64_t padded, T* tile) {
  const int64_t dim = memory.dim;
  const Stored* first = static_cast<const Stored*>(memory.data) + row * memory.row_stride;
  if (memory.column_stride != 1) {
    // Down the columns: those of a queue that is stored as [D, K] are contiguous.
    for (int64_t d = 0; d < dim; ++d) {
      const Stored* from = first + d * memory.column_stride;
      for (int64_t r = 0; r < count; ++r) {
        tile[r * padded + d] = T(widen(from[r * memory.row_stride]));
      }
    }
  }
  for (int64_t r = 0; r < tile_rows; ++r) {
    T* to = tile + r * padded;
    const Stored* from = first + r * memory.row_stride;
    int64_t d = r < count ? dim : 0;
    if (r < count && memory.column_stride == 1) {
      for (d = 0; d < dim; ++d) to[d] = T(widen(from[d]));
    }
    for (; d < padded; ++d) to[d] = T(0);
  }
}

template <typename T>
void widen_tile(const MemoryView& memory, int64_t row, int64_t count, int64_t tile_rows,
                int64_t padded, T* tile) {
  switch (memory.element) {
    case Element::kFloat:
      return widen_tile<T, float>(memory, row, count, tile_rows, padded, tile);
    case Element::kDouble:
      return widen_tile<T, double>(memory, row, count, tile_rows, padded, tile);
    case Element::kBFloat16:
      return widen_tile<T, BFloat16>(memory, row, count, tile_rows, padded, tile);
    case Element::kHalf:
      return widen_tile<T, Half>(memory, row, count, tile_rows, padded, tile);
  }
}

template <typename T>
struct Tile {
  const T* rows;
  int64_t stride;
  int64_t count;  // without padding; micro-kernels read up to the next multiple of kLogitRows
};

template <typename T>
Tile<T> load_tile(const MemoryView& memory, int64_t row, int64_t count, T* scratch) {
  using B = Blocking<T>;
  const Element own = sizeof(T) == sizeof(float) ? Element::kFloat : Element::kDouble;
  const int64_t padded = padded_dim<T>(memory.dim);
  if (memory.element == own && memory.column_stride == 1 && padded == memory.dim &&
      count % B::kLogitRows == 0) {
    return {static_cast<const T*>(memory.data) + row * memory.row_stride, memory.row_stride, count};
  }
  widen_tile<T>(memory, row, count, round_up(count, B::kLogitRows), padded, scratch);
  return {scratch, padded, count};
}

template <typename T>
struct Statistics {
  Vec<T> sum[kRoles] = {};
  Vec<T> cross = {};
};

// Logits of kLogitRows memory rows with one panel. Sums restart every kSumColumns columns: the
// rounding error of one sum grows with the root of its columns, and 1 / tau multiplies it.
template <typename T>
RRD_INLINE void logits(const T* rows, int64_t stride, const T* queries, int64_t dim,
                       Vec<T> (&out)[Blocking<T>::kLogitRows][kRoles]) {
  using B = Blocking<T>;
  for (int64_t first = 0; first < dim; first += B::kSumColumns) {
    const int64_t last = first + B::kSumColumns < dim ? first + B::kSumColumns : dim;
    Vec<T> sum[B::kLogitRows][kRoles] = {};
    for (int64_t d = first; d < last; ++d) {
      const Vec<T> student = load(queries + d * kRoles * B::kLanes);
      const Vec<T> teacher = load(queries + (d * kRoles + kTeacher) * B::kLanes);
#pragma GCC unroll 16
      for (int64_t r = 0; r < B::kLogitRows; ++r) {
        const Vec<T> element = broadcast(rows[r * stride + d]);
        sum[r][kStudent] += student * element;
        sum[r][kTeacher] += teacher * element;
      }
    }
#pragma GCC unroll 16
    for (int64_t r = 0; r < B::kLogitRows; ++r) {
      for (int role = 0; role < kRoles; ++role) {
        out[r][role] = first == 0 ? sum[r][role] : out[r][role] + sum[r][role];
      }
    }
  }
}

template <Sums kSums, typename T>
RRD_INLINE void accumulate(const Vec<T> (&weight)[kRoles], const Vec<T> (&logit)[kRoles], T* to,
                           Statistics<T>& statistics) {
  for (int role = 0; role < kRoles; ++role) {
    statistics.sum[role] += weight[role];
    if constexpr (kSums == Sums::kRows) store<T>(to + role * Blocking<T>::kLanes, weight[role]);
  }
  if constexpr (kSums == Sums::kCross) {
    statistics.cross += weight[kTeacher] * logit[kStudent];
  } else if constexpr (kSums == Sums::kRatio) {
    statistics.cross += weight[kTeacher] * (logit[kStudent] - logit[kTeacher]);
  }
}

// Weights of a tile with one panel, [kRowTile, 2, lanes], on the bounded path: the shift is zero.
template <Sums kSums, typename T>
Statistics<T> bounded_weights(const Tile<T>& tile, const T* queries, int64_t dim,
                              Prefetch& prefetch, T* weights) {
  using B = Blocking<T>;
  Statistics<T> statistics;
  for (int64_t row = 0; row < tile.count; row += B::kLogitRows) {
    prefetch.step();
    Vec<T> logit[B::kLogitRows][kRoles];
    logits<T>(tile.rows + row * tile.stride, tile.stride, queries, dim, logit);
#pragma GCC unroll 16
    for (int64_t r = 0; r < B::kLogitRows; ++r) {
      if (row + r < tile.count) {
        const Vec<T> weight[kRoles] = {exp2<T>(logit[r][kStudent]), exp2<T>(logit[r][kTeacher])};
        accumulate<kSums, T>(weight, logit[r], weights + (row + r) * kRoles * B::kLanes,
                             statistics);
      }
    }
  }
  return statistics;
}

// Weights of a tile with one panel, by the online softmax. Raises the running maximum and returns
// in `factor` what rescales earlier sums and outputs.
template <Sums kSums, typename T>
Statistics<T> online_weights(const Tile<T>& tile, const T* queries, int64_t dim, Prefetch& prefetch,
                             T* weights, T* shift, Vec<T> (&factor)[kRoles]) {
  using B = Blocking<T>;
  Vec<T> highest[kRoles] = {load(shift), load(shift + B::kLanes)};
  for (int64_t row = 0; row < tile.count; row += B::kLogitRows) {
    prefetch.step();
    Vec<T> logit[B::kLogitRows][kRoles];
    logits<T>(tile.rows + row * tile.stride, tile.stride, queries, dim, logit);
    for (int64_t r = 0; r < B::kLogitRows && row + r < tile.count; ++r) {
      for (int role = 0; role < kRoles; ++role) {
        const Vec<T> value = logit[r][role];
        highest[role] = value > highest[role] ? value : highest[role];
        store<T>(weights + ((row + r) * kRoles + role) * B::kLanes, value);
      }
    }
  }
  for (int role = 0; role < kRoles; ++role) {
    factor[role] = exp2_nonpositive<T>(load(shift + role * B::kLanes) - highest[role]);
    store<T>(shift + role * B::kLanes, highest[role]);
  }
  Statistics<T> statistics;
  for (int64_t row = 0; row < tile.count; ++row) {
    T* at = weights + row * kRoles * B::kLanes;
    const Vec<T> logit[kRoles] = {load(at), load(at + B::kLanes)};
    const Vec<T> weight[kRoles] = {exp2_nonpositive<T>(logit[kStudent] - highest[kStudent]),
                                   exp2_nonpositive<T>(logit[kTeacher] - highest[kTeacher])};
    accumulate<kSums, T>(weight, logit, at, statistics);
  }
  return statistics;
}

// output[query, :] = output[query, :] * factor[query] for the queries of one panel.
template <typename T>
void rescale(T* output, int64_t padded, const Vec<T> (&factor)[kRoles]) {
  using B = Blocking<T>;
  for (int role = 0; role < kRoles; ++role) {
    for (int64_t lane = 0; lane < B::kLanes; ++lane) {
      const T by = factor[role][lane];
      if (by == T(1)) continue;
      T* row = output + (role * B::kLanes + lane) * padded;
      for (int64_t d = 0; d < padded; d += B::kLanes) store<T>(row + d, load(row + d) * by);
    }
  }
}

// output[kOutputQueries, kVectors * lanes] += weights^T rows
template <int64_t kVectors, typename T>
RRD_INLINE void add_output(const Tile<T>& tile, const T* weights, int64_t column, T* output,
                           int64_t padded) {
  using B = Blocking<T>;
  Vec<T> sum[B::kOutputQueries][kVectors] = {};
  for (int64_t row = 0; row < tile.count; ++row) {
    const T* from = tile.rows + row * tile.stride + column;
    Vec<T> value[kVectors];
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) value[v] = load(from + v * B::kLanes);
    const T* row_weights = weights + row * kRoles * B::kLanes;
#pragma GCC unroll 8
    for (int64_t q = 0; q < B::kOutputQueries; ++q) {
      const Vec<T> weight = broadcast(row_weights[q]);
#pragma GCC unroll 8
      for (int64_t v = 0; v < kVectors; ++v) sum[q][v] += weight * value[v];
    }
  }
#pragma GCC unroll 8
  for (int64_t q = 0; q < B::kOutputQueries; ++q) {
    T* to = output + q * padded + column;
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) {
      store<T>(to + v * B::kLanes, load(to + v * B::kLanes) + sum[q][v]);
    }
  }
}

// Which groups of kOutputQueries queries a tile adds rows to. To the others all of its weights are
// negligible beside the row that set the running maximum, whose weight is 1: at a teacher's
// temperature of 1e-4 this is so for all but a few tiles.
template <typename T>
struct LiveGroups {
  static constexpr T kNegligible = T(0x1p-100);

  void set(int64_t panel, const Vec<T> (&sum)[kRoles]) {
    using B = Blocking<T>;
    for (int64_t group = 0; group < B::kPanelGroups; ++group) {
      bool any = false;
      for (int64_t i = 0; i < B::kOutputQueries; ++i) {
        const int64_t query = group * B::kOutputQueries + i;
        any |= !(sum[query / B::kLanes][query % B::kLanes] <= kNegligible);  // NaN counts
      }
      live[panel][group] = any;
    }
  }

  bool live[Blocking<T>::kBlockPanels][Blocking<T>::kPanelGroups];
};

// Adds a tile's weighted rows to the outputs of all panels. The loop over columns is outermost:
// a strip of the tile stays in the first-level cache for all queries.
template <int64_t kVectors, bool kBounded, typename T>
void add_outputs(const AttentionTask<T>& task, const Tile<T>& tile, const T* weights,
                 const LiveGroups<T>& groups, int64_t column) {
  using B = Blocking<T>;
  const int64_t padded = padded_dim<T>(task.memory.dim);
  for (; column + kVectors * B::kLanes <= padded; column += kVectors * B::kLanes) {
    for (int64_t panel = 0; panel < task.panels; ++panel) {
      const T* panel_weights = weights + panel * B::kRowTile * kRoles * B::kLanes;
      T* output = task.partial.output + panel * kRoles * B::kLanes * padded;
      for (int64_t query = 0; query < kRoles * B::kLanes; query += B::kOutputQueries) {
        if (kBounded || groups.live[panel][query / B::kOutputQueries]) {
          add_output<kVectors, T>(tile, panel_weights + query, column, output + query * padded,
                                  padded);
        }
      }
    }
  }
  if constexpr (kVectors > 1) {
    if (column < padded) {
      add_outputs<kVectors - 1, kBounded, T>(task, tile, weights, groups, column);
    }
  }
}

template <bool kBounded, Sums kSums, typename T>
void attend_rows(const AttentionTask<T>& task) {
  using B = Blocking<T>;
  const int64_t dim = task.memory.dim, padded = padded_dim<T>(dim);
  const int64_t queries = task.panels * kRoles * B::kLanes;
  T* rows = static_cast<T*>(task.scratch);
  T* weights = rows + B::kRowTile * padded;
  for (int64_t i = 0; i < queries; ++i) {
    task.partial.sum[i] = T(0);
    task.partial.shift[i] = kBounded ? T(0) : -std::numeric_limits<T>::max();
  }
  if constexpr (kSums == Sums::kRows) {
    for (int64_t i = 0; i < queries * padded; ++i) task.partial.output[i] = T(0);
  } else {
    for (int64_t i = 0; i < task.panels * B::kLanes; ++i) task.partial.cross[i] = T(0);
  }

  for (int64_t row = task.row_begin; row < task.row_end; row += B::kRowTile) {
    const int64_t left = task.row_end - row;
    const Tile<T> tile = load_tile(task.memory, row, left < B::kRowTile ? left : B::kRowTile, rows);
    Prefetch prefetch(task.memory, row + tile.count, task.row_end, B::kRowTile,
                      task.panels * B::kRowTile / B::kLogitRows);
    LiveGroups<T> groups;
    for (int64_t panel = 0; panel < task.panels; ++panel) {
      const T* packed = static_cast<const T*>(task.queries) + panel * dim * kRoles * B::kLanes;
      T* panel_weights = weights + panel * B::kRowTile * kRoles * B::kLanes;
      T* sum = task.partial.sum + panel * kRoles * B::kLanes;
      T* cross = task.partial.cross + panel * B::kLanes;
      Statistics<T> statistics;
      if constexpr (kBounded) {
        statistics = bounded_weights<kSums, T>(tile, packed, dim, prefetch, panel_weights);
      } else {
        Vec<T> factor[kRoles];
        T* shift = task.partial.shift + panel * kRoles * B::kLanes;
        statistics =
            online_weights<kSums, T>(tile, packed, dim, prefetch, panel_weights, shift, factor);
        for (int role = 0; role < kRoles; ++role) {
          T* at = sum + role * B::kLanes;
          store<T>(at, load(at) * factor[role]);
        }
        if constexpr (kSums == Sums::kRows) {
          groups.set(panel, statistics.sum);
          rescale<T>(task.partial.output + panel * kRoles * B::kLanes * padded, padded, factor);
        } else {
          store<T>(cross, load(cross) * factor[kTeacher]);
        }
      }
      for (int role = 0; role < kRoles; ++role) {
        T* at = sum + role * B::kLanes;
        store<T>(at, load(at) + statistics.sum[role]);
      }
      if constexpr (kSums != Sums::kRows) store<T>(cross, load(cross) + statistics.cross);
    }
    if constexpr (kSums == Sums::kRows) {
      add_outputs<B::kOutputVectors, kBounded, T>(task, tile, weights, groups, 0);
    }
  }
}

template <Sums kSums, typename T>
void attend_sums(const AttentionTask<T>& task) {
  return task.bounded ? attend_rows<true, kSums, T>(task) : attend_rows<false, kSums, T>(task);
}

template <typename T>
void attend(const AttentionTask<T>& task) {
  switch (task.sums) {
    case Sums::kRows:
      return attend_sums<Sums::kRows, T>(task);
    case Sums::kCross:
      return attend_sums<Sums::kCross, T>(task);
    case Sums::kRatio:
      return attend_sums<Sums::kRatio, T>(task);
  }
}

template <typename T>
constexpr AttentionKernel<T> simd_kernel() {
  using B = Blocking<T>;
  return {RRD_ISA_NAME,     false,        B::kLanes, B::kBlockPanels, padded_dim<T>, panel_bytes<T>,
          scratch_bytes<T>, normalize<T>, pack<T>,   attend<T>,       combine<T>};
}
