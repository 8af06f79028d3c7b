// The pass over the memory: splits the work into tasks and runs them.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "cpu/kernels/select.h"
#include "cpu/parallel.h"
#include "cpu/tensors.h"

namespace rrd::cpu {

// The arguments of a loss besides its tensors; csrc/schemas.cpp explains them.
struct Terms {
  double tau_s, tau_t;
  bool unit_memory, own_pair, kl;

  // The networks whose queries the pass multiplies: with a hard target the student alone.
  int roles() const { return tau_t == 0 ? 1 : kRoles; }
};

// Largest |logit| with a memory of unit rows, in units of log 2. The factor 1 + 1/64 allows for
// rows that rounding has made longer than 1.
inline double logit_bound(const Terms& terms) {
  const double tau = terms.roles() == 1 ? terms.tau_s : std::min(terms.tau_s, terms.tau_t);
  return kLog2E / tau * (1.0 + 1.0 / 64);
}

// Whether float32 holds the largest number of the bounded path: the loss's sum of 2^a b over
// `rows` rows. a and b are the teacher's and the student's logit, up to `bound` in size.
inline bool fits_float32(double bound, int64_t rows) {
  return bound + std::log2(double(rows)) + std::log2(std::max(bound, 1.0)) <= 126.0;
}

// Whether bfloat16 products may take the bounded path: their units flush sums below 2^-126 to zero.
// Weights are at least 2^-bound, here 2^-110. So each element of weight * row loses at most 2^-16
// of the weight, and the row at most 2^-16 sqrt(dim) of it. Up to dim = 2^14 that is 2^-9, the
// rounding error of a bfloat16 weight.
inline bool survives_flushing(double bound) { return bound <= 126.0 - 16.0; }

// A task is one block of panels against one split of the memory. Each task has partials of its
// own, so results do not depend on which thread runs it.
struct Plan {
  int64_t panels;
  int64_t block_panels;
  int64_t blocks;
  int64_t splits;
  int64_t split_rows;
};

template <typename T>
Plan make_plan(const AttentionKernel<T>& kernel, int64_t queries, int64_t dim, int64_t rows) {
  // A block's outputs, packed queries and weights stay within a core's second-level cache.
  constexpr int64_t kBlockBytes = 1 << 20;
  constexpr int64_t kSplitRows = 512;  // fewer would not pay for the merge
  const int64_t panel_bytes =
      kernel.panel_bytes(dim) + kRoles * kernel.lanes * kernel.padded_dim(dim) * int64_t(sizeof(T));
  Plan plan;
  plan.panels = (queries + kRoles * kernel.lanes - 1) / (kRoles * kernel.lanes);
  plan.block_panels = std::clamp<int64_t>(kBlockBytes / panel_bytes, 1, kernel.block_panels);
  plan.block_panels = std::min(plan.block_panels, plan.panels);
  plan.blocks = (plan.panels + plan.block_panels - 1) / plan.block_panels;
  // Two tasks per thread, for at least four threads: eight tasks balance well on a busy machine,
  // and one to four threads give the same result. If the outputs of all splits would exceed
  // kPartialBytes: fewer tasks, but at least one per thread.
  constexpr int64_t kPartialBytes = 2 << 20;
  const int64_t threads = std::max<int64_t>(4, at::get_num_threads());
  const int64_t split_bytes =
      plan.panels * kRoles * kernel.lanes * kernel.padded_dim(dim) * int64_t(sizeof(T));
  const int64_t tasks = (2 * threads + plan.blocks - 1) / plan.blocks;
  const int64_t most =
      std::max((threads + plan.blocks - 1) / plan.blocks, kPartialBytes / split_bytes);
  plan.splits = std::clamp<int64_t>(rows / kSplitRows, 1, std::min(tasks, most));
  plan.split_rows = (rows + plan.splits - 1) / plan.splits;
  plan.splits = (rows + plan.split_rows - 1) / plan.split_rows;
  return plan;
}

template <typename T>
struct Queries {
  Queries(const AttentionKernel<T>& kernel, int64_t batch, int64_t dim, int64_t panels)
      : unit(kRoles * batch * kernel.padded_dim(dim)),
        norm(kRoles * batch),
        packed(panels * kernel.panel_bytes(dim)) {}
  Buffer<T> unit;       // [2, B, padded_dim]
  Buffer<T> norm;       // [2, B]
  Buffer<char> packed;  // [panels, panel_bytes]
};

template <typename T>
void prepare(Worker& worker, const AttentionKernel<T>& kernel, const at::Tensor& z_s,
             const at::Tensor& z_t, int64_t panels, const Terms& terms, const Queries<T>& queries) {
  const int64_t batch = z_s.size(0), dim = z_s.size(1), padded = kernel.padded_dim(dim);
  const T* rows[kRoles] = {z_s.const_data_ptr<T>(), z_t.const_data_ptr<T>()};
  const bool hard = terms.roles() == 1;
  const int64_t samples = hard ? kRoles * kernel.lanes : kernel.lanes;  // of a panel
  worker.run(panels, [&](int64_t panel) {
    const int64_t first = panel * samples, count = std::min(samples, batch - first);
    const T* unit[kRoles];
    for (const int role : {kStudent, kTeacher}) {
      const int64_t at = role * batch + first;
      kernel.normalize(rows[role] + first * dim, count, dim, queries.unit.data + at * padded,
                       queries.norm.data + at);
      unit[role] = queries.unit.data + at * padded;
    }
    const int64_t here = std::min(count, kernel.lanes);
    const PanelHalf<T> student{unit[kStudent], here, T(kLog2E / terms.tau_s)};
    const PanelHalf<T> other =
        hard ? PanelHalf<T>{student.unit + here * padded, count - here, student.scale}
             : PanelHalf<T>{unit[kTeacher], here, T(kLog2E / terms.tau_t)};
    kernel.pack({student, other}, dim, queries.packed.data + panel * kernel.panel_bytes(dim));
  });
}

template <typename T>
struct Partials {
  Partials(const AttentionKernel<T>& kernel, const Plan& plan, int64_t dim, bool need_grad)
      : queries(plan.splits * plan.panels * kRoles * kernel.lanes),
        output(need_grad ? queries * kernel.padded_dim(dim) : 0),
        statistics(queries * 2 + (need_grad ? 0 : queries / kRoles)),
        all{need_grad ? output.data : nullptr, statistics.data, statistics.data + queries,
            need_grad ? nullptr : statistics.data + 2 * queries} {}

  // Whether every sum of weights is possible for logits within `bound`. The bounded path trusts the
  // caller's promise of unit rows. This cheap check finds a false promise, or a NaN, before an
  // overflowed sum is used.
  bool within(double bound, const Plan& plan, int64_t rows) const {
    const int64_t each = queries / plan.splits;
    for (int64_t split = 0; split < plan.splits; ++split) {
      const double count = double(std::min(plan.split_rows, rows - split * plan.split_rows));
      const double highest = count * std::exp2(bound), lowest = count * std::exp2(-bound);
      const T* sums = all.sum + split * each;
      if (!std::all_of(sums, sums + each, [=](T s) { return s >= lowest && s <= highest; })) {
        return false;
      }
    }
    return true;
  }

  int64_t queries;
  Buffer<T> output;
  Buffer<T> statistics;
  Partial<T> all;
};

template <typename T>
Partial<T> partial_at(const Partial<T>& all, int64_t panel, int64_t lanes, int64_t padded) {
  const int64_t query = panel * kRoles * lanes;
  return {all.output == nullptr ? nullptr : all.output + query * padded, all.shift + query,
          all.sum + query, all.cross == nullptr ? nullptr : all.cross + panel * lanes};
}

// Rows per chunk. A task's sums restart with each chunk: one sum over a long split would round too
// often, once per tile. kChunkRows is a whole number of tiles for every kernel. bfloat16 products
// use one chunk: rounding their weights already errs by more.
template <typename T>
int64_t chunk_rows(const AttentionKernel<T>& kernel, const Plan& plan) {
  constexpr int64_t kChunkRows = 3072;
  return kernel.rounded_queries ? plan.split_rows : std::min(kChunkRows, plan.split_rows);
}

// total += more. Each has its own shift.
template <typename T>
void add_partial(const Partial<T>& more, int64_t queries, int64_t lanes, int64_t padded,
                 const Partial<T>& total) {
  for (int64_t query = 0; query < queries; ++query) {
    const T shift = std::max(total.shift[query], more.shift[query]);
    const T kept = std::exp2(total.shift[query] - shift);
    const T added = std::exp2(more.shift[query] - shift);
    const auto add = [&](T& to, T from) { to = to * kept + from * added; };
    total.shift[query] = shift;
    add(total.sum[query], more.sum[query]);
    if (total.output == nullptr) {
      const int64_t panel = query / (kRoles * lanes), sample = query % lanes;
      const bool teacher = query / lanes % kRoles == kTeacher;
      if (teacher) add(total.cross[panel * lanes + sample], more.cross[panel * lanes + sample]);
    } else {
      T* to = total.output + query * padded;
      const T* from = more.output + query * padded;
      for (int64_t d = 0; d < padded; ++d) add(to[d], from[d]);
    }
  }
}

// Runs one task. The first chunk's sums go to `total`; the others go to `later` and are then added.
template <typename T>
void attend_chunks(const AttentionKernel<T>& kernel, AttentionTask<T> task, int64_t chunk,
                   const Partial<T>& later, const Partial<T>& total) {
  const int64_t begin = task.row_begin, end = task.row_end;
  for (int64_t row = begin; row < end; row += chunk) {
    task.row_begin = row;
    task.row_end = std::min(end, row + chunk);
    task.partial = row == begin ? total : later;
    kernel.attend(task);
    if (row > begin) {
      add_partial(later, task.panels * kRoles * kernel.lanes, kernel.lanes,
                  kernel.padded_dim(task.memory.dim), total);
    }
  }
}

template <typename T>
void attend(Worker& worker, const AttentionKernel<T>& kernel, const Plan& plan,
            const MemoryView& memory, const Queries<T>& queries, bool bounded, Sums sums,
            const Partial<T>& partial) {
  const int64_t chunk = chunk_rows(kernel, plan);
  Plan block = plan;  // sizes the buffer of later chunks' sums
  block.splits = 1;
  block.panels = chunk < plan.split_rows ? plan.block_panels : 0;  // none for a single chunk
  const Buffer<char> scratch(kernel.scratch_bytes(memory.dim, plan.block_panels));
  const Partials<T> later(kernel, block, memory.dim, partial.output != nullptr);
  worker.run(plan.blocks * plan.splits, [&](int64_t i) {
    const int64_t split = i / plan.blocks;
    const int64_t panel = i % plan.blocks * plan.block_panels;
    AttentionTask<T> task;
    task.memory = memory;
    task.row_begin = split * plan.split_rows;
    task.row_end = std::min(memory.rows, task.row_begin + plan.split_rows);
    task.queries = queries.packed.data + panel * kernel.panel_bytes(memory.dim);
    task.panels = std::min(plan.block_panels, plan.panels - panel);
    task.bounded = bounded;
    task.sums = sums;
    task.scratch = scratch.data;
    attend_chunks(kernel, task, chunk, later.all,
                  partial_at(partial, split * plan.panels + panel, kernel.lanes,
                             kernel.padded_dim(memory.dim)));
  });
}

// A whole pass over the memory: the queries of all samples, and their partials in every split.
// Then finish(begin, end) for ranges of samples.
template <typename T>
struct AttentionPass {
  AttentionPass(const at::Tensor& z_s, const at::Tensor& memory, const Terms& terms,
                bool bfloat16_products, bool need_grad)
      : terms(terms),
        kernel(select_kernel<T>(bfloat16_products)),
        plan(make_plan(kernel, terms.roles() * z_s.size(0), z_s.size(1), memory.size(0))),
        queries(kernel, z_s.size(0), z_s.size(1), plan.panels),
        partials(kernel, plan, z_s.size(1), need_grad) {}

  template <typename Finish>
  void run(const at::Tensor& z_s, const at::Tensor& z_t, const at::Tensor& memory,
           const Finish& finish) {
    const double bound = logit_bound(terms);
    const bool bounded = terms.unit_memory && fits_float32(bound, memory.size(0)) &&
                         (!kernel.rounded_queries || survives_flushing(bound));
    const bool need_grad = partials.all.output != nullptr;
    const Sums sums = need_grad ? Sums::kRows : terms.kl ? Sums::kRatio : Sums::kCross;
    const double products = terms.roles() * (need_grad ? 2 : 1);
    const double work = products * kMultiplyAdd * double(z_s.numel()) * double(memory.size(0));
    const MemoryView rows = view_of(memory);
    std::atomic<bool> again{false};
    in_phases(work, plan.blocks * plan.splits, [&](Worker& worker) {
      prepare(worker, kernel, z_s, z_t, plan.panels, terms, queries);
      attend(worker, kernel, plan, rows, queries, bounded, sums, partials.all);
      if (bounded) {
        worker.run(1, [&](int64_t) { again = !partials.within(bound, plan, memory.size(0)); });
        if (again) attend(worker, kernel, plan, rows, queries, false, sums, partials.all);
      }
      worker.run_ranges(z_s.size(0), kSamples, finish);
    });
  }

  Terms terms;
  const AttentionKernel<T>& kernel;
  Plan plan;
  Queries<T> queries;
  Partials<T> partials;
};

// For direct callers of the operators; rrd_kernels.functional checks everything itself.
inline void check_problem(const char* name, const at::Tensor& z_s, const at::Tensor& z_t,
                          const at::Tensor& memory, const Terms& terms) {
  TORCH_CHECK_VALUE(z_s.dim() == 2 && z_s.sizes() == z_t.sizes() && memory.dim() == 2 &&
                        memory.size(1) == z_s.size(1) && memory.numel() > 0,
                    name, ": shapes ", z_s.sizes(), ", ", z_t.sizes(), " and memory ",
                    memory.sizes(), " do not fit");
  TORCH_CHECK_VALUE(terms.tau_s > 0 && (terms.tau_t > 0 || (terms.tau_t == 0 && terms.own_pair)),
                    name, ": tau_s and tau_t must be positive, or tau_t zero with own_pair; got ",
                    terms.tau_s, " and ", terms.tau_t);
}

}  // namespace rrd::cpu
