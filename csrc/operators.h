// C++ types of those operators of schemas.cpp that C++ calls or wraps, and calls of them through
// the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/string_view.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

namespace rrd {

// A string as a template argument.
template <size_t kSize>
struct Name {
  consteval Name(const char (&from)[kSize]) { std::copy_n(from, kSize, text); }
  char text[kSize];
};

template <Name kName, typename Signature>
struct Operator;

template <Name kName, typename Result, typename... Arguments>
struct Operator<kName, Result(Arguments...)> {
  static constexpr bool kBothGradients =
      std::is_same_v<Result, std::tuple<at::Tensor, at::Tensor, at::Tensor>>;

  static Result call(Arguments... arguments) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow(kName.text, "")
                               .template typed<Result(Arguments...)>();
    return op.call(std::forward<Arguments>(arguments)...);
  }
};

using Precision = std::optional<c10::string_view>;

// Signatures of the losses for users.
using Loss = at::Tensor(const at::Tensor& z_s, const at::Tensor& z_t, const at::Tensor& memory,
                        double tau_s, double tau_t, bool unit_memory, bool own_pair, bool kl,
                        Precision precision, int64_t reduction);
using Step = at::Tensor(at::Tensor& memory, at::Tensor& ptr, const at::Tensor& z_s,
                        const at::Tensor& z_t, double tau_s, double tau_t, bool unit_memory,
                        bool own_pair, bool kl, Precision precision, int64_t reduction,
                        c10::string_view enqueue, bool newest_first, double momentum);
using SampledLoss = at::Tensor(const at::Tensor& z_s, const at::Tensor& z_t,
                               const at::Tensor& memory_v1, const at::Tensor& memory_v2,
                               const at::Tensor& contrast_idx,
                               const std::optional<at::Tensor>& normalizers, double tau_s,
                               double tau_t, double nce_t, Precision precision, int64_t reduction,
                               c10::string_view method);
using ContrastiveLoss = at::Tensor(const at::Tensor& z_s, const at::Tensor& z_t,
                                   const at::Tensor& memory_v1, const at::Tensor& memory_v2,
                                   const at::Tensor& contrast_idx, const at::Tensor& normalizers,
                                   double nce_t, Precision precision, int64_t reduction,
                                   c10::string_view method);

// Results of a backend's operators: the loss, with the gradient for z_s, or for z_s and z_t.
using LossAndGrad = std::tuple<at::Tensor, at::Tensor>;
using LossAndGrads = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// A backend's operator has one more argument for each gradient: whether it is needed.
template <Name kName, typename Signature, typename Computed = LossAndGrad>
struct ForwardOf;

template <Name kName, typename... Arguments>
struct ForwardOf<kName, at::Tensor(Arguments...), LossAndGrad> {
  using Type = Operator<kName, LossAndGrad(Arguments..., bool need_grad)>;
};

template <Name kName, typename... Arguments>
struct ForwardOf<kName, at::Tensor(Arguments...), LossAndGrads> {
  using Type = Operator<kName, LossAndGrads(Arguments..., bool need_grad_s, bool need_grad_t)>;
};

using LossForward = ForwardOf<"rrd_kernels::relational_loss_forward", Loss>::Type;
using StepForward = ForwardOf<"rrd_kernels::relational_step_forward_", Step>::Type;
using SampledLossForward =
    ForwardOf<"rrd_kernels::sampled_relational_loss_forward", SampledLoss>::Type;
using ContrastiveLossForward =
    ForwardOf<"rrd_kernels::sampled_contrastive_loss_forward", ContrastiveLoss, LossAndGrads>::Type;

using Enqueue = Operator<"rrd_kernels::enqueue_",
                         void(at::Tensor& memory, at::Tensor& ptr, const at::Tensor& keys,
                              bool newest_first, double momentum)>;
using EstimateNormalizers =
    Operator<"rrd_kernels::estimate_normalizers_",
             void(at::Tensor& normalizers, const at::Tensor& z_s, const at::Tensor& z_t,
                  const at::Tensor& memory_v1, const at::Tensor& memory_v2,
                  const at::Tensor& contrast_idx, double nce_t)>;
using MomentumUpdate =
    Operator<"rrd_kernels::momentum_update_", void(at::Tensor& memory, const at::Tensor& index,
                                                   const at::Tensor& rows, double momentum)>;

// A signature with a tensor in the place of each number.
template <typename Argument>
struct Lifted {
  using Type = Argument;
};

template <>
struct Lifted<double> {
  using Type = const at::Tensor&;
};

template <typename Result, typename... Arguments>
struct Lifted<Result(Arguments...)> {
  using Type = Result(typename Lifted<Arguments>::Type...);
};

// The twins; scheduled.cpp implements them.
template <Name kName, typename Twin>
struct TwinOf;

template <Name kName, Name kTwin, typename Signature>
struct TwinOf<kName, Operator<kTwin, Signature>> {
  using Type = Operator<kName, typename Lifted<Signature>::Type>;
};

using ScheduledEnqueue = TwinOf<"rrd_kernels::scheduled_enqueue_", Enqueue>::Type;
using ScheduledEstimateNormalizers =
    TwinOf<"rrd_kernels::scheduled_estimate_normalizers_", EstimateNormalizers>::Type;
using ScheduledMomentumUpdate =
    TwinOf<"rrd_kernels::scheduled_momentum_update_", MomentumUpdate>::Type;
using ScheduledLossForward =
    TwinOf<"rrd_kernels::scheduled_relational_loss_forward", LossForward>::Type;
using ScheduledStepForward =
    TwinOf<"rrd_kernels::scheduled_relational_step_forward_", StepForward>::Type;
using ScheduledSampledLossForward =
    TwinOf<"rrd_kernels::scheduled_sampled_relational_loss_forward", SampledLossForward>::Type;
using ScheduledContrastiveLossForward =
    TwinOf<"rrd_kernels::scheduled_sampled_contrastive_loss_forward", ContrastiveLossForward>::Type;

}  // namespace rrd
