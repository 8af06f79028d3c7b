// relational_step_forward_ for backends without one of their own: enqueue_ and the loss.
#include <ATen/ops/clone.h>
#include <torch/library.h>

#include "operators.h"
#include "recomputation.h"

namespace rrd {
namespace {

LossAndGrad composed_step(at::Tensor& memory, at::Tensor& ptr, const at::Tensor& z_s,
                          const at::Tensor& z_t, double tau_s, double tau_t, bool unit_memory,
                          bool own_pair, bool kl, Precision precision, int64_t reduction,
                          c10::string_view enqueue, bool newest_first, double momentum,
                          bool need_grad) {
  const bool writes = may_write(enqueue);
  // Rows of the memory itself must not change while it is written.
  const auto apart = [&](const at::Tensor& z) { return z.is_alias_of(memory) ? z.clone() : z; };
  const at::Tensor student = apart(z_s), teacher = apart(z_t);
  if (writes && enqueue == "before") Enqueue::call(memory, ptr, teacher, newest_first, momentum);
  LossAndGrad result = LossForward::call(student, teacher, memory, tau_s, tau_t, unit_memory,
                                         own_pair, kl, precision, reduction, need_grad);
  if (writes && enqueue == "after") Enqueue::call(memory, ptr, teacher, newest_first, momentum);
  return result;
}

// For writes by operators that do not check for recomputation themselves.
void refuse_recomputation_of(at::Tensor&) { refuse_recomputation(); }

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, CompositeExplicitAutograd, m) {
  m.impl("relational_step_forward_", composed_step);
  m.impl("refuse_recomputation_", refuse_recomputation_of);
}

}  // namespace rrd
