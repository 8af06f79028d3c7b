#include "cuda/driver.h"

#include <ATen/DynamicLibrary.h>
#include <c10/util/Exception.h>

namespace rrd::cuda {
namespace {

// From cuda.h.
constexpr int kInvalidContext = 201;              // CUDA_ERROR_INVALID_CONTEXT
constexpr int kMaxDynamicSharedSize = 8;          // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int kPreferShared = 1;                  // CU_FUNC_CACHE_PREFER_SHARED
constexpr int kRelaxedCapture = 2;                // CU_STREAM_CAPTURE_MODE_RELAXED
constexpr int kProgrammaticSerialization = 6;     // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_...
constexpr uint32_t kSharedWithoutAsking = 49152;  // bytes; more must be requested

struct LaunchAttribute {  // CUlaunchAttribute
  int id;
  char padding[4];
  union {
    int32_t value;
    char size[64];
  };
};

struct LaunchConfig {  // CUlaunchConfig
  unsigned grid[3];
  unsigned block[3];
  unsigned shared_bytes;
  void* stream;
  LaunchAttribute* attributes;
  unsigned count;
};

struct Driver {
  int (*launch)(const LaunchConfig* config, void* function, void** parameters, void** extra);
  int (*error_name)(int error, const char** name);
  int (*retain_primary_context)(void** context, int device);
  int (*set_current_context)(void* context);
  int (*get_current_context)(void** context);
  int (*load_module)(void** module, const void* image);
  int (*get_function)(void** function, void* module, const char* name);
  int (*set_attribute)(void* function, int attribute, int value);
  int (*set_cache)(void* function, int preference);
  int (*exchange_capture_mode)(int* mode);
  // Since CUDA 12.4; else null.
  int (*load_function)(void* function) = nullptr;
  int (*parameter_info)(void* function, size_t index, size_t* offset, size_t* size) = nullptr;
  bool complete = false;

  Driver() {
    try {
      // On a machine with a GPU, PyTorch has already loaded it. It is never closed.
      at::DynamicLibrary library("libcuda.so.1", nullptr, /*leak_handle=*/true);
      find(library, "cuLaunchKernelEx", launch);
      find(library, "cuGetErrorName", error_name);
      find(library, "cuDevicePrimaryCtxRetain", retain_primary_context);
      find(library, "cuCtxSetCurrent", set_current_context);
      find(library, "cuCtxGetCurrent", get_current_context);
      find(library, "cuModuleLoadData", load_module);
      find(library, "cuModuleGetFunction", get_function);
      find(library, "cuFuncSetAttribute", set_attribute);
      find(library, "cuFuncSetCacheConfig", set_cache);
      find(library, "cuThreadExchangeStreamCaptureMode", exchange_capture_mode);
      complete = true;
      find(library, "cuFuncLoad", load_function);
      find(library, "cuFuncGetParamInfo", parameter_info);
    } catch (const c10::Error&) {
      // No driver, or one without the function that was looked for.
    }
  }

 private:
  template <typename Function>
  static void find(at::DynamicLibrary& library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(library.sym(name));
  }
};

const Driver& driver() {
  static const Driver found;
  return found;
}

void check(int error, const char* call) {
  if (error == 0) return;
  const char* name = nullptr;
  driver().error_name(error, &name);
  TORCH_CHECK(false, "rrd_kernels: ", call, " failed with ",
              name == nullptr ? "an unknown error" : name, " (", error, ")");
}

// PyTorch keeps the primary context as long as the process lives, so this reference may stay too.
void enter_primary_context(int device) {
  void* context = nullptr;
  check(driver().retain_primary_context(&context, device), "cuDevicePrimaryCtxRetain");
  check(driver().set_current_context(context), "cuCtxSetCurrent");
}

// Relaxes the thread's capture mode: loading allocates, which the other modes refuse.
class RelaxedCapture {
 public:
  RelaxedCapture() { driver().exchange_capture_mode(&mode_); }
  ~RelaxedCapture() { driver().exchange_capture_mode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  int mode_ = kRelaxedCapture;
};

}  // namespace

bool driver_found() { return driver().complete; }

int64_t load_kernel(int device, const void* code, const std::string& name, uint32_t shared_bytes) {
  TORCH_CHECK(driver_found(),
              "rrd_kernels: found no CUDA driver to load kernels with; install NVIDIA's driver, or "
              "use backend='reference'");
  void* current = nullptr;
  check(driver().get_current_context(&current), "cuCtxGetCurrent");
  if (current == nullptr) enter_primary_context(device);
  const RelaxedCapture relaxed;
  void* module = nullptr;
  void* function = nullptr;
  check(driver().load_module(&module, code), "cuModuleLoadData");
  check(driver().get_function(&function, module, name.c_str()), "cuModuleGetFunction");
  if (shared_bytes > kSharedWithoutAsking) {
    check(driver().set_cache(function, kPreferShared), "cuFuncSetCacheConfig");
    check(driver().set_attribute(function, kMaxDynamicSharedSize, static_cast<int>(shared_bytes)),
          "cuFuncSetAttribute");
  }
  // Otherwise the first launch would load the function, perhaps during a capture.
  if (driver().load_function != nullptr) check(driver().load_function(function), "cuFuncLoad");
  return reinterpret_cast<int64_t>(function);
}

std::optional<std::vector<int64_t>> parameter_sizes(int64_t function) {
  if (driver().parameter_info == nullptr) return std::nullopt;
  std::vector<int64_t> sizes;
  size_t offset = 0, size = 0;
  while (driver().parameter_info(reinterpret_cast<void*>(function), sizes.size(), &offset, &size) ==
         0) {
    sizes.push_back(static_cast<int64_t>(size));
  }
  return sizes;
}

void launch_kernel(int device, int64_t function, const Configuration& configuration, void* stream,
                   void** parameters) {
  const auto& grid = configuration.grid;
  LaunchAttribute dependent{kProgrammaticSerialization, {}, {1}};
  const LaunchConfig config{{grid[0], grid[1], grid[2]},
                            {configuration.threads, 1, 1},
                            configuration.shared_bytes,
                            stream,
                            &dependent,
                            configuration.dependent};
  const auto launch = [&] {
    return driver().launch(&config, reinterpret_cast<void*>(function), parameters, nullptr);
  };
  int error = launch();
  // A thread that has only used cached memory so far has no context yet.
  if (error == kInvalidContext) {
    enter_primary_context(device);
    error = launch();
  }
  check(error, "cuLaunchKernelEx");
}

}  // namespace rrd::cuda
