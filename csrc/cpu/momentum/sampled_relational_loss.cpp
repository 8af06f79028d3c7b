// sampled_relational_loss_forward and estimate_normalizers_ on the CPU.
//
// Method dense multiplies all rows of the memories and picks the sampled similarities; gather reads
// the sampled rows one by one. Then come each sample's softmaxes, and its gradient by that method.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/kernels/momentum.h"
#include "cpu/kernels/select.h"
#include "cpu/momentum/indices.h"
#include "cpu/parallel.h"
#include "cpu/tensors.h"
#include "operators.h"

namespace rrd::cpu {
namespace {

template <typename T>
struct Views {
  at::Tensor rows_s, rows_t;  // [B, dim] in T
  at::Tensor unit_s, unit_t;  // [B + 2 * lanes, padded_dim] in T, after normalize
  Buffer<T> norm;             // [2, B]
  at::Tensor memory_v1, memory_v2, index;

  const T* student(int64_t i) const { return unit_s.const_data_ptr<T>() + i * unit_s.stride(0); }
  const T* teacher(int64_t i) const { return unit_t.const_data_ptr<T>() + i * unit_t.stride(0); }
  const int64_t* wanted(int64_t i) const {
    return index.const_data_ptr<int64_t>() + i * index.size(1);
  }
  int64_t batch() const { return index.size(0); }
  int64_t count() const { return index.size(1); }
  int64_t rows() const { return memory_v1.size(0); }
  int64_t dim() const { return memory_v1.size(1); }
};

template <typename T>
at::Tensor room_for_unit_rows(const at::Tensor& rows) {
  const auto& kernel = select_kernel<T>(false);
  // Extra rows of zeros fill the last panel.
  const int64_t batch = rows.size(0), extra = kRoles * kernel.lanes;
  at::Tensor unit = at::empty({batch + extra, kernel.padded_dim(rows.size(1))}, rows.options());
  unit.narrow(0, batch, extra).zero_();
  return unit;
}

template <typename T>
Views<T> views_of(const at::Tensor& z_s, const at::Tensor& z_t, const at::Tensor& memory_v1,
                  const at::Tensor& memory_v2, const at::Tensor& contrast_idx) {
  const auto type = c10::CppTypeToScalarType<T>::value;
  const at::Tensor rows_s = z_s.to(type).contiguous(), rows_t = z_t.to(type).contiguous();
  return {rows_s,
          rows_t,
          room_for_unit_rows<T>(rows_s),
          room_for_unit_rows<T>(rows_t),
          Buffer<T>(2 * z_s.size(0)),
          memory_v1,
          memory_v2,
          contrast_idx.contiguous()};
}

// A phase: the unit rows of both views.
template <typename T>
void normalize(Worker& worker, const Views<T>& views) {
  const auto& kernel = select_kernel<T>(false);
  const int64_t batch = views.batch(), dim = views.dim();
  worker.run_ranges(batch, kSamples, [&](int64_t begin, int64_t end) {
    const auto of_view = [&](const at::Tensor& rows, const at::Tensor& unit, T* norm) {
      kernel.normalize(rows.const_data_ptr<T>() + begin * dim, end - begin, dim,
                       unit.mutable_data_ptr<T>() + begin * unit.stride(0), norm + begin);
    };
    of_view(views.rows_s, views.unit_s, views.norm.data);
    of_view(views.rows_t, views.unit_t, views.norm.data + batch);
  });
}

// Samples per block of dense, which stores their similarities to all rows at once.
template <typename T>
int64_t dense_block(int64_t batch, int64_t rows) {
  constexpr int64_t kBlockBytes = 32 << 20;  // of both views
  return std::clamp<int64_t>(kBlockBytes / (2 * rows * int64_t(sizeof(T))), 1, batch);
}

// What dense and gather cost, by nanoseconds measured at D = 128 (docs/decisions.md; all grow with
// D alike). kRow: reading a row, once for each block of samples. kRowAndSample: its product with
// one sample. kWanted: one gathered row.
constexpr double kMeasuredDim = 128;

template <typename T>
double dense_cost(int64_t batch, int64_t rows) {
  constexpr double kRow = 200, kRowAndSample = 6;
  const double blocks = std::ceil(double(batch) / double(dense_block<T>(batch, rows)));
  return double(rows) * (kRow * blocks + kRowAndSample * double(batch));
}

inline double gather_cost(int64_t batch, int64_t count) {
  constexpr double kWanted = 92;
  return kWanted * double(batch) * double(count);
}

struct Settings {
  double tau_s, tau_t, nce_t;
  std::optional<at::Tensor> normalizers;
  int64_t reduction;
  bool need_grad;
};

RelateTask relate_task(const Settings& settings, int64_t count) {
  RelateTask task{};
  task.count = count;
  task.need_grad = settings.need_grad;
  task.exponential = settings.normalizers.has_value();
  task.rate = kLog2E / settings.nce_t;
  task.student_scale = 1 / settings.tau_s;
  task.teacher_scale = 1 / settings.tau_t;
  task.derivative = task.exponential ? 1 / settings.nce_t : 1 / settings.tau_s;
  if (task.exponential) {
    const at::Tensor z = settings.normalizers->to(at::kDouble).contiguous();
    const double* values = z.const_data_ptr<double>();
    task.student_scale /= values[0] > 0 ? values[0] : std::nan("");
    task.teacher_scale /= values[1] > 0 ? values[1] : std::nan("");
  }
  return task;
}

// One thread's arrays for one sample.
template <typename T>
struct Workspace {
  Workspace(int64_t padded_count, int64_t dim)
      : values(3 * padded_count + dim), rows(2 * (dim + 64)), stride(padded_count) {}
  double* student() const { return values.data; }
  double* teacher() const { return values.data + stride; }
  double* scratch() const { return values.data + 2 * stride; }
  double* output() const { return values.data + 3 * stride; }
  Buffer<double> values;
  Buffer<T> rows;
  int64_t stride;
};

// Gradient of sample i from sum_p w_p v2_p, through the normalisation.
template <typename T>
void write_gradient(const Views<T>& views, int64_t i, const double* output, double sample_weight,
                    T* grad) {
  const T* unit = views.student(i);
  const double norm = double(views.norm.data[i]);
  const bool clamped = norm <= kNormEps;  // then z / eps is linear in z
  double radial = 0;
  if (!clamped) {
    for (int64_t d = 0; d < views.dim(); ++d) radial += output[d] * double(unit[d]);
  }
  const double scale = sample_weight / (clamped ? kNormEps : norm);
  for (int64_t d = 0; d < views.dim(); ++d) {
    grad[d] = T((output[d] - radial * double(unit[d])) * scale);
  }
}

template <typename T>
void gather(const Views<T>& views, const RelateTask& settings, double sample_weight, double* losses,
            T* grad) {
  const auto& kernel = select_momentum_kernel<T>();
  const MemoryView v1 = view_of(views.memory_v1), v2 = view_of(views.memory_v2);
  const double work =
      gather_cost(views.batch(), views.count()) * double(views.dim()) / kMeasuredDim;
  in_phases(work, views.batch(), [&](Worker& worker) {
    normalize(worker, views);
    const Workspace<T> space(kernel.padded_count(views.count()), views.dim());
    worker.run(views.batch(), [&](int64_t i) {
      const int64_t* wanted = views.wanted(i);
      RelateTask task = settings;
      task.student = space.student();
      task.teacher = space.teacher();
      task.scratch = space.scratch();
      kernel.similarities(v2, wanted, task.count, views.student(i), space.rows.data, task.student);
      kernel.similarities(v1, wanted, task.count, views.teacher(i), space.rows.data, task.teacher);
      losses[i] = kernel.relate(task);
      if (!task.need_grad) return;
      kernel.weighted_rows(v2, wanted, task.student, task.count, space.rows.data, space.output());
      write_gradient<T>(views, i, space.output(), sample_weight, grad + i * views.dim());
    });
  });
}

// Packs unit rows from `first` on by AttentionKernel::pack, 2 * lanes samples in a panel.
template <typename T>
void pack_panel(const at::Tensor& unit, int64_t first, int64_t panel, int64_t dim, char* packed) {
  const auto& kernel = select_kernel<T>(false);
  const int64_t stride = unit.stride(0);
  const T* samples = unit.const_data_ptr<T>() + (first + panel * kRoles * kernel.lanes) * stride;
  kernel.pack(
      {{samples, kernel.lanes, T(1)}, {samples + kernel.lanes * stride, kernel.lanes, T(1)}}, dim,
      packed + panel * kernel.panel_bytes(dim));
}

template <typename T>
void dense(const Views<T>& views, const RelateTask& settings, double sample_weight, double* losses,
           T* grad) {
  const auto& kernel = select_momentum_kernel<T>();
  const int64_t rows = views.rows(), dim = views.dim();
  const int64_t block = dense_block<T>(views.batch(), rows);
  const int64_t width = kRoles * select_kernel<T>(false).lanes;
  const int64_t padded = select_kernel<T>(false).padded_dim(dim);
  const MemoryView v1 = view_of(views.memory_v1), v2 = view_of(views.memory_v2);
  const Buffer<T> all_s(block * rows), all_t(block * rows);
  // The splits are the same for one to four threads, as in cpu/fifo/attention_pass.h.
  constexpr int64_t kSplitRows = 512, kRowsAtOnce = 960;
  const int64_t most = 2 * std::max<int64_t>(4, at::get_num_threads());
  const int64_t splits = std::clamp<int64_t>(rows / kSplitRows, 1, most);
  const int64_t split_rows = (rows + splits - 1) / splits;
  const Buffer<T> outputs(settings.need_grad ? splits * block * padded : 0);
  const int64_t most_panels = ranges(block, width),
                panel_bytes = select_kernel<T>(false).panel_bytes(dim);
  const Buffer<char> student(most_panels * panel_bytes), teacher(most_panels * panel_bytes);
  const double work = dense_cost<T>(views.batch(), rows) * double(dim) / kMeasuredDim;
  in_phases(work, std::max(ranges(rows, kRowsAtOnce), block), [&](Worker& worker) {
    normalize(worker, views);
    const Workspace<T> space(kernel.padded_count(views.count()), dim);
    const Buffer<T> room(kernel.tile_room(dim));
    for (int64_t first = 0; first < views.batch(); first += block) {
      const int64_t count = std::min(block, views.batch() - first);
      worker.run(ranges(count, width), [&](int64_t panel) {
        pack_panel<T>(views.unit_s, first, panel, dim, student.data);
        pack_panel<T>(views.unit_t, first, panel, dim, teacher.data);
      });
      worker.run_ranges(rows, kRowsAtOnce, [&](int64_t begin, int64_t end) {
        kernel.all_similarities(v2, begin, end, student.data, count, all_s.data, rows, room.data);
        kernel.all_similarities(v1, begin, end, teacher.data, count, all_t.data, rows, room.data);
      });
      worker.run(count, [&](int64_t i) {
        const int64_t* wanted = views.wanted(first + i);
        RelateTask task = settings;
        task.student = space.student();
        task.teacher = space.teacher();
        task.scratch = space.scratch();
        T* row = all_s.data + i * rows;
        kernel.pick(row, wanted, task.count, task.student);
        kernel.pick(all_t.data + i * rows, wanted, task.count, task.teacher);
        losses[first + i] = kernel.relate(task);
        if (!task.need_grad) return;
        std::fill_n(row, rows, T(0));
        for (int64_t p = 0; p < task.count; ++p) row[wanted[p]] += T(task.student[p]);
      });
      if (!settings.need_grad) continue;
      worker.run_ranges(rows, split_rows, [&](int64_t begin, int64_t end) {
        kernel.all_weighted_rows(v2, begin, end, all_s.data, rows, count,
                                 outputs.data + begin / split_rows * block * padded, room.data);
      });
      worker.run(count, [&](int64_t i) {
        double* output = space.output();
        std::fill_n(output, dim, 0.0);
        for (int64_t split = 0; split * split_rows < rows; ++split) {
          const T* part = outputs.data + (split * block + i) * padded;
          for (int64_t d = 0; d < dim; ++d) output[d] += double(part[d]);
        }
        write_gradient<T>(views, first + i, output, sample_weight, grad + (first + i) * dim);
      });
    }
  });
}

template <typename T>
LossAndGrad forward(const Views<T>& views, const Settings& settings, c10::string_view method) {
  const auto options = views.unit_s.options();
  const int64_t batch = views.batch();
  at::Tensor losses = at::empty({batch}, options);
  at::Tensor grad = at::empty({settings.need_grad ? batch : 0, views.dim()}, options);
  if (batch != 0) {
    const RelateTask task = relate_task(settings, views.count());
    std::vector<double> each(batch);
    const double sample_weight = sample_weight_of(settings.reduction, batch);
    T* grad_data = settings.need_grad ? grad.mutable_data_ptr<T>() : nullptr;
    const bool all = method == "dense" ||
                     (method == "auto" &&
                      dense_cost<T>(batch, views.rows()) <= gather_cost(batch, views.count()));
    (all ? dense<T> : gather<T>)(views, task, sample_weight, each.data(), grad_data);
    std::transform(each.begin(), each.end(), losses.mutable_data_ptr<T>(),
                   [](double loss) { return T(loss); });
  }
  return {reduce<T>(losses, settings.reduction), grad};
}

// rrd_kernels.functional checks everything but the indices itself; the other checks are for direct
// callers of the operators.
void check(const at::Tensor& z_s, const at::Tensor& z_t, const at::Tensor& memory_v1,
           const at::Tensor& memory_v2, const at::Tensor& contrast_idx) {
  TORCH_CHECK_VALUE(z_s.dim() == 2 && z_s.sizes() == z_t.sizes() && memory_v1.dim() == 2 &&
                        memory_v1.sizes() == memory_v2.sizes() &&
                        memory_v1.size(1) == z_s.size(1) && memory_v1.numel() > 0 &&
                        contrast_idx.dim() == 2 && contrast_idx.size(0) == z_s.size(0) &&
                        contrast_idx.scalar_type() == at::kLong,
                    "sampled_relational_loss: shapes ", z_s.sizes(), ", ", z_t.sizes(),
                    ", memories ", memory_v1.sizes(), " and ", memory_v2.sizes(), " and indices ",
                    contrast_idx.sizes(), " do not fit");
  check_indices("contrast_idx", contrast_idx, memory_v1.size(0));
}

void check_normalizers(const at::Tensor& normalizers) {
  TORCH_CHECK_VALUE(normalizers.dim() == 1 && normalizers.size(0) == 2,
                    "normalizers must be [2]; got ", normalizers.sizes());
}

LossAndGrad sampled_relational_loss_forward(
    const at::Tensor& z_s, const at::Tensor& z_t, const at::Tensor& memory_v1,
    const at::Tensor& memory_v2, const at::Tensor& contrast_idx,
    const std::optional<at::Tensor>& normalizers, double tau_s, double tau_t, double nce_t,
    Precision precision, int64_t reduction, c10::string_view method, bool need_grad) {
  check(z_s, z_t, memory_v1, memory_v2, contrast_idx);
  if (normalizers) check_normalizers(*normalizers);
  TORCH_CHECK_VALUE(contrast_idx.size(1) > 0,
                    "sampled_relational_loss: contrast_idx must name at least one row for each "
                    "sample; got P = 0");
  TORCH_CHECK_VALUE(method == "auto" || method == "dense" || method == "gather",
                    "sampled_relational_loss: method must be 'auto', 'dense' or 'gather'; got '",
                    method, "'");
  const Settings settings{tau_s, tau_t, nce_t, normalizers, reduction, need_grad};
  if (precision == "float64") {
    return forward(views_of<double>(z_s, z_t, memory_v1, memory_v2, contrast_idx), settings,
                   method);
  }
  return forward(views_of<float>(z_s, z_t, memory_v1, memory_v2, contrast_idx), settings, method);
}

// Sets each view's normalizer that is not yet set: rows times the mean of exp(similarity / nce_t)
// over its sampled rows.
template <typename T>
void estimate(const at::Tensor& normalizers, const Views<T>& views, double nce_t) {
  const auto& kernel = select_momentum_kernel<T>();
  const at::Tensor* const units[2] = {&views.unit_s, &views.unit_t};
  const MemoryView memories[2] = {view_of(views.memory_v2), view_of(views.memory_v1)};
  std::vector<int64_t> wanted;
  for (int64_t view = 0; view < 2; ++view) {
    const at::Tensor slot = normalizers.select(0, view);
    if (slot.item<double>() < 0) wanted.push_back(view);
  }
  const int64_t batch = views.batch(), tasks = batch * int64_t(wanted.size());
  std::vector<double> sums(tasks);
  in_phases(kGathered * double(views.index.numel() * views.dim()), tasks, [&](Worker& worker) {
    normalize(worker, views);
    const Workspace<T> space(kernel.padded_count(views.count()), views.dim());
    worker.run(tasks, [&](int64_t task) {
      const int64_t i = task % batch, view = wanted[task / batch];
      const T* row = units[view]->const_data_ptr<T>() + i * units[view]->stride(0);
      kernel.similarities(memories[view], views.wanted(i), views.count(), row, space.rows.data,
                          space.student());
      sums[task] = kernel.exponential_sum(space.student(), views.count(), kLog2E / nce_t);
    });
  });
  for (size_t k = 0; k < wanted.size(); ++k) {
    const auto begin = sums.begin() + int64_t(k) * batch;
    const double mean = std::accumulate(begin, begin + batch, 0.0) / double(views.index.numel());
    const double value = mean * double(views.rows());
    if (std::isfinite(value)) normalizers.select(0, wanted[k]).fill_(value);
  }
}

void estimate_normalizers(at::Tensor& normalizers, const at::Tensor& z_s, const at::Tensor& z_t,
                          const at::Tensor& memory_v1, const at::Tensor& memory_v2,
                          const at::Tensor& contrast_idx, double nce_t) {
  check(z_s, z_t, memory_v1, memory_v2, contrast_idx);
  check_normalizers(normalizers);
  if (contrast_idx.numel() == 0 || !normalizers.lt(0).any().item<bool>()) return;
  bool wide = false;
  for (const at::Tensor* tensor : {&z_s, &z_t, &memory_v1, &memory_v2}) {
    wide |= tensor->scalar_type() == at::kDouble;
  }
  if (wide) {
    estimate(normalizers, views_of<double>(z_s, z_t, memory_v1, memory_v2, contrast_idx), nce_t);
  } else {
    estimate(normalizers, views_of<float>(z_s, z_t, memory_v1, memory_v2, contrast_idx), nce_t);
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, CPU, m) {
  m.impl("sampled_relational_loss_forward", sampled_relational_loss_forward);
  m.impl("estimate_normalizers_", estimate_normalizers);
}

}  // namespace rrd::cpu
