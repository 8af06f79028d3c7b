// sampled_relational_loss_forward on the CPU: each sample's softmaxes over its columns, and its
// gradient.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "cpu/momentum/sampled.h"
#include "operators.h"

namespace rrd::cpu {
namespace {

constexpr Costs kCosts{.row = 200, .row_and_sample = 6, .wanted = 92};

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
    task.student_scale /= normalizer_of(*settings.normalizers, 0);
    task.teacher_scale /= normalizer_of(*settings.normalizers, 1);
  }
  return task;
}

// One thread's arrays for one sample.
struct Workspace {
  Workspace(int64_t padded_count, int64_t dim)
      : values(3 * padded_count + dim), stride(padded_count) {}
  double* output() const { return values.data + 3 * stride; }
  RelateTask of(RelateTask settings) const {
    settings.student = values.data;
    settings.teacher = values.data + stride;
    settings.scratch = values.data + 2 * stride;
    return settings;
  }
  Buffer<double> values;
  int64_t stride;
};

template <typename T>
void gather(const Views<T>& views, const RelateTask& settings, double sample_weight, double* losses,
            T* grad) {
  const auto& kernel = select_momentum_kernel<T>();
  const View<T>&student = views.student, &teacher = views.teacher;
  const MemoryView v1 = view_of(teacher.memory), v2 = view_of(student.memory);
  in_phases(kCosts.gather(views), views.batch(), [&](Worker& worker) {
    views.normalize(worker);
    const Workspace space(kernel.padded_count(views.count()), views.dim());
    const Buffer<T> room(kernel.gather_room(views.dim()));
    worker.run(views.batch(), [&](int64_t i) {
      const int64_t* wanted = views.wanted(i);
      const RelateTask task = space.of(settings);
      kernel.similarities(v2, wanted, task.count, student.row(i), room.data, task.student);
      kernel.similarities(v1, wanted, task.count, teacher.row(i), room.data, task.teacher);
      losses[i] = kernel.relate(task);
      if (!task.need_grad) return;
      kernel.weighted_rows(v2, wanted, task.student, task.count, room.data, space.output());
      student.write_gradient(i, space.output(), sample_weight, grad + i * views.dim());
    });
  });
}

template <typename T>
void dense(const Views<T>& views, const RelateTask& settings, double sample_weight, double* losses,
           T* grad) {
  const auto& kernel = select_momentum_kernel<T>();
  const int64_t rows = views.rows(), dim = views.dim();
  const DenseBlocks<T> blocks(views.batch(), rows, dim);
  const DenseView<T> student(views.student, blocks, settings.need_grad);
  const DenseView<T> teacher(views.teacher, blocks, false);
  const int64_t tasks = std::max(ranges(rows, blocks.kRowsAtOnce), blocks.samples);
  in_phases(kCosts.dense(views), tasks, [&](Worker& worker) {
    views.normalize(worker);
    const Workspace space(kernel.padded_count(views.count()), dim);
    const Buffer<T> room(kernel.tile_room(dim));
    for (int64_t first = 0; first < views.batch(); first += blocks.samples) {
      const int64_t count = std::min(blocks.samples, views.batch() - first);
      worker.run(ranges(count, blocks.width), [&](int64_t panel) {
        student.pack_panel(first, panel);
        teacher.pack_panel(first, panel);
      });
      worker.run_ranges(rows, blocks.kRowsAtOnce, [&](int64_t begin, int64_t end) {
        student.multiply(begin, end, count, room.data);
        teacher.multiply(begin, end, count, room.data);
      });
      worker.run(count, [&](int64_t i) {
        const int64_t* wanted = views.wanted(first + i);
        const RelateTask task = space.of(settings);
        student.pick(i, wanted, task.count, task.student);
        teacher.pick(i, wanted, task.count, task.teacher);
        losses[first + i] = kernel.relate(task);
        if (task.need_grad) student.scatter(i, wanted, task.count, task.student);
      });
      if (!settings.need_grad) continue;
      student.write_gradients(worker, first, count, sample_weight, room.data, space.output(), grad);
    }
  });
}

template <typename T>
LossAndGrad forward(const Views<T>& views, const Settings& settings, c10::string_view method) {
  const auto options = views.student.unit.options();
  const int64_t batch = views.batch();
  const bool all = kCosts.prefer_dense(views, method);
  at::Tensor losses = at::empty({batch}, options);
  at::Tensor grad = at::empty({settings.need_grad ? batch : 0, views.dim()}, options);
  if (batch != 0) {
    const RelateTask task = relate_task(settings, views.count());
    std::vector<double> each(batch);
    const double sample_weight = sample_weight_of(settings.reduction, batch);
    T* grad_data = settings.need_grad ? grad.mutable_data_ptr<T>() : nullptr;
    (all ? dense<T> : gather<T>)(views, task, sample_weight, each.data(), grad_data);
    std::copy(each.begin(), each.end(), losses.mutable_data_ptr<T>());
  }
  return {reduce<T>(losses, settings.reduction), grad};
}

LossAndGrad sampled_relational_loss_forward(
    const at::Tensor& z_s, const at::Tensor& z_t, const at::Tensor& memory_v1,
    const at::Tensor& memory_v2, const at::Tensor& contrast_idx,
    const std::optional<at::Tensor>& normalizers, double tau_s, double tau_t, double nce_t,
    Precision precision, int64_t reduction, c10::string_view method, bool need_grad) {
  check_sampled(z_s, z_t, memory_v1, memory_v2, contrast_idx, normalizers);
  const Settings settings{tau_s, tau_t, nce_t, normalizers, reduction, need_grad};
  if (precision == "float64") {
    return forward(Views<double>(z_s, z_t, memory_v1, memory_v2, contrast_idx), settings, method);
  }
  return forward(Views<float>(z_s, z_t, memory_v1, memory_v2, contrast_idx), settings, method);
}

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, CPU, m) {
  m.impl("sampled_relational_loss_forward", sampled_relational_loss_forward);
}

}  // namespace rrd::cpu
