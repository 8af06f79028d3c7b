// The scheduled_ twins of operators: temperatures and momenta are tensors, one float64 on the CPU
// each. To torch.compile a number is a constant, so that each new value would compile a new graph.
#include <torch/library.h>

#include <cmath>
#include <type_traits>

#include "operators.h"

namespace rrd {
namespace {

double number_in(const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.is_cpu() && tensor.numel() == 1,
                    "rrd_kernels: a temperature or momentum must be one number on the CPU; got ",
                    tensor.sizes(), " on ", tensor.device());
  const double number = tensor.item<double>();
  TORCH_CHECK_VALUE(std::isfinite(number) && number >= 0,
                    "rrd_kernels: a temperature or momentum must be finite and must not be "
                    "negative; got ",
                    number);
  return number;
}

template <typename Argument, typename Given>
Argument lowered(Given& given) {
  if constexpr (std::is_same_v<Argument, double>) {
    return number_in(given);
  } else {
    return given;
  }
}

template <typename Operator>
struct Scheduled;

template <Name kName, typename Result, typename... Arguments>
struct Scheduled<Operator<kName, Result(Arguments...)>> {
  static Result call(typename Lifted<Arguments>::Type... arguments) {
    return Operator<kName, Result(Arguments...)>::call(lowered<Arguments>(arguments)...);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, CompositeExplicitAutograd, m) {
  m.impl("scheduled_relational_loss_forward", Scheduled<LossForward>::call);
  m.impl("scheduled_relational_step_forward_", Scheduled<StepForward>::call);
  m.impl("scheduled_sampled_relational_loss_forward", Scheduled<SampledLossForward>::call);
  m.impl("scheduled_sampled_contrastive_loss_forward", Scheduled<ContrastiveLossForward>::call);
  m.impl("scheduled_enqueue_", Scheduled<Enqueue>::call);
  m.impl("scheduled_estimate_normalizers_", Scheduled<EstimateNormalizers>::call);
  m.impl("scheduled_momentum_update_", Scheduled<MomentumUpdate>::call);
}

}  // namespace rrd
