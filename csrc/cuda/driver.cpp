#include "cuda/driver.h"

#include <c10/util/Exception.h>
#include <dlfcn.h>

namespace rrd::cuda {
namespace {

using LaunchKernel = int (*)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                             unsigned block_x, unsigned block_y, unsigned block_z,
                             unsigned shared_bytes, void* stream, void** parameters, void** extra);
using GetErrorName = int (*)(int error, const char** name);
using DevicePrimaryCtxRetain = int (*)(void** context, int device);
using CtxSetCurrent = int (*)(void* context);

constexpr int kInvalidContext = 201;  // CUDA_ERROR_INVALID_CONTEXT

struct Driver {
  LaunchKernel launch_kernel = nullptr;
  GetErrorName get_error_name = nullptr;
  DevicePrimaryCtxRetain retain_primary_context = nullptr;
  CtxSetCurrent set_current_context = nullptr;

  Driver() {
    // PyTorch has loaded it already where there is a GPU.
    void* library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (library == nullptr) return;
    find(library, "cuLaunchKernel", launch_kernel);
    find(library, "cuGetErrorName", get_error_name);
    find(library, "cuDevicePrimaryCtxRetain", retain_primary_context);
    find(library, "cuCtxSetCurrent", set_current_context);
  }

 private:
  template <typename Function>
  static void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
  }
};

const Driver& driver() {
  static const Driver found;
  return found;
}

}  // namespace

bool driver_found() { return driver().launch_kernel != nullptr; }

void launch_kernel(int device, int64_t function, const uint32_t (&grid)[3], uint32_t threads,
                   uint32_t shared_bytes, void* stream, void** parameters) {
  const auto launch = [&] {
    return driver().launch_kernel(reinterpret_cast<void*>(function), grid[0], grid[1], grid[2],
                                  threads, 1, 1, shared_bytes, stream, parameters, nullptr);
  };
  int error = launch();
  // A thread that has only used cached memory so far has no context yet. PyTorch's is the primary
  // one, which it keeps as long as the process lives; so may this reference to it.
  if (error == kInvalidContext && driver().retain_primary_context != nullptr &&
      driver().set_current_context != nullptr) {
    void* context = nullptr;
    error = driver().retain_primary_context(&context, device);
    if (error == 0) error = driver().set_current_context(context);
    if (error == 0) error = launch();
  }
  if (error == 0) return;
  const char* name = nullptr;
  if (driver().get_error_name != nullptr) driver().get_error_name(error, &name);
  TORCH_CHECK(false, "rrd_kernels: cuLaunchKernel failed with ",
              name == nullptr ? "an unknown error" : name, " (", error, ")");
}

}  // namespace rrd::cuda
