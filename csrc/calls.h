// The operators that backends register, as functions: each call goes through the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/string_view.h>

#include <optional>
#include <tuple>

namespace rrd {

using Precision = std::optional<c10::string_view>;
using LossAndGrad = std::tuple<at::Tensor, at::Tensor>;

inline void enqueue(at::Tensor& memory, at::Tensor& pointer, const at::Tensor& keys,
                    double momentum) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("rrd_kernels::enqueue_", "")
                             .typed<decltype(enqueue)>();
  op.call(memory, pointer, keys, momentum);
}

inline LossAndGrad relational_loss_forward(const at::Tensor& z_s, const at::Tensor& z_t,
                                           const at::Tensor& memory, double tau_s, double tau_t,
                                           bool unit_memory, Precision precision, int64_t reduction,
                                           bool need_grad) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("rrd_kernels::relational_loss_forward", "")
                             .typed<decltype(relational_loss_forward)>();
  return op.call(z_s, z_t, memory, tau_s, tau_t, unit_memory, precision, reduction, need_grad);
}

inline LossAndGrad relational_step_forward(at::Tensor& memory, at::Tensor& pointer,
                                           const at::Tensor& z_s, const at::Tensor& z_t,
                                           double tau_s, double tau_t, bool unit_memory,
                                           Precision precision, int64_t reduction,
                                           bool enqueue_first, double momentum, bool need_grad) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("rrd_kernels::relational_step_forward_", "")
                             .typed<decltype(relational_step_forward)>();
  return op.call(memory, pointer, z_s, z_t, tau_s, tau_t, unit_memory, precision, reduction,
                 enqueue_first, momentum, need_grad);
}

inline LossAndGrad sampled_relational_loss_forward(
    const at::Tensor& z_s, const at::Tensor& z_t, const at::Tensor& memory_v1,
    const at::Tensor& memory_v2, const at::Tensor& contrast_idx,
    const std::optional<at::Tensor>& normalizers, double tau_s, double tau_t, double nce_t,
    Precision precision, int64_t reduction, c10::string_view method, bool need_grad) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("rrd_kernels::sampled_relational_loss_forward", "")
                             .typed<decltype(sampled_relational_loss_forward)>();
  return op.call(z_s, z_t, memory_v1, memory_v2, contrast_idx, normalizers, tau_s, tau_t, nce_t,
                 precision, reduction, method, need_grad);
}

inline void estimate_normalizers(at::Tensor& normalizers, const at::Tensor& z_s,
                                 const at::Tensor& z_t, const at::Tensor& memory_v1,
                                 const at::Tensor& memory_v2, const at::Tensor& contrast_idx,
                                 double nce_t) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("rrd_kernels::estimate_normalizers_", "")
                             .typed<decltype(estimate_normalizers)>();
  op.call(normalizers, z_s, z_t, memory_v1, memory_v2, contrast_idx, nce_t);
}

inline void momentum_update(at::Tensor& memory, const at::Tensor& index, const at::Tensor& rows,
                            double momentum) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("rrd_kernels::momentum_update_", "")
                             .typed<decltype(momentum_update)>();
  op.call(memory, index, rows, momentum);
}

}  // namespace rrd
