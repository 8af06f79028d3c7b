// estimate_normalizers_ on the CPU.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "cpu/momentum/sampled.h"

namespace rrd::cpu {
namespace {

// Sets each view's normalizer that is not yet set: rows times the mean of exp(similarity / nce_t)
// over its sampled rows.
template <typename T>
void estimate(const at::Tensor& normalizers, const Views<T>& views, double nce_t) {
  const auto& kernel = select_momentum_kernel<T>();
  const View<T>* const each[2] = {&views.student, &views.teacher};
  std::vector<int64_t> unset;
  for (int64_t view = 0; view < 2; ++view) {
    if (normalizers.select(0, view).item<double>() < 0) unset.push_back(view);
  }
  const int64_t batch = views.batch(), tasks = batch * int64_t(unset.size());
  std::vector<double> sums(tasks);
  in_phases(kGathered * double(views.index.numel() * views.dim()), tasks, [&](Worker& worker) {
    views.normalize(worker);
    const Buffer<double> similarities(kernel.padded_count(views.count()));
    const Buffer<T> room(kernel.gather_room(views.dim()));
    worker.run(tasks, [&](int64_t task) {
      const int64_t i = task % batch;
      const View<T>& view = *each[unset[task / batch]];
      kernel.similarities(view_of(view.memory), views.wanted(i), views.count(), view.row(i),
                          room.data, similarities.data);
      sums[task] = kernel.exponential_sum(similarities.data, views.count(), kLog2E / nce_t);
    });
  });
  for (size_t k = 0; k < unset.size(); ++k) {
    const auto begin = sums.begin() + int64_t(k) * batch;
    const double mean = std::accumulate(begin, begin + batch, 0.0) / double(views.index.numel());
    const double value = mean * double(views.rows());
    // In the dtype that keeps it: a mean that is too large for float32 is not set.
    const bool finite = normalizers.scalar_type() == at::kDouble ? std::isfinite(value)
                                                                 : std::isfinite(float(value));
    if (finite) normalizers.select(0, unset[k]).fill_(value);
  }
}

void estimate_normalizers(at::Tensor& normalizers, const at::Tensor& z_s, const at::Tensor& z_t,
                          const at::Tensor& memory_v1, const at::Tensor& memory_v2,
                          const at::Tensor& contrast_idx, double nce_t) {
  check_sampled(z_s, z_t, memory_v1, memory_v2, contrast_idx, normalizers);
  if (contrast_idx.numel() == 0 || !normalizers.lt(0).any().item<bool>()) return;
  bool wide = false;
  for (const at::Tensor* tensor : {&z_s, &z_t, &memory_v1, &memory_v2}) {
    wide |= tensor->scalar_type() == at::kDouble;
  }
  if (wide) {
    estimate(normalizers, Views<double>(z_s, z_t, memory_v1, memory_v2, contrast_idx), nce_t);
  } else {
    estimate(normalizers, Views<float>(z_s, z_t, memory_v1, memory_v2, contrast_idx), nce_t);
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, CPU, m) { m.impl("estimate_normalizers_", estimate_normalizers); }

}  // namespace rrd::cpu
