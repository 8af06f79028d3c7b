// relational_loss_forward on the CPU: the pass over the memory, then combine.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "cpu/fifo/attention_pass.h"

namespace rrd::cpu {
namespace {

template <typename T>
std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& z_s, const at::Tensor& z_t,
                                           const at::Tensor& memory, const Terms& terms,
                                           bool bfloat16_products, int64_t reduction,
                                           bool need_grad) {
  const auto type = c10::CppTypeToScalarType<T>::value;
  const auto student = z_s.to(type).contiguous(), teacher = z_t.to(type).contiguous();
  const int64_t batch = z_s.size(0), dim = z_s.size(1);
  const auto options = z_s.options().dtype(type);
  at::Tensor losses = at::empty({batch}, options);
  at::Tensor grad = at::empty({need_grad ? batch : 0, dim}, options);
  if (batch == 0) return {reduce<T>(losses, reduction), grad};

  AttentionPass<T> pass(student, memory, terms, bfloat16_products, need_grad);
  const int64_t padded = pass.kernel.padded_dim(dim);
  pass.run(student, teacher, memory, [&](int64_t begin, int64_t end) {
    const Buffer<T> workspace(need_grad ? 2 * padded : 0);
    const T* unit = pass.queries.unit.data;
    pass.kernel.combine({begin, end, dim, pass.kernel.lanes, pass.plan.splits,
                         pass.plan.panels * pass.kernel.lanes, unit, unit + batch * padded,
                         pass.queries.norm.data, pass.partials.all, terms.tau_s, terms.tau_t,
                         terms.own_pair, terms.kl, pass.kernel.rounded_queries,
                         sample_weight_of(reduction, batch), losses.mutable_data_ptr<T>(),
                         need_grad ? grad.mutable_data_ptr<T>() : nullptr, workspace.data});
  });
  return {reduce<T>(losses, reduction), grad};
}

std::tuple<at::Tensor, at::Tensor> relational_loss_forward(
    const at::Tensor& z_s, const at::Tensor& z_t, const at::Tensor& memory, double tau_s,
    double tau_t, bool unit_memory, bool own_pair, bool kl,
    std::optional<c10::string_view> precision, int64_t reduction, bool need_grad) {
  const Terms terms{tau_s, tau_t, unit_memory, own_pair, kl && tau_t != 0};
  check_problem("relational_loss", z_s, z_t, memory, terms);
  if (precision == "float64") {
    return forward<double>(z_s, z_t, memory, terms, false, reduction, need_grad);
  }
  return forward<float>(z_s, z_t, memory, terms, precision == "bfloat16", reduction, need_grad);
}

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, CPU, m) {
  m.impl("relational_loss_forward", relational_loss_forward);
}

}  // namespace rrd::cpu
