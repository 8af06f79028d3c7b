// The work per sample before and after the pass over the memory: O(B * D).

template <typename T>
int64_t padded_dim(int64_t dim) {
  return round_up(dim, Vector<T>::kLanes);
}

// z / max(||z||, eps). Squares are summed in double, so that a float32 row keeps its norm if its
// squares overflow or underflow in float32.
template <typename T>
void normalize(const T* rows, int64_t count, int64_t dim, T* unit, T* norm) {
  const int64_t padded = padded_dim<T>(dim);
  constexpr int64_t kLanes = Vector<double>::kLanes;
  for (int64_t i = 0; i < count; ++i) {
    const T* row = rows + i * dim;
    Vec<double> squares{};
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
      Vec<double> value;
      for (int64_t lane = 0; lane < kLanes; ++lane) value[lane] = row[d + lane];
      squares += value * value;
    }
    double square = horizontal_sum<double>(squares);
    for (; d < dim; ++d) square += double(row[d]) * double(row[d]);
    const double length = __builtin_sqrt(square);
    // Not std::max: NaN must stay NaN.
    const double inverse = 1.0 / (length < kNormEps ? kNormEps : length);
    T* out = unit + i * padded;
    for (d = 0; d < dim; ++d) out[d] = T(row[d] * inverse);
    for (; d < padded; ++d) out[d] = T(0);
    norm[i] = T(length);
  }
}

template <typename T>
RRD_INLINE T dot(const T* a, const T* b, int64_t padded) {
  Vec<T> sum{};
  for (int64_t d = 0; d < padded; d += Vector<T>::kLanes) sum += load(a + d) * load(b + d);
  return horizontal_sum<T>(sum);
}

RRD_INLINE Vec<double> rounded_to_bfloat16(Vec<double> value) { return value; }
RRD_INLINE Vec<float> rounded_to_bfloat16(Vec<float> value) {
  typedef uint32_t Bits __attribute__((vector_size(RRD_VECTOR_BYTES)));
  const Bits bits = reinterpret_cast<Bits>(value);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  return reinterpret_cast<Vec<float>>(rounded);
}

// The unit row behind the logits: scaled, rounded to bfloat16 if the kernel rounds its queries, and
// scaled back; scale is 0 if it does not. The loss subtracts logits from their log-sum-exp: both
// must use the same query.
template <typename T>
RRD_INLINE Vec<T> as_multiplied(Vec<T> unit, T scale) {
  return scale == T(0) ? unit : rounded_to_bfloat16(unit * scale) / scale;
}

// A row's logit, in units of log 2, with the query as multiplied. In double: terms of the KL
// divergence all but cancel.
template <typename T>
double exact_logit(const T* unit, const T* row, int64_t padded, double tau, bool rounded) {
  const T scale = T(1.4426950408889634 / tau);
  double sum = 0;
  for (int64_t d = 0; d < padded; d += Vector<T>::kLanes) {
    const Vec<T> scaled = load(unit + d) * scale, value = load(row + d);
    const Vec<T> query = rounded ? rounded_to_bfloat16(scaled) : scaled;
    for (int64_t lane = 0; lane < Vector<T>::kLanes; ++lane) {
      sum += double(query[lane]) * double(value[lane]);
    }
  }
  return sum;
}

template <typename T>
RRD_INLINE T dot_as_multiplied(const T* unit, const T* output, int64_t padded, T scale) {
  Vec<T> sum{};
  for (int64_t d = 0; d < padded; d += Vector<T>::kLanes) {
    sum += as_multiplied(load(unit + d), scale) * load(output + d);
  }
  return horizontal_sum<T>(sum);
}

// One query's shift and sum of weights over all splits.
struct Merged {
  double shift;  // in units of log 2
  double sum;

  double log_sum_exp() const { return (__builtin_log2(sum) + shift) * 0.6931471805599453; }
};

template <typename T>
Merged merge(const Partial<T>& partial, int64_t query, int64_t splits, int64_t stride) {
  Merged merged{partial.shift[query], 0.0};
  for (int64_t k = 1; k < splits; ++k) {
    const double shift = partial.shift[query + k * stride];
    if (shift > merged.shift) merged.shift = shift;
  }
  for (int64_t k = 0; k < splits; ++k) {
    merged.sum += double(partial.sum[query + k * stride]) *
                  __builtin_exp2(partial.shift[query + k * stride] - merged.shift);
  }
  return merged;
}

// Adds one more column to a query's sum; returns its weight.
RRD_INLINE double add_column(Merged& merged, double logit) {
  if (logit > merged.shift) {
    merged.sum *= __builtin_exp2(merged.shift - logit);
    merged.shift = logit;
  }
  const double weight = __builtin_exp2(logit - merged.shift);
  merged.sum += weight;
  return weight;
}

// The attention output of one query: sum_j softmax_j m_j, over all splits and its own pair.
template <typename T>
void merge_output(const Partial<T>& partial, const Merged& merged, int64_t query, int64_t splits,
                  int64_t stride, int64_t padded, double own_weight, const T* own, T* output) {
  for (int64_t k = 0; k < splits; ++k) {
    const int64_t at = query + k * stride;
    const Vec<T> weight =
        broadcast(T(__builtin_exp2(partial.shift[at] - merged.shift) / merged.sum));
    const T* from = partial.output + at * padded;
    for (int64_t d = 0; d < padded; d += Vector<T>::kLanes) {
      const Vec<T> term = load(from + d) * weight;
      store<T>(output + d, k == 0 ? term : load(output + d) + term);
    }
  }
  if (own_weight == 0.0) return;
  const Vec<T> weight = broadcast(T(own_weight / merged.sum));
  for (int64_t d = 0; d < padded; d += Vector<T>::kLanes) {
    const Vec<T> term = load(own + d) * weight;
    store<T>(output + d, splits == 0 ? term : load(output + d) + term);
  }
}

// loss_i = LSE(b_i) - s_i . O^t_i / tau_s and its gradient through the normalisation. With kl also
// - LSE(a_i) + t_i . O^t_i / tau_t.
template <typename T>
void combine(const CombineTask<T>& task) {
  constexpr double kLog2 = 0.6931471805599453;
  const int64_t padded = padded_dim<T>(task.dim);
  const int64_t stride = task.split_stride * kRoles;
  const bool hard = task.tau_t == 0.0;
  const int64_t target_splits = hard ? 0 : task.splits;  // a hard target has the own pair alone
  const T inverse_tau = T(1.0 / task.tau_s);
  const T query_scale = task.rounded_queries ? T(1.4426950408889634 / task.tau_s) : T(0);
  const auto logit = [&](const T* row_unit, const T* column, double tau) {
    return exact_logit(row_unit, column, padded, tau, task.rounded_queries);
  };
  for (int64_t i = task.batch_begin; i < task.batch_end; ++i) {
    const int64_t panel = i / task.lanes, lane = i % task.lanes;
    const int64_t student = hard ? i : (panel * kRoles + kStudent) * task.lanes + lane;
    const int64_t teacher = (panel * kRoles + kTeacher) * task.lanes + lane;
    const T* unit = task.student + i * padded;
    const T* target = task.teacher + i * padded;
    Merged q = merge(task.partial, student, task.splits, stride);
    Merged p = hard ? Merged{0.0, 1.0} : merge(task.partial, teacher, task.splits, stride);
    double own_s = 0, own_t = 0, own_logit = 0, own_logit_t = 0;
    if (task.own_pair) {
      own_logit = logit(unit, target, task.tau_s);
      own_s = add_column(q, own_logit);
      own_t = 1;
    }
    if (task.own_pair && !hard) {
      own_logit_t = logit(target, target, task.tau_t);
      own_t = add_column(p, own_logit_t);
    }
    const double entropy_part = task.kl ? p.log_sum_exp() : 0;
    if (task.grad == nullptr) {
      double cross = own_t == 0 ? 0 : own_t * (task.kl ? own_logit - own_logit_t : own_logit);
      for (int64_t k = 0; k < target_splits; ++k) {
        cross += double(task.partial.cross[i + k * task.split_stride]) *
                 __builtin_exp2(task.partial.shift[teacher + k * stride] - p.shift);
      }
      task.loss[i] = T(q.log_sum_exp() - entropy_part - kLog2 * cross / p.sum);
      continue;
    }
    T* output_s = task.workspace;
    T* output_t = task.workspace + padded;
    merge_output(task.partial, q, student, task.splits, stride, padded, own_s, target, output_s);
    merge_output(task.partial, p, teacher, target_splits, stride, padded, own_t, target, output_t);
    double mean_logit;
    if (task.own_pair || task.kl) {
      mean_logit = kLog2 * logit(unit, output_t, task.tau_s);
      if (task.kl) mean_logit -= kLog2 * logit(target, output_t, task.tau_t);
    } else {
      mean_logit = double(dot_as_multiplied(unit, output_t, padded, query_scale)) / task.tau_s;
    }
    task.loss[i] = T(q.log_sum_exp() - entropy_part - mean_logit);

    const double norm = task.student_norm[i];
    const bool clamped = norm <= kNormEps;  // then z / eps is linear in z
    for (int64_t d = 0; d < padded; d += Vector<T>::kLanes) {
      store<T>(output_s + d, (load(output_s + d) - load(output_t + d)) * inverse_tau);
    }
    const T radial = clamped ? T(0) : dot(unit, output_s, padded);
    const T scale = T(task.sample_weight / (clamped ? kNormEps : norm));
    T* grad = task.grad + i * task.dim;
    for (int64_t d = 0; d < task.dim; ++d) grad[d] = (output_s[d] - radial * unit[d]) * scale;
  }
}
