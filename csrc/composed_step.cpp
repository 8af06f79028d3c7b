// relational_step_forward_ for a backend that has no kernel of its own for it.
#include <torch/library.h>

#include "calls.h"
#include "recomputation.h"

namespace rrd {
namespace {

LossAndGrad composed_step(at::Tensor& memory, at::Tensor& pointer, const at::Tensor& z_s,
                          const at::Tensor& z_t, double tau_s, double tau_t, bool unit_memory,
                          Precision precision, int64_t reduction, bool enqueue_first,
                          double momentum, bool need_grad) {
  const bool writes = may_enqueue(enqueue_first);
  if (writes && enqueue_first) enqueue(memory, pointer, z_t, momentum);
  LossAndGrad result = relational_loss_forward(z_s, z_t, memory, tau_s, tau_t, unit_memory,
                                               precision, reduction, need_grad);
  if (writes && !enqueue_first) enqueue(memory, pointer, z_t, momentum);
  return result;
}

// For what is written by operators that do not ask themselves.
void refuse_recomputation_of(at::Tensor&) { refuse_recomputation(); }

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, CompositeExplicitAutograd, m) {
  m.impl("relational_step_forward_", composed_step);
  m.impl("refuse_recomputation_", refuse_recomputation_of);
}

}  // namespace rrd
