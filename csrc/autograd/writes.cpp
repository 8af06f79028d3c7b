// Tells autograd that an operator has written: whatever was saved from the memory is out of date.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include "operators.h"

namespace rrd {
namespace {

void refuse_inference_tensors(const at::Tensor& memory, const at::Tensor& pointer) {
  TORCH_CHECK(!memory.is_inference() && !pointer.is_inference(),
              "rrd_kernels: a memory made in inference mode can be written only there");
}

void bump_versions(const at::Tensor& memory, const at::Tensor& pointer) {
  torch::autograd::impl::bump_version(memory);
  torch::autograd::impl::bump_version(pointer);
}

void tracked_enqueue(at::Tensor& memory, at::Tensor& pointer, const at::Tensor& keys,
                     double momentum) {
  refuse_inference_tensors(memory, pointer);
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    enqueue(memory, pointer, keys, momentum);
  }
  bump_versions(memory, pointer);
}

LossAndGrad tracked_step(at::Tensor& memory, at::Tensor& pointer, const at::Tensor& z_s,
                         const at::Tensor& z_t, double tau_s, double tau_t, bool unit_memory,
                         Precision precision, int64_t reduction, bool enqueue_first,
                         double momentum, bool need_grad) {
  refuse_inference_tensors(memory, pointer);
  LossAndGrad result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return relational_step_forward(memory, pointer, z_s, z_t, tau_s, tau_t, unit_memory, precision,
                                   reduction, enqueue_first, momentum, need_grad);
  }();
  bump_versions(memory, pointer);
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, ADInplaceOrView, m) {
  m.impl("enqueue_", tracked_enqueue);
  m.impl("relational_step_forward_", tracked_step);
}

}  // namespace rrd
