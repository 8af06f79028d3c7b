// The autograd rule: the forward pass has computed d loss_i / d z_i already, so that backward is a
// scaling that never looks at the memory, which the next enqueue overwrites.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Reduction.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>

namespace rrd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

std::tuple<at::Tensor, at::Tensor> relational_loss_forward(
    const at::Tensor& z_s, const at::Tensor& z_t, const at::Tensor& memory, double tau_s,
    double tau_t, bool unit_memory, std::optional<c10::string_view> precision, bool need_grad) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("rrd_kernels::relational_loss_forward", "")
                             .typed<decltype(relational_loss_forward)>();
  return op.call(z_s, z_t, memory, tau_s, tau_t, unit_memory, precision, need_grad);
}

// B as a divisor; the mean over no rows is zero.
c10::Scalar batch_of(const at::Tensor& rows) { return rows.sym_size(0).max(1); }

// Done here, and not by operators after this one, so that its derivative is part of ours.
at::Tensor reduce(const at::Tensor& loss, int64_t reduction) {
  if (reduction == at::Reduction::None) return loss;
  const at::Tensor sum = loss.sum();
  return reduction == at::Reduction::Mean ? sum.div(batch_of(loss)) : sum;
}

// The gradient is a value, not a graph: differentiating it again would lose the dependence on z_s.
// z_s is an input so that autograd asks for that derivative and is refused.
class RelationalLossBackward : public torch::autograd::Function<RelationalLossBackward> {
 public:
  static Variable forward(AutogradContext*, const Variable& grad_loss, const Variable& grad_z_s,
                          const Variable& z_s, int64_t reduction) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const bool mean = reduction == at::Reduction::Mean;
    const Variable scale = mean ? grad_loss.div(batch_of(grad_z_s)) : grad_loss;
    return grad_z_s.mul(scale.unsqueeze(-1)).to(z_s.scalar_type());
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        false,
        "rrd_kernels::relational_loss has no second derivative; backend=\"reference\" has one.");
  }
};

class RelationalLoss : public torch::autograd::Function<RelationalLoss> {
 public:
  static Variable forward(AutogradContext* ctx, const Variable& z_s, const Variable& z_t,
                          const Variable& memory, double tau_s, double tau_t, bool unit_memory,
                          std::optional<c10::string_view> precision, int64_t reduction) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, grad_z_s] =
        relational_loss_forward(z_s, z_t, memory, tau_s, tau_t, unit_memory, precision, true);
    ctx->save_for_backward({grad_z_s, z_s});
    ctx->saved_data["reduction"] = reduction;
    return reduce(loss, reduction);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const Variable grad_z_s = RelationalLossBackward::apply(grad_outputs[0], saved[0], saved[1],
                                                            ctx->saved_data["reduction"].toInt());
    return {grad_z_s, {}, {}, {}, {}, {}, {}, {}};
  }
};

// Inference mode and calls in which nothing requires a gradient.
at::Tensor relational_loss(const at::Tensor& z_s, const at::Tensor& z_t, const at::Tensor& memory,
                           double tau_s, double tau_t, bool unit_memory,
                           std::optional<c10::string_view> precision, int64_t reduction) {
  const auto [loss, grad_z_s] =
      relational_loss_forward(z_s, z_t, memory, tau_s, tau_t, unit_memory, precision, false);
  return reduce(loss, reduction);
}

at::Tensor relational_loss_autograd(const at::Tensor& z_s, const at::Tensor& z_t,
                                    const at::Tensor& memory, double tau_s, double tau_t,
                                    bool unit_memory, std::optional<c10::string_view> precision,
                                    int64_t reduction) {
  for (const at::Tensor* input : {&z_s, &z_t, &memory}) {
    TORCH_CHECK_NOT_IMPLEMENTED(!input->_fw_grad(0).defined(),
                                "rrd_kernels::relational_loss has no forward-mode derivative; "
                                "backend=\"reference\" has one.");
  }
  if (at::GradMode::is_enabled() && z_s.requires_grad()) {
    return RelationalLoss::apply(z_s, z_t, memory, tau_s, tau_t, unit_memory, precision, reduction);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return relational_loss(z_s, z_t, memory, tau_s, tau_t, unit_memory, precision, reduction);
}

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, Autograd, m) {
  m.impl("relational_loss", relational_loss_autograd);
}

TORCH_LIBRARY_IMPL(rrd_kernels, CompositeExplicitAutograd, m) {
  m.impl("relational_loss", relational_loss);
}

}  // namespace rrd
