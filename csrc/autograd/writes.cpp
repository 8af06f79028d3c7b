// Tells autograd which tensors an operator wrote: values saved from them are out of date.
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include <type_traits>

#include "operators.h"

namespace rrd {
namespace {

// An operator takes the tensors that it writes by non-const reference.
template <typename Argument>
constexpr bool kWritten = std::is_same_v<Argument, at::Tensor&>;

template <typename Argument>
void refuse_inference_tensor(Argument& argument) {
  if constexpr (kWritten<Argument>) {
    TORCH_CHECK(!argument.is_inference() || c10::InferenceMode::is_enabled(),
                "rrd_kernels: a memory that was made in inference mode can be written only there; "
                "clone() it outside, and write the clone");
  }
}

template <typename Argument>
void bump_version(Argument& argument) {
  if constexpr (kWritten<Argument>) {
    if (!argument.is_inference()) torch::autograd::impl::bump_version(argument);
  }
}

template <typename Operator>
struct Tracked;

template <Name kName, typename Result, typename... Arguments>
struct Tracked<Operator<kName, Result(Arguments...)>> {
  static Result call(Arguments... arguments) {
    (refuse_inference_tensor<Arguments>(arguments), ...);
    const auto below = [&] {
      at::AutoDispatchBelowADInplaceOrView guard;
      return Operator<kName, Result(Arguments...)>::call(arguments...);
    };
    if constexpr (std::is_void_v<Result>) {
      below();
      (bump_version<Arguments>(arguments), ...);
    } else {
      Result result = below();
      (bump_version<Arguments>(arguments), ...);
      return result;
    }
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, ADInplaceOrView, m) {
  m.impl("enqueue_", Tracked<Enqueue>::call);
  m.impl("relational_step_forward_", Tracked<StepForward>::call);
  m.impl("estimate_normalizers_", Tracked<EstimateNormalizers>::call);
  m.impl("momentum_update_", Tracked<MomentumUpdate>::call);
  m.impl("scheduled_enqueue_", Tracked<ScheduledEnqueue>::call);
  m.impl("scheduled_relational_step_forward_", Tracked<ScheduledStepForward>::call);
  m.impl("scheduled_estimate_normalizers_", Tracked<ScheduledEstimateNormalizers>::call);
  m.impl("scheduled_momentum_update_", Tracked<ScheduledMomentumUpdate>::call);
}

}  // namespace rrd
