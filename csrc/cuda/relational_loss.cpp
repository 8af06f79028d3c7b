// The FIFO memory's loss and step on GPUs. Cached launches go straight from C++, without Python.
#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "cuda/driver.h"
#include "cuda/recipe.h"
#include "operators.h"
#include "recomputation.h"

namespace rrd {
namespace {

// The arguments of relational_loss_forward, without ptr, or of relational_step_forward_, with it.
struct Call {
  at::Tensor z_s, z_t, memory;
  std::optional<at::Tensor> ptr;
  double tau_s, tau_t;
  bool unit_memory, own_pair, kl;
  c10::string_view precision;
  int64_t reduction;
  bool need_grad;
  c10::string_view enqueue;  // "never" for relational_loss_forward
  bool newest_first;
  double momentum;
};

// The given precision, else PyTorch's current float32 setting, made by its older or newer API.
// "medium", which would allow bfloat16, is TF32 on a GPU.
c10::string_view settled(Precision precision) {
  if (precision) return *precision;
  const auto setting =
      at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL);
  return setting == at::Float32Precision::TF32 ? "tf32" : "float32";
}

// Cache key: everything a launch depends on except the pointers.
using Key = std::array<int64_t, 24>;

// The first eight bytes of a name: enough to tell names apart.
int64_t word_of(c10::string_view name) {
  int64_t word = 0;
  std::memcpy(&word, name.data(), std::min(sizeof(word), name.size()));
  return word;
}

Key key_of(const Call& call) {
  Key key{};
  size_t at = 0;
  for (const at::Tensor* tensor : {&call.z_s, &call.z_t, &call.memory}) {
    const bool aligned = reinterpret_cast<uintptr_t>(tensor->const_data_ptr()) % 16 == 0;
    key[at++] = 2 * static_cast<int64_t>(tensor->scalar_type()) + aligned;
    key[at++] = tensor->stride(0);
    key[at++] = tensor->stride(1);
  }
  key[at++] = call.memory.get_device();
  key[at++] = call.z_s.size(0);
  key[at++] = call.z_s.size(1);
  key[at++] = call.memory.size(0);
  for (const double value : {call.tau_s, call.tau_t, call.momentum}) {
    key[at++] = std::bit_cast<int64_t>(value);
  }
  key[at++] = word_of(call.precision);
  key[at++] = call.reduction;
  key[at++] = word_of(call.enqueue);
  for (const bool flag :
       {call.unit_memory, call.own_pair, call.kl, call.need_grad, call.newest_first}) {
    key[at++] = flag;
  }
  return key;
}

struct HashKey {
  size_t operator()(const Key& key) const {
    uint64_t hash = 14695981039346656037u;  // FNV-1a, by words
    for (const int64_t word : key) hash = (hash ^ static_cast<uint64_t>(word)) * 1099511628211u;
    return hash ^ (hash >> 32);
  }
};

template <Name kName, typename Result>
Result in_python(const Call& call) {
  using Python =
      Operator<kName, Result(const at::Tensor&, const at::Tensor&, at::Tensor,
                             std::optional<at::Tensor>, double, double, bool, bool, bool,
                             c10::string_view, int64_t, bool, c10::string_view, bool, double)>;
  return Python::call(call.z_s, call.z_t, call.memory, call.ptr, call.tau_s, call.tau_t,
                      call.unit_memory, call.own_pair, call.kl, call.precision, call.reduction,
                      call.need_grad, call.enqueue, call.newest_first, call.momentum);
}

std::shared_ptr<const cuda::Recipe> recipe_for(const Call& call) {
  // Limit on cached recipes: an odd last batch or an annealed temperature adds keys.
  constexpr size_t kMost = 1024;
  static std::mutex mutex;
  static std::unordered_map<Key, std::shared_ptr<const cuda::Recipe>, HashKey> known;
  const Key key = key_of(call);
  {
    const std::lock_guard lock(mutex);
    if (const auto found = known.find(key); found != known.end()) return found->second;
  }
  // Compile outside the lock: it is slow and takes the GIL.
  auto recipe = std::make_shared<const cuda::Recipe>(
      cuda::Recipe::parse(in_python<"rrd_kernels::triton_recipe", std::vector<int64_t>>(call)));
  const std::lock_guard lock(mutex);
  if (known.size() >= kMost) known.clear();
  known.insert_or_assign(key, recipe);
  return recipe;
}

LossAndGrad run(const cuda::Recipe& recipe, const Call& call) {
  const int64_t batch = call.z_s.size(0), dim = call.z_s.size(1);
  const auto floats = call.z_s.options().dtype(at::kFloat);
  at::Tensor loss =
      call.reduction == at::Reduction::None ? at::empty({batch}, floats) : at::empty({}, floats);
  const int64_t rows = call.need_grad ? batch : 0;
  at::Tensor grad_z_s =
      recipe.gradient_elements == rows * dim
          ? at::empty({rows, dim}, floats)
          : at::empty({recipe.gradient_elements}, floats).as_strided({rows, dim}, {dim, 1});
  const at::Tensor workspace =
      at::empty({recipe.workspace_bytes}, call.z_s.options().dtype(at::kByte));
  void* ptr = call.ptr ? call.ptr->mutable_data_ptr() : nullptr;
  const cuda::Addresses addresses{{
      const_cast<void*>(call.z_s.const_data_ptr()),
      const_cast<void*>(call.z_t.const_data_ptr()),
      call.memory.mutable_data_ptr(),
      ptr,
      loss.mutable_data_ptr(),
      grad_z_s.mutable_data_ptr(),
      workspace.mutable_data_ptr(),
  }};
  const auto device = call.memory.get_device();
  cuda::launch_recipe(recipe, addresses, device, cuda::current_stream(device));
  return {loss, grad_z_s};
}

// For direct callers of the operators; rrd_kernels.functional checks everything itself.
void check(const Call& call) {
  const at::Tensor &z_s = call.z_s, &z_t = call.z_t, &memory = call.memory;
  const bool matrices = z_s.dim() == 2 && memory.dim() == 2;
  TORCH_CHECK_VALUE(
      matrices && z_s.sizes() == z_t.sizes() && z_s.size(1) == memory.size(1) && memory.numel() > 0,
      "rrd_kernels: z_s ", z_s.sizes(), ", z_t ", z_t.sizes(), " and memory ", memory.sizes(),
      " do not fit");
  TORCH_CHECK_VALUE(z_s.device() == memory.device() && z_t.device() == memory.device(),
                    "rrd_kernels: z_s, z_t and memory must be on one device");
  TORCH_CHECK_VALUE(call.tau_s > 0 && (call.tau_t > 0 || (call.tau_t == 0 && call.own_pair)),
                    "rrd_kernels: tau_s and tau_t must be positive, or tau_t zero with own_pair; "
                    "got ",
                    call.tau_s, " and ", call.tau_t);
  if (!call.ptr) return;
  TORCH_CHECK_VALUE(z_s.size(0) <= memory.size(0), "rrd_kernels: ", z_s.size(0),
                    " rows do not fit a memory of ", memory.size(0));
  TORCH_CHECK_VALUE(call.ptr->numel() == 1 && call.ptr->scalar_type() == at::kLong &&
                        call.ptr->device() == memory.device(),
                    "rrd_kernels: ptr must be one int64 on the memory's device");
}

LossAndGrad forward(const Call& call) {
  check(call);
  const c10::OptionalDeviceGuard guard(call.memory.device());
  if (call.z_s.size(0) != 0 && cuda::driver_found()) {
    const auto recipe = recipe_for(call);
    if (!recipe->launches.empty()) return run(*recipe, call);
  }
  return in_python<"rrd_kernels::triton_step", LossAndGrad>(call);
}

// Copies a tensor that aliases the memory, so that writing the memory does not change it.
at::Tensor apart(const at::Tensor& tensor, const at::Tensor& memory) {
  return tensor.is_alias_of(memory) ? tensor.clone() : tensor;
}

LossAndGrad loss_on_gpu(const at::Tensor& z_s, const at::Tensor& z_t, const at::Tensor& memory,
                        double tau_s, double tau_t, bool unit_memory, bool own_pair, bool kl,
                        Precision precision, int64_t reduction, bool need_grad) {
  return forward({z_s, z_t, memory, std::nullopt, tau_s, tau_t, unit_memory, own_pair, kl,
                  settled(precision), reduction, need_grad, "never", false, 0.0});
}

LossAndGrad step_on_gpu(at::Tensor& memory, at::Tensor& ptr, const at::Tensor& z_s,
                        const at::Tensor& z_t, double tau_s, double tau_t, bool unit_memory,
                        bool own_pair, bool kl, Precision precision, int64_t reduction,
                        c10::string_view enqueue, bool newest_first, double momentum,
                        bool need_grad) {
  if (!may_write(enqueue)) {
    return loss_on_gpu(z_s, z_t, memory, tau_s, tau_t, unit_memory, own_pair, kl, precision,
                       reduction, need_grad);
  }
  return forward({apart(z_s, memory), apart(z_t, memory), memory, ptr, tau_s, tau_t, unit_memory,
                  own_pair, kl, settled(precision), reduction, need_grad, enqueue, newest_first,
                  momentum});
}

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, CUDA, m) {
  m.impl("relational_loss_forward", loss_on_gpu);
  m.impl("relational_step_forward_", step_on_gpu);
}

}  // namespace rrd
