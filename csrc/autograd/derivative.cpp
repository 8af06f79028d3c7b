// The derivative of the loss, for the operators that have one. Each is a backend operator, which
// computes the derivative with the loss, and its attachment to z_s. Backward is then one
// multiplication that never looks at the memory, which the next enqueue overwrites.
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "calls.h"

namespace rrd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// The product in z_s's dtype.
at::Tensor scaled(const at::Tensor& grad_z_s, const at::Tensor& grad_loss, at::ScalarType dtype) {
  const at::Tensor scale = grad_loss.dim() == 0 ? grad_loss : grad_loss.unsqueeze(-1);
  // vmap and tracers have no out=.
  if (dtype == grad_z_s.scalar_type() || at::isTensorSubclassLike(scale)) {
    return grad_z_s.mul(scale).to(dtype);
  }
  // Rounded as it is written: a cast afterwards would be another launch on a GPU.
  at::Tensor product = at::empty_like(grad_z_s, grad_z_s.options().dtype(dtype));
  return at::mul_out(product, grad_z_s, scale);
}

// The gradient is a value, not a graph: differentiating it again would lose the dependence on z_s.
// z_s is an input so that autograd asks for that derivative and is refused.
class ScaledGradient : public torch::autograd::Function<ScaledGradient> {
 public:
  static Variable forward(AutogradContext*, const Variable& grad_z_s, const Variable& grad_loss,
                          const Variable& z_s) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return scaled(grad_z_s, grad_loss, z_s.scalar_type());
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        false, "rrd_kernels: the loss has no second derivative; backend=\"reference\" has one.");
  }
};

class AttachedGradient : public torch::autograd::Function<AttachedGradient> {
 public:
  static Variable forward(AutogradContext* ctx, const Variable& z_s, const LossAndGrad& computed) {
    const auto& [loss, grad_z_s] = computed;
    ctx->save_for_backward({grad_z_s, z_s});
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    return {ScaledGradient::apply(saved[0], grad_outputs[0], saved[1]), {}};
  }
};

// The loss that compute(need_grad) returns, with its gradient attached where autograd wants one.
template <typename Compute>
at::Tensor differentiable(const at::Tensor& z_s, const at::Tensor& z_t, const at::Tensor& memory,
                          const Compute& compute) {
  for (const at::Tensor* input : {&z_s, &z_t, &memory}) {
    TORCH_CHECK_NOT_IMPLEMENTED(!input->_fw_grad(0).defined(),
                                "rrd_kernels: the loss has no forward-mode derivative; "
                                "backend=\"reference\" has one.");
  }
  const bool need_grad = at::GradMode::is_enabled() && z_s.requires_grad();
  const LossAndGrad computed = [&] {
    at::AutoDispatchBelowAutograd guard;
    return compute(need_grad);
  }();
  return need_grad ? AttachedGradient::apply(z_s, computed) : std::get<0>(computed);
}

at::Tensor differentiable_loss(const at::Tensor& z_s, const at::Tensor& z_t,
                               const at::Tensor& memory, double tau_s, double tau_t,
                               bool unit_memory, Precision precision, int64_t reduction) {
  return differentiable(z_s, z_t, memory, [&](bool need_grad) {
    return relational_loss_forward(z_s, z_t, memory, tau_s, tau_t, unit_memory, precision,
                                   reduction, need_grad);
  });
}

at::Tensor differentiable_step(at::Tensor& memory, at::Tensor& pointer, const at::Tensor& z_s,
                               const at::Tensor& z_t, double tau_s, double tau_t, bool unit_memory,
                               Precision precision, int64_t reduction, bool enqueue_first,
                               double momentum) {
  return differentiable(z_s, z_t, memory, [&](bool need_grad) {
    return relational_step_forward(memory, pointer, z_s, z_t, tau_s, tau_t, unit_memory, precision,
                                   reduction, enqueue_first, momentum, need_grad);
  });
}

at::Tensor differentiable_sampled_loss(const at::Tensor& z_s, const at::Tensor& z_t,
                                       const at::Tensor& memory_v1, const at::Tensor& memory_v2,
                                       const at::Tensor& contrast_idx,
                                       const std::optional<at::Tensor>& normalizers, double tau_s,
                                       double tau_t, double nce_t, Precision precision,
                                       int64_t reduction, c10::string_view method) {
  return differentiable(z_s, z_t, memory_v2, [&](bool need_grad) {
    return sampled_relational_loss_forward(z_s, z_t, memory_v1, memory_v2, contrast_idx,
                                           normalizers, tau_s, tau_t, nce_t, precision, reduction,
                                           method, need_grad);
  });
}

// Without autograd, which is inference mode.
at::Tensor plain_loss(const at::Tensor& z_s, const at::Tensor& z_t, const at::Tensor& memory,
                      double tau_s, double tau_t, bool unit_memory, Precision precision,
                      int64_t reduction) {
  return std::get<0>(relational_loss_forward(z_s, z_t, memory, tau_s, tau_t, unit_memory, precision,
                                             reduction, false));
}

at::Tensor plain_step(at::Tensor& memory, at::Tensor& pointer, const at::Tensor& z_s,
                      const at::Tensor& z_t, double tau_s, double tau_t, bool unit_memory,
                      Precision precision, int64_t reduction, bool enqueue_first, double momentum) {
  return std::get<0>(relational_step_forward(memory, pointer, z_s, z_t, tau_s, tau_t, unit_memory,
                                             precision, reduction, enqueue_first, momentum, false));
}

at::Tensor plain_sampled_loss(const at::Tensor& z_s, const at::Tensor& z_t,
                              const at::Tensor& memory_v1, const at::Tensor& memory_v2,
                              const at::Tensor& contrast_idx,
                              const std::optional<at::Tensor>& normalizers, double tau_s,
                              double tau_t, double nce_t, Precision precision, int64_t reduction,
                              c10::string_view method) {
  return std::get<0>(sampled_relational_loss_forward(z_s, z_t, memory_v1, memory_v2, contrast_idx,
                                                     normalizers, tau_s, tau_t, nce_t, precision,
                                                     reduction, method, false));
}

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, Autograd, m) {
  m.impl("relational_loss", differentiable_loss);
  m.impl("relational_step_", differentiable_step);
  m.impl("sampled_relational_loss", differentiable_sampled_loss);
}

TORCH_LIBRARY_IMPL(rrd_kernels, CompositeExplicitAutograd, m) {
  m.impl("relational_loss", plain_loss);
  m.impl("relational_step_", plain_step);
  m.impl("sampled_relational_loss", plain_sampled_loss);
}

}  // namespace rrd
