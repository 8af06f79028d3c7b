// Autograd of the losses. A backend's operator computes the gradients together with the loss; this
// file attaches them to z_s, and to z_t where the loss is differentiable in it. Backward is one
// multiplication: it never reads the memory, which the next enqueue overwrites.
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>
#include <type_traits>
#include <utility>

#include "operators.h"

namespace rrd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// grad_z * grad_loss, in z's dtype.
at::Tensor scaled(const at::Tensor& grad_z, const at::Tensor& grad_loss, at::ScalarType dtype) {
  const at::Tensor scale = grad_loss.dim() == 0 ? grad_loss : grad_loss.unsqueeze(-1);
  // vmap and tracers do not support out=.
  if (dtype == grad_z.scalar_type() || at::isTensorSubclassLike(scale)) {
    return grad_z.mul(scale).to(dtype);
  }
  // mul_out rounds as it writes: a separate cast would be another launch on a GPU.
  at::Tensor product = at::empty_like(grad_z, grad_z.options().dtype(dtype));
  return at::mul_out(product, grad_z, scale);
}

// To autograd the saved gradient is a constant, so a second derivative would be wrong. z is an
// input so that autograd calls this backward, which raises.
class ScaledGradient : public torch::autograd::Function<ScaledGradient> {
 public:
  static Variable forward(AutogradContext*, const Variable& grad_z, const Variable& grad_loss,
                          const Variable& z) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return scaled(grad_z, grad_loss, z.scalar_type());
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

class AttachedGradients : public torch::autograd::Function<AttachedGradients> {
 public:
  static Variable forward(AutogradContext* ctx, const Variable& z_s, const Variable& z_t,
                          const LossAndGrads& computed) {
    const auto& [loss, grad_z_s, grad_z_t] = computed;
    ctx->save_for_backward({grad_z_s, z_s, grad_z_t, z_t});
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const auto of_input = [&](size_t input) {
      if (!ctx->needs_input_grad(input)) return Variable();
      return ScaledGradient::apply(saved[2 * input], grad_outputs[0], saved[2 * input + 1]);
    };
    return {of_input(0), of_input(1), {}};
  }
};

void refuse_forward_mode(const at::Tensor& input) {
  TORCH_CHECK_NOT_IMPLEMENTED(!input._fw_grad(0).defined(),
                              "rrd_kernels: the loss has no forward-mode derivative; "
                              "backend=\"reference\" has one.");
}

void refuse_forward_mode(const std::optional<at::Tensor>& input) {
  if (input) refuse_forward_mode(*input);
}

template <typename Setting>
void refuse_forward_mode(const Setting&) {}

// An operator's z_s and z_t: the first tensors that it does not write.
template <typename First, typename... Others>
std::pair<const at::Tensor&, const at::Tensor&> embeddings(First& first, Others&... others) {
  if constexpr (std::is_same_v<First, at::Tensor>) {
    return embeddings(others...);  // taken by non-const reference: written
  } else {
    return {first, std::get<0>(std::tie(others...))};
  }
}

// The differentiable operator of one signature, on top of a backend's `Forward`.
template <typename Forward, typename Signature>
struct Differentiable;

template <typename Forward, typename... Arguments>
struct Differentiable<Forward, at::Tensor(Arguments...)> {
  // The loss, with its gradients attached if autograd needs them.
  static at::Tensor attached(Arguments... arguments) {
    (refuse_forward_mode(arguments), ...);
    const auto [z_s, z_t] = embeddings(arguments...);
    const bool recorded = at::GradMode::is_enabled();
    const bool need_grad_s = recorded && z_s.requires_grad();
    if constexpr (kBoth) {
      const bool need_grad_t = recorded && z_t.requires_grad();
      const LossAndGrads computed = below(arguments..., need_grad_s, need_grad_t);
      if (need_grad_s || need_grad_t) return AttachedGradients::apply(z_s, z_t, computed);
      return std::get<0>(computed);
    } else {
      const LossAndGrad computed = below(arguments..., need_grad_s);
      return need_grad_s ? AttachedGradient::apply(z_s, computed) : std::get<0>(computed);
    }
  }

  // The loss without autograd, for inference mode.
  static at::Tensor alone(Arguments... arguments) {
    if constexpr (kBoth) {
      return std::get<0>(Forward::call(arguments..., false, false));
    } else {
      return std::get<0>(Forward::call(arguments..., false));
    }
  }

 private:
  static constexpr bool kBoth = Forward::kBothGradients;

  template <typename... Given>
  static auto below(Given&&... given) {
    at::AutoDispatchBelowAutograd guard;
    return Forward::call(given...);
  }
};

using LossOperator = Differentiable<LossForward, Loss>;
using StepOperator = Differentiable<StepForward, Step>;
using SampledLossOperator = Differentiable<SampledLossForward, SampledLoss>;
using ContrastiveLossOperator = Differentiable<ContrastiveLossForward, ContrastiveLoss>;
using ScheduledLossOperator = Differentiable<ScheduledLossForward, Lifted<Loss>::Type>;
using ScheduledStepOperator = Differentiable<ScheduledStepForward, Lifted<Step>::Type>;
using ScheduledSampledLossOperator =
    Differentiable<ScheduledSampledLossForward, Lifted<SampledLoss>::Type>;
using ScheduledContrastiveLossOperator =
    Differentiable<ScheduledContrastiveLossForward, Lifted<ContrastiveLoss>::Type>;

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, Autograd, m) {
  m.impl("relational_loss", LossOperator::attached);
  m.impl("relational_step_", StepOperator::attached);
  m.impl("sampled_relational_loss", SampledLossOperator::attached);
  m.impl("sampled_contrastive_loss", ContrastiveLossOperator::attached);
  m.impl("scheduled_relational_loss", ScheduledLossOperator::attached);
  m.impl("scheduled_relational_step_", ScheduledStepOperator::attached);
  m.impl("scheduled_sampled_relational_loss", ScheduledSampledLossOperator::attached);
  m.impl("scheduled_sampled_contrastive_loss", ScheduledContrastiveLossOperator::attached);
}

TORCH_LIBRARY_IMPL(rrd_kernels, CompositeExplicitAutograd, m) {
  m.impl("relational_loss", LossOperator::alone);
  m.impl("relational_step_", StepOperator::alone);
  m.impl("sampled_relational_loss", SampledLossOperator::alone);
  m.impl("sampled_contrastive_loss", ContrastiveLossOperator::alone);
  m.impl("scheduled_relational_loss", ScheduledLossOperator::alone);
  m.impl("scheduled_relational_step_", ScheduledStepOperator::alone);
  m.impl("scheduled_sampled_relational_loss", ScheduledSampledLossOperator::alone);
  m.impl("scheduled_sampled_contrastive_loss", ScheduledContrastiveLossOperator::alone);
}

}  // namespace rrd
