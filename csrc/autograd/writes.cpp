// Tells autograd that an operator has written: whatever was saved from the memory is out of date.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include "calls.h"

namespace rrd {
namespace {

template <typename... Tensors>
void refuse_inference_tensors(const Tensors&... written) {
  TORCH_CHECK((!written.is_inference() && ...),
              "rrd_kernels: a memory made in inference mode can be written only there");
}

template <typename... Tensors>
void bump_versions(const Tensors&... written) {
  (torch::autograd::impl::bump_version(written), ...);
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

void tracked_estimate(at::Tensor& normalizers, const at::Tensor& z_s, const at::Tensor& z_t,
                      const at::Tensor& memory_v1, const at::Tensor& memory_v2,
                      const at::Tensor& contrast_idx, double nce_t) {
  refuse_inference_tensors(normalizers);
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    estimate_normalizers(normalizers, z_s, z_t, memory_v1, memory_v2, contrast_idx, nce_t);
  }
  bump_versions(normalizers);
}

void tracked_update(at::Tensor& memory, const at::Tensor& index, const at::Tensor& rows,
                    double momentum) {
  refuse_inference_tensors(memory);
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    momentum_update(memory, index, rows, momentum);
  }
  bump_versions(memory);
}

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, ADInplaceOrView, m) {
  m.impl("enqueue_", tracked_enqueue);
  m.impl("relational_step_forward_", tracked_step);
  m.impl("estimate_normalizers_", tracked_estimate);
  m.impl("momentum_update_", tracked_update);
}

}  // namespace rrd
