// The kernels of momentum.h. Included after simd.inl, rows.inl and attention_simd.inl.

inline int64_t padded_count(int64_t count) { return round_up(count, Vector<double>::kLanes); }

template <typename T>
int64_t tile_room(int64_t dim) {
  using B = Blocking<T>;
  return B::kRowTile * (padded_dim<T>(dim) + kRoles * B::kLanes);
}

template <typename T>
void all_similarities(const MemoryView& memory, int64_t begin, int64_t end, const void* packed,
                      int64_t batch, T* out, int64_t stride, T* room) {
  using B = Blocking<T>;
  constexpr int64_t kWidth = kRoles * B::kLanes;  // samples of a panel
  T* block = room + B::kRowTile * padded_dim<T>(memory.dim);
  for (int64_t row = begin; row < end; row += B::kRowTile) {
    const int64_t count = end - row < B::kRowTile ? end - row : B::kRowTile;
    const Tile<T> tile = load_tile<T>(memory, row, count, room);
    for (int64_t first = 0; first < batch; first += kWidth) {
      const T* panel = static_cast<const T*>(packed) + first * memory.dim;
      for (int64_t r = 0; r < count; r += B::kLogitRows) {
        Vec<T> similarity[B::kLogitRows][kRoles];
        logits<T>(tile.rows + r * tile.stride, tile.stride, panel, memory.dim, similarity);
#pragma GCC unroll 16
        for (int64_t k = 0; k < B::kLogitRows; ++k) {
          store<T>(block + (r + k) * kWidth, similarity[k][kStudent]);
          store<T>(block + (r + k) * kWidth + B::kLanes, similarity[k][kTeacher]);
        }
      }
      // Each sample's similarities are contiguous, so that pick stays within a core's cache.
      for (int64_t i = 0; i < kWidth && first + i < batch; ++i) {
        T* to = out + (first + i) * stride + row;
        for (int64_t r = 0; r < count; ++r) to[r] = block[r * kWidth + i];
      }
    }
  }
}

// out[kSamples, kVectors * lanes] += weights * rows of a tile
template <int64_t kSamples, int64_t kVectors, typename T>
RRD_INLINE void add_weighted(const Tile<T>& tile, const T* weights, int64_t stride, T* out,
                             int64_t padded, int64_t d) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  Vec<T> sum[kSamples][kVectors] = {};
  for (int64_t r = 0; r < tile.count; ++r) {
    Vec<T> row[kVectors];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v)
      row[v] = load(tile.rows + r * tile.stride + d + v * kLanes);
#pragma GCC unroll 8
    for (int64_t i = 0; i < kSamples; ++i) {
      const Vec<T> weight = broadcast(weights[i * stride + r]);
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) sum[i][v] += weight * row[v];
    }
  }
  // Each tile is summed by itself, then added: shorter chains of additions.
  for (int64_t i = 0; i < kSamples; ++i) {
    for (int64_t v = 0; v < kVectors; ++v) {
      T* to = out + i * padded + d + v * kLanes;
      store<T>(to, load(to) + sum[i][v]);
    }
  }
}

template <int64_t kSamples, typename T>
RRD_INLINE void add_weighted_rows(const Tile<T>& tile, const T* weights, int64_t stride, T* out,
                                  int64_t padded) {
  constexpr int64_t kVectors = Blocking<T>::kOutputVectors, kLanes = Vector<T>::kLanes;
  int64_t d = 0;
  for (; d + kVectors * kLanes <= padded; d += kVectors * kLanes) {
    add_weighted<kSamples, kVectors, T>(tile, weights, stride, out, padded, d);
  }
  for (; d < padded; d += kLanes) {
    add_weighted<kSamples, 1, T>(tile, weights, stride, out, padded, d);
  }
}

template <typename T>
void all_weighted_rows(const MemoryView& memory, int64_t begin, int64_t end, const T* weights,
                       int64_t stride, int64_t batch, T* out, T* room) {
  using B = Blocking<T>;
  constexpr int64_t kSamples = B::kOutputQueries;
  const int64_t padded = padded_dim<T>(memory.dim);
  for (int64_t k = 0; k < batch * padded; ++k) out[k] = 0;
  for (int64_t row = begin; row < end; row += B::kRowTile) {
    const int64_t count = end - row < B::kRowTile ? end - row : B::kRowTile;
    const Tile<T> tile = load_tile<T>(memory, row, count, room);
    const Tile<T> rows = {tile.rows, tile.stride, count};
    int64_t i = 0;
    for (; i + kSamples <= batch; i += kSamples) {
      add_weighted_rows<kSamples, T>(rows, weights + i * stride + row, stride, out + i * padded,
                                     padded);
    }
    for (; i < batch; ++i) {
      add_weighted_rows<1, T>(rows, weights + i * stride + row, stride, out + i * padded, padded);
    }
  }
}

template <typename T>
void pick(const T* from, const int64_t* index, int64_t count, double* out) {
  for (int64_t p = 0; p < count; ++p) out[p] = double(from[index[p]]);
}

template <typename T>
RRD_INLINE const T* sampled_row(const MemoryView& memory, int64_t index, T* room) {
  const Element own = sizeof(T) == sizeof(float) ? Element::kFloat : Element::kDouble;
  if (memory.element == own && memory.column_stride == 1) {
    return static_cast<const T*>(memory.data) + index * memory.row_stride;
  }
  widen_tile<T>(memory, index, 1, 1, memory.dim, room);
  return room;
}

// Rows to prefetch ahead: the hardware cannot predict sampled rows, which are in random order.
constexpr int64_t kAhead = 8;

RRD_INLINE void prefetch_row(const MemoryView& memory, int64_t index) {
  if (memory.column_stride != 1) return;
  const int64_t element = bytes_of(memory.element);
  const char* data = static_cast<const char*>(memory.data);
  prefetch_bytes(data + index * memory.row_stride * element, memory.dim * element);
}

// Rows whose contribution is added up in T before double, and that contrast_rows reads at a time:
// few enough that the error stays about one rounding of T, and that they stay in a core's cache.
constexpr int64_t kBlock = 32;

template <typename T>
int64_t gather_room(int64_t dim) {
  return (kBlock + 1) * padded_dim<T>(dim);
}

template <typename T>
RRD_INLINE T product(const T* unit, const T* row, int64_t dim) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  Vec<T> even{}, odd{};
  int64_t d = 0;
  for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
    even += load(unit + d) * load(row + d);
    odd += load(unit + d + kLanes) * load(row + d + kLanes);
  }
  T sum = horizontal_sum<T>(even + odd);
  for (; d < dim; ++d) sum += unit[d] * row[d];
  return sum;
}

template <typename T>
void similarities(const MemoryView& memory, const int64_t* index, int64_t count, const T* unit,
                  T* room, double* out) {
  for (int64_t p = 0; p < count; ++p) {
    if (p + kAhead < count) prefetch_row(memory, index[p + kAhead]);
    out[p] = double(product<T>(unit, sampled_row<T>(memory, index[p], room), memory.dim));
  }
}

template <typename T>
void weighted_rows(const MemoryView& memory, const int64_t* index, const double* weights,
                   int64_t count, T* room, double* out) {
  const int64_t dim = memory.dim;
  T* block = room + padded_dim<T>(dim);
  for (int64_t d = 0; d < dim; ++d) out[d] = 0;
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t last = first + kBlock < count ? first + kBlock : count;
    for (int64_t d = 0; d < dim; ++d) block[d] = 0;
    for (int64_t p = first; p < last; ++p) {
      if (p + kAhead < count) prefetch_row(memory, index[p + kAhead]);
      const T* row = sampled_row<T>(memory, index[p], room);
      const T weight = T(weights[p]);
      for (int64_t d = 0; d < dim; ++d) block[d] += weight * row[d];
    }
    for (int64_t d = 0; d < dim; ++d) out[d] += double(block[d]);
  }
}

// Fills the padding with the first value; what is computed from the padding is dropped.
inline void pad(double* values, int64_t count) {
  for (int64_t p = count; p < padded_count(count); ++p) values[p] = values[0];
}

RRD_INLINE Vec<double> without_padding(Vec<double> value, int64_t remaining) {
  for (int64_t lane = remaining; lane < Vector<double>::kLanes; ++lane) value[lane] = 0;
  return value;
}

RRD_INLINE double horizontal_maximum(Vec<double> value) {
  double maximum = value[0];
  for (int64_t lane = 1; lane < Vector<double>::kLanes; ++lane) {
    if (value[lane] > maximum) maximum = value[lane];
  }
  return maximum;
}

// Turns similarities into logits, in place. Returns their maximum.
inline double to_logits(double* values, int64_t count, bool exponential, double rate,
                        double scale) {
  constexpr int64_t kLanes = Vector<double>::kLanes;
  pad(values, count);
  Vec<double> maximum = broadcast(-__builtin_inf());
  for (int64_t p = 0; p < padded_count(count); p += kLanes) {
    const Vec<double> similarity = load(values + p);
    const Vec<double> logit = (exponential ? exp2<double>(similarity * rate) : similarity) * scale;
    store<double>(values + p, logit);
    maximum = logit > maximum ? logit : maximum;
  }
  return horizontal_maximum(maximum);
}

inline double relate(const RelateTask& task) {
  constexpr int64_t kLanes = Vector<double>::kLanes;
  constexpr double kLog2E = 1.4426950408889634;
  const int64_t padded = padded_count(task.count);
  double *b = task.student, *a = task.teacher, *q = task.scratch, *p = task.teacher;
  const double highest_b =
      to_logits(b, task.count, task.exponential, task.rate, task.student_scale);
  const double highest_a =
      to_logits(a, task.count, task.exponential, task.rate, task.teacher_scale);
  Vec<double> sum_q{}, sum_p{}, sum_cross{};
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Vec<double> above = load(b + j) - highest_b;
    Vec<double> student = exp2<double>(above * kLog2E);
    Vec<double> teacher = exp2<double>((load(a + j) - highest_a) * kLog2E);
    if (j + kLanes > task.count) {
      student = without_padding(student, task.count - j);
      teacher = without_padding(teacher, task.count - j);
    }
    sum_q += student;
    sum_p += teacher;
    sum_cross += teacher * above;
    store<double>(q + j, student);
    store<double>(p + j, teacher);
  }
  const double total_q = horizontal_sum<double>(sum_q), total_p = horizontal_sum<double>(sum_p);
  const double loss = __builtin_log(total_q) - horizontal_sum<double>(sum_cross) / total_p;
  if (!task.need_grad) return loss;
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Vec<double> difference = load(q + j) / total_q - load(p + j) / total_p;
    const Vec<double> slope =
        task.exponential ? load(b + j) * task.derivative : broadcast(task.derivative);
    store<double>(b + j, difference * slope);
  }
  return loss;
}

inline double contrast(double* values, int64_t count, const ContrastTask& task, bool positive) {
  constexpr int64_t kLanes = Vector<double>::kLanes;
  constexpr double kLog2 = 0.6931471805599453;
  // The softplus of a logit h is max(h, 0) + log(1 + 2^-|h|). Of many, the logarithm of the product
  // is taken: at most 2^kFactors.
  constexpr int64_t kFactors = 512;
  // The positive's is that of -h: softplus(h) - h would cancel once it is well told apart.
  if (positive) values[0] = 2 * task.shift / task.rate - values[0];
  pad(values, count);
  Vec<double> linear{};
  double logarithms = 0;
  for (int64_t begin = 0; begin < count; begin += kFactors) {
    const int64_t end = count - begin < kFactors ? count : begin + kFactors;
    Vec<double> factors = broadcast(1.0);
    for (int64_t p = begin; p < end; p += kLanes) {
      const Vec<double> logit = load(values + p) * task.rate - task.shift;
      const auto above = logit > 0.0;
      Vec<double> power = exp2_nonpositive<double>(above ? -logit : logit);
      const Vec<double> factor = 1.0 + power;
      store<double>(values + p, (above ? broadcast(1.0) : power) / factor);
      Vec<double> excess = above ? logit : Vec<double>{};
      if (p + kLanes > count) {
        power = without_padding(power, count - p);
        excess = without_padding(excess, count - p);
      }
      factors *= 1.0 + power;
      linear += excess;
    }
    double product = 1;
    for (int64_t lane = 0; lane < kLanes; ++lane) product *= factors[lane];
    logarithms += __builtin_log(product);
  }
  if (positive) values[0] = -values[0];
  return logarithms + horizontal_sum<double>(linear) * kLog2;
}

inline double contrast_all(double* similarities, int64_t count, const ContrastTask& task) {
  return contrast(similarities, count, task, true);
}

template <typename V, std::size_t... kLane>
RRD_INLINE V add_neighbours(V a, V b, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(a, b, (2 * kLane)...) +
         __builtin_shufflevector(a, b, (2 * kLane + 1)...);
}

// The sums of as many vectors as one has lanes: fewer steps than to add up each by itself.
template <typename T>
RRD_INLINE Vec<T> sums_of(Vec<T> (&vectors)[Vector<T>::kLanes]) {
#pragma GCC unroll 8
  for (int64_t count = Vector<T>::kLanes; count > 1; count /= 2) {
#pragma GCC unroll 8
    for (int64_t k = 0; k < count / 2; ++k) {
      vectors[k] = add_neighbours(vectors[2 * k], vectors[2 * k + 1],
                                  std::make_index_sequence<Vector<T>::kLanes>());
    }
  }
  return vectors[0];
}

// out[p] = unit . rows[p] for as many rows as a vector has lanes
template <typename T>
RRD_INLINE void products(const T* unit, const T* const* rows, int64_t dim, double* out) {
  constexpr int64_t kLanes = Vector<T>::kLanes, kRows = kLanes < 8 ? kLanes : 8;
  Vec<T> sums[kLanes] = {};
  int64_t d = 0;
#pragma GCC unroll 4
  for (int64_t first = 0; first < kLanes; first += kRows) {
    for (d = 0; d + kLanes <= dim; d += kLanes) {
      const Vec<T> own = load(unit + d);
#pragma GCC unroll 8
      for (int64_t r = 0; r < kRows; ++r) sums[first + r] += own * load(rows[first + r] + d);
    }
  }
  const Vec<T> total = sums_of<T>(sums);
  for (int64_t r = 0; r < kLanes; ++r) {
    T sum = total[r];
    for (int64_t rest = d; rest < dim; ++rest) sum += unit[rest] * rows[r][rest];
    out[r] = double(sum);
  }
}

// out += sum over p of weights[p] * rows[p], added up in T first
template <int64_t kVectors, typename T>
RRD_INLINE void add_block(const T* const* rows, const T* weights, int64_t count, int64_t d,
                          double* out) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  Vec<T> sum[kVectors] = {};
  for (int64_t p = 0; p < count; ++p) {
    const Vec<T> weight = broadcast(weights[p]);
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) sum[v] += weight * load(rows[p] + d + v * kLanes);
  }
  for (int64_t v = 0; v < kVectors; ++v) {
    for (int64_t lane = 0; lane < kLanes; ++lane)
      out[d + v * kLanes + lane] += double(sum[v][lane]);
  }
}

template <typename T>
double contrast_rows(const MemoryView& memory, const int64_t* index, int64_t count, const T* unit,
                     const ContrastTask& task, T* room, double* out) {
  constexpr int64_t kLanes = Vector<T>::kLanes, kVectors = 4;
  const int64_t dim = memory.dim, padded = padded_dim<T>(dim);
  if (task.need_grad) {
    for (int64_t d = 0; d < dim; ++d) out[d] = 0;
  }
  double loss = 0;
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t block = count - first < kBlock ? count - first : kBlock;
    const T* rows[kBlock];
    double values[kBlock];
    T weights[kBlock];
    for (int64_t p = 0; p < block; ++p) {
      const int64_t ahead = first + p + kAhead;
      if (ahead < count) prefetch_row(memory, index[ahead]);
      rows[p] = sampled_row<T>(memory, index[first + p], room + p * padded);
    }
    for (int64_t p = block; p < kBlock; ++p) rows[p] = rows[0];
    for (int64_t p = 0; p < block; p += kLanes) products<T>(unit, rows + p, dim, values + p);
    loss += contrast(values, block, task, first == 0);
    if (!task.need_grad) continue;
    for (int64_t p = 0; p < block; ++p) weights[p] = T(values[p]);
    int64_t d = 0;
    for (; d + kVectors * kLanes <= dim; d += kVectors * kLanes) {
      add_block<kVectors, T>(rows, weights, block, d, out);
    }
    for (; d + kLanes <= dim; d += kLanes) add_block<1, T>(rows, weights, block, d, out);
    for (; d < dim; ++d) {
      T sum = 0;
      for (int64_t p = 0; p < block; ++p) sum += weights[p] * rows[p][d];
      out[d] += double(sum);
    }
  }
  return loss;
}

inline double exponential_sum(double* values, int64_t count, double rate) {
  constexpr int64_t kLanes = Vector<double>::kLanes;
  pad(values, count);
  Vec<double> sum{};
  for (int64_t p = 0; p < padded_count(count); p += kLanes) {
    const Vec<double> value = exp2<double>(load(values + p) * rate);
    sum += p + kLanes > count ? without_padding(value, count - p) : value;
  }
  return horizontal_sum<double>(sum);
}

template <typename T>
constexpr MomentumKernel<T> momentum_kernel() {
  return {padded_count,     tile_room<T>,   all_similarities<T>, all_weighted_rows<T>,
          pick<T>,          gather_room<T>, similarities<T>,     weighted_rows<T>,
          contrast_rows<T>, relate,         contrast_all,        exponential_sum};
}
