// The pass over the memory with bfloat16 products, float32 logits and sums. Included after each
// kernel's Scratch, arrange_rows, tile_logits, bounded_tile, output_of, rescale and add_output.

// bounded_tile's counterpart for the online softmax. Raises the running maximum and returns in
// `factor` what rescales earlier sums and outputs.
template <Sums kSums>
Statistics online_tile(const Rows& rows, const uint16_t* queries, int64_t columns,
                       const Scratch& scratch, Prefetch& prefetch, float* shift,
                       Vec<float> (&factor)[kRoles]) {
  Vec<float> highest[kRoles] = {load(shift), load(shift + kLanes)};
  tile_logits(rows, queries, columns, scratch, prefetch);
  for (int64_t row = 0; row < rows.count; ++row) {
    for (int role = 0; role < kRoles; ++role) {
      const Vec<float> value = load(scratch.logits + (row * kRoles + role) * kLanes);
      highest[role] = value > highest[role] ? value : highest[role];
    }
  }
  for (int role = 0; role < kRoles; ++role) {
    factor[role] = exp2_nonpositive<float>(load(shift + role * kLanes) - highest[role]);
    store<float>(shift + role * kLanes, highest[role]);
  }
  Statistics statistics;
  for (int64_t group = 0; group < rows.groups; ++group) {
    softmax_group<false, kSums>(scratch.logits + group * kLogitFloats, rows.in_group(group),
                                highest, scratch.weights + group * kRoles * kWeightHalves,
                                statistics);
  }
  return statistics;
}

template <typename T>
RRD_INLINE void fill(T* to, int64_t count, T value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

RRD_INLINE void multiply_add(float* to, Vec<float> factor, Vec<float> term) {
  store<float>(to, load(to) * factor + term);
}

template <bool kBounded, Sums kSums>
void attend_rows(const AttentionTask<float>& task) {
  const MemoryView& memory = task.memory;
  const int64_t columns = matrix_dim(memory.dim);
  const int64_t queries = task.panels * kRoles * kLanes;
  const Scratch scratch(task.scratch, memory.dim, task.panels);
  const Partial<float>& partial = task.partial;
  fill(partial.sum, queries, 0.f);
  fill(partial.shift, queries, kBounded ? 0.f : -std::numeric_limits<float>::max());
  constexpr bool kNeedGrad = kSums == Sums::kRows;
  const Output outputs = output_of(task, scratch);
  if (kNeedGrad) fill(outputs.data, task.panels * outputs.panel_floats, 0.f);
  if (!kNeedGrad) fill(partial.cross, task.panels * kLanes, 0.f);

  const int64_t tile = row_tile(columns);
  for (int64_t row = task.row_begin; row < task.row_end; row += tile) {
    const int64_t left = task.row_end - row;
    const Rows rows = load_rows(memory, row, left < tile ? left : tile, scratch.rows);
    if (kNeedGrad) arrange_rows(rows, columns, scratch.arranged);
    Prefetch prefetch(memory, row + rows.count, task.row_end, tile, task.panels * rows.groups);
    for (int64_t panel = 0; panel < task.panels; ++panel) {
      const uint16_t* packed =
          static_cast<const uint16_t*>(task.queries) + panel * columns * kRoles * kLanes;
      float* output = outputs.data + panel * outputs.panel_floats;
      float* sum = partial.sum + panel * kRoles * kLanes;
      Vec<float> factor[kRoles] = {broadcast(1.f), broadcast(1.f)};
      Statistics statistics;
      if constexpr (kBounded) {
        statistics = bounded_tile<kSums>(rows, packed, columns, scratch, prefetch);
      } else {
        statistics = online_tile<kSums>(rows, packed, columns, scratch, prefetch,
                                        partial.shift + panel * kRoles * kLanes, factor);
        if (kNeedGrad) rescale(output, memory.dim, factor);
      }
      multiply_add(sum, factor[kStudent], statistics.sum[kStudent]);
      multiply_add(sum + kLanes, factor[kTeacher], statistics.sum[kTeacher]);
      if constexpr (kNeedGrad) {
        add_output(scratch, rows.groups, memory.dim, output);
      } else {
        multiply_add(partial.cross + panel * kLanes, factor[kTeacher], statistics.cross);
      }
    }
  }
}

template <Sums kSums>
void attend_sums(const AttentionTask<float>& task) {
  return task.bounded ? attend_rows<true, kSums>(task) : attend_rows<false, kSums>(task);
}

void attend_task(const AttentionTask<float>& task) {
  switch (task.sums) {
    case Sums::kRows:
      return attend_sums<Sums::kRows>(task);
    case Sums::kCross:
      return attend_sums<Sums::kCross>(task);
    case Sums::kRatio:
      return attend_sums<Sums::kRatio>(task);
  }
}
