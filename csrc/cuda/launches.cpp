// Operators that load and launch compiled kernels, for both memories.
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "cuda/driver.h"
#include "cuda/recipe.h"

namespace rrd::cuda {
namespace {

c10::OptionalDeviceGuard guard_of(int64_t device) {
  if (device < 0) return c10::OptionalDeviceGuard();
  return c10::OptionalDeviceGuard(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(device)));
}

std::tuple<int64_t, std::vector<int64_t>> load(const at::Tensor& code, c10::string_view name,
                                               int64_t shared_bytes, int64_t device) {
  const auto guard = guard_of(device);
  const int64_t function = load_kernel(static_cast<int>(device), code.contiguous().const_data_ptr(),
                                       std::string(name), static_cast<uint32_t>(shared_bytes));
  return {function, parameter_sizes(function).value_or(std::vector<int64_t>())};
}

void launch(at::IntArrayRef recipe, int64_t device) {
  const auto guard = guard_of(device);
  launch_recipe(Recipe::parse(recipe), {}, static_cast<int>(device), current_stream(device));
}

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, CatchAll, m) {
  m.impl("load_kernel", load);
  m.impl("launch_kernels", launch);
}

}  // namespace rrd::cuda
