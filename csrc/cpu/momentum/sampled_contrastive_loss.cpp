// sampled_contrastive_loss_forward on the CPU. The two views have nothing in common but the
// columns: a column's weight in the gradient depends on its own similarity alone, so that gather
// reads each sampled row once.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "cpu/momentum/sampled.h"
#include "operators.h"

namespace rrd::cpu {
namespace {

constexpr Costs kCosts{.row = 290, .row_and_sample = 13, .wanted = 42};

// The published constant, beside a probability in a denominator.
constexpr double kEps = 1e-7;

// One view of the loss: its settings, and where its results go.
template <typename T>
struct Side {
  Side(const View<T>& view, double z, double nce_t, int64_t columns, bool need_grad)
      : view(view),
        grad(at::empty({need_grad ? view.rows.size(0) : 0, view.dim()}, view.rows.options())),
        losses(view.rows.size(0)) {
    const double negatives = double(columns - 1), noise = negatives / double(view.memory.size(0));
    task = {kLog2E / nce_t, std::log2(z * (noise + kEps)), need_grad};
    // What a cross-entropy lacks: the published numerator of the negatives is without kEps.
    if (columns > 1) constant = negatives * std::log1p(kEps / noise);
  }

  void write_gradient(int64_t i, const double* output, double sample_weight) const {
    view.write_gradient(i, output, sample_weight, grad.mutable_data_ptr<T>() + i * view.dim());
  }

  const View<T>& view;
  ContrastTask task;
  at::Tensor grad;
  std::vector<double> losses;
  double constant = 0;
};

// gradient_weight: of a sample's loss in the reduced one, over nce_t.
template <typename T>
void gather(const Views<T>& views, const std::array<Side<T>*, 2>& sides, double gradient_weight) {
  const auto& kernel = select_momentum_kernel<T>();
  const int64_t batch = views.batch();
  in_phases(kCosts.gather(views), 2 * batch, [&](Worker& worker) {
    views.normalize(worker);
    const Buffer<T> room(kernel.gather_room(views.dim()));
    const Buffer<double> output(views.dim());
    worker.run(2 * batch, [&](int64_t task) {
      const int64_t i = task % batch;
      Side<T>& side = *sides[task / batch];
      side.losses[i] =
          kernel.contrast_rows(view_of(side.view.memory), views.wanted(i), views.count(),
                               side.view.row(i), side.task, room.data, output.data);
      if (side.task.need_grad) side.write_gradient(i, output.data, gradient_weight);
    });
  });
}

template <typename T>
void dense(const Views<T>& views, const std::array<Side<T>*, 2>& sides, double gradient_weight) {
  const auto& kernel = select_momentum_kernel<T>();
  const int64_t rows = views.rows(), columns = views.count();
  const DenseBlocks<T> blocks(views.batch(), rows, views.dim());
  const std::array<DenseView<T>, 2> each{{{sides[0]->view, blocks, sides[0]->task.need_grad},
                                          {sides[1]->view, blocks, sides[1]->task.need_grad}}};
  const int64_t tasks = std::max(ranges(rows, blocks.kRowsAtOnce), 2 * blocks.samples);
  in_phases(kCosts.dense(views), tasks, [&](Worker& worker) {
    views.normalize(worker);
    const Buffer<T> room(kernel.tile_room(views.dim()));
    const Buffer<double> values(kernel.padded_count(columns)), output(views.dim());
    for (int64_t first = 0; first < views.batch(); first += blocks.samples) {
      const int64_t count = std::min(blocks.samples, views.batch() - first);
      worker.run(ranges(count, blocks.width), [&](int64_t panel) {
        for (const DenseView<T>& view : each) view.pack_panel(first, panel);
      });
      worker.run_ranges(rows, blocks.kRowsAtOnce, [&](int64_t begin, int64_t end) {
        for (const DenseView<T>& view : each) view.multiply(begin, end, count, room.data);
      });
      worker.run(2 * count, [&](int64_t task) {
        const int64_t i = task % count;
        const int64_t* wanted = views.wanted(first + i);
        const DenseView<T>& view = each[task / count];
        Side<T>& side = *sides[task / count];
        view.pick(i, wanted, columns, values.data);
        side.losses[first + i] = kernel.contrast(values.data, columns, side.task);
        if (side.task.need_grad) view.scatter(i, wanted, columns, values.data);
      });
      for (size_t k = 0; k < each.size(); ++k) {
        if (!sides[k]->task.need_grad) continue;
        each[k].write_gradients(worker, first, count, gradient_weight, room.data, output.data,
                                sides[k]->grad.template mutable_data_ptr<T>());
      }
    }
  });
}

template <typename T>
LossAndGrads forward(const Views<T>& views, const at::Tensor& normalizers, double nce_t,
                     int64_t reduction, c10::string_view method, bool need_grad_s,
                     bool need_grad_t) {
  const int64_t batch = views.batch();
  const bool all = kCosts.prefer_dense(views, method);
  Side<T> student(views.student, normalizer_of(normalizers, 0), nce_t, views.count(), need_grad_s);
  Side<T> teacher(views.teacher, normalizer_of(normalizers, 1), nce_t, views.count(), need_grad_t);
  at::Tensor losses = at::empty({batch}, views.student.rows.options());
  if (batch != 0) {
    const double weight = sample_weight_of(reduction, batch) / nce_t;
    (all ? dense<T> : gather<T>)(views, {&student, &teacher}, weight);
    for (int64_t i = 0; i < batch; ++i) {
      const double loss = student.losses[i] + teacher.losses[i];
      losses.mutable_data_ptr<T>()[i] = T(loss + student.constant + teacher.constant);
    }
  }
  return {reduce<T>(losses, reduction), student.grad, teacher.grad};
}

LossAndGrads sampled_contrastive_loss_forward(
    const at::Tensor& z_s, const at::Tensor& z_t, const at::Tensor& memory_v1,
    const at::Tensor& memory_v2, const at::Tensor& contrast_idx, const at::Tensor& normalizers,
    double nce_t, Precision precision, int64_t reduction, c10::string_view method, bool need_grad_s,
    bool need_grad_t) {
  check_sampled(z_s, z_t, memory_v1, memory_v2, contrast_idx, normalizers);
  const auto of = [&](const auto& views) {
    return forward(views, normalizers, nce_t, reduction, method, need_grad_s, need_grad_t);
  };
  if (precision == "float64") {
    return of(Views<double>(z_s, z_t, memory_v1, memory_v2, contrast_idx));
  }
  return of(Views<float>(z_s, z_t, memory_v1, memory_v2, contrast_idx));
}

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, CPU, m) {
  m.impl("sampled_contrastive_loss_forward", sampled_contrastive_loss_forward);
}

}  // namespace rrd::cpu
