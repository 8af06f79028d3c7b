// relational_step_forward_ for backends without one of their own: enqueue_ and the loss.
#include <torch/library.h>

#include "operators.h"
#include "recomputation.h"

namespace rrd {
namespace {

LossAndGrad composed_step(at::Tensor& memory, at::Tensor& ptr, const at::Tensor& z_s,
                          const at::Tensor& z_t, double tau_s, double tau_t, bool unit_memory,
                          Precision precision, int64_t reduction, c10::string_view enqueue,
                          double momentum, bool need_grad) {
  const bool writes = may_write(enqueue);
  if (writes && enqueue == "before") Enqueue::call(memory, ptr, z_t, momentum);
  LossAndGrad result = LossForward::call(z_s, z_t, memory, tau_s, tau_t, unit_memory, precision,
                                         reduction, need_grad);
  if (writes && enqueue == "after") Enqueue::call(memory, ptr, z_t, momentum);
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
