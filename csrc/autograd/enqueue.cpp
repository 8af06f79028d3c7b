// Tells autograd that enqueue_ has written: whatever was saved from the memory is out of date.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

namespace rrd {
namespace {

void enqueue(at::Tensor& memory, at::Tensor& pointer, const at::Tensor& keys, double momentum) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("rrd_kernels::enqueue_", "")
                             .typed<decltype(enqueue)>();
  TORCH_CHECK(!memory.is_inference() && !pointer.is_inference(),
              "enqueue_: a memory made in inference mode can be written only there");
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    op.call(memory, pointer, keys, momentum);
  }
  torch::autograd::impl::bump_version(memory);
  torch::autograd::impl::bump_version(pointer);
}

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, ADInplaceOrView, m) { m.impl("enqueue_", enqueue); }

}  // namespace rrd
