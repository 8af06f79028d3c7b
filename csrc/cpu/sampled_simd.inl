// The kernels of sampled.h, after simd.inl, rows.inl and attention_simd.inl.

inline int64_t padded_count(int64_t count) { return round_up(count, Vector<double>::kLanes); }

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

// Rows come in no order: the processor must be told of them ahead.
constexpr int64_t kAhead = 12;

template <typename T>
RRD_INLINE void prefetch_row(const MemoryView& memory, int64_t index) {
  const Element own = sizeof(T) == sizeof(float) ? Element::kFloat : Element::kDouble;
  if (memory.element != own || memory.column_stride != 1) return;
  const T* row = static_cast<const T*>(memory.data) + index * memory.row_stride;
  for (int64_t d = 0; d < memory.dim; d += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + d);
}

template <typename T>
void similarities(const MemoryView& memory, const int64_t* index, int64_t count, const T* unit,
                  T* room, double* out) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  const int64_t dim = memory.dim;
  for (int64_t p = 0; p < count; ++p) {
    if (p + kAhead < count) prefetch_row<T>(memory, index[p + kAhead]);
    const T* row = sampled_row<T>(memory, index[p], room);
    Vec<T> even{}, odd{};
    int64_t d = 0;
    for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
      even += load(unit + d) * load(row + d);
      odd += load(unit + d + kLanes) * load(row + d + kLanes);
    }
    T sum = horizontal_sum<T>(even + odd);
    for (; d < dim; ++d) sum += unit[d] * row[d];
    out[p] = double(sum);
  }
}

template <typename T>
void weighted_rows(const MemoryView& memory, const int64_t* index, const double* weights,
                   int64_t count, T* room, double* out) {
  // Few enough additions in T that its rounding stays that of one.
  constexpr int64_t kBlock = 32;
  const int64_t dim = memory.dim;
  T* block = room + padded_dim<T>(dim);
  for (int64_t d = 0; d < dim; ++d) out[d] = 0;
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t last = first + kBlock < count ? first + kBlock : count;
    for (int64_t d = 0; d < dim; ++d) block[d] = 0;
    for (int64_t p = first; p < last; ++p) {
      if (p + kAhead < count) prefetch_row<T>(memory, index[p + kAhead]);
      const T* row = sampled_row<T>(memory, index[p], room);
      const T weight = T(weights[p]);
      for (int64_t d = 0; d < dim; ++d) block[d] += weight * row[d];
    }
    for (int64_t d = 0; d < dim; ++d) out[d] += double(block[d]);
  }
}

// Columns beyond the last repeat the first, and what comes of them is dropped.
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

// Similarities to logits, in place; their maximum.
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
constexpr SampledKernel<T> sampled_kernel() {
  return {padded_count, pick<T>, similarities<T>, weighted_rows<T>, relate, exponential_sum};
}
