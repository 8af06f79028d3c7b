// A recipe: the launches of all calls with one cache key, compiled kernels and their arguments.
// rrd_kernels/triton/runtime/launch.py encodes them in the same layout.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <vector>

#include "cuda/driver.h"

namespace rrd::cuda {

// Where a parameter's value comes from. For tensors and the workspace it is an address plus
// Parameter::value bytes.
enum class Source : int64_t {
  kStudent,
  kTeacher,
  kMemory,
  kPtr,
  kLoss,
  kGradient,
  kWorkspace,
  kValue,  // Parameter::value: its first bytes, as many as the kernel's parameter has
};

struct Parameter {
  Source source;
  int64_t value;
};

struct Launch {
  int64_t function;
  Configuration configuration;
  std::vector<Parameter> parameters;
};

struct Recipe {
  int64_t workspace_bytes = 0;
  int64_t gradient_elements = 0;  // allocated: more than B * D if kernels first use it as scratch
  std::vector<Launch> launches;   // empty: launched from Python instead

  static Recipe parse(c10::ArrayRef<int64_t> encoded);
};

// Addresses of one call's tensors, by Source; null if the call has no such tensor.
struct Addresses {
  void* of[7];
};

// The device's current stream; null on a CPU, where tests run a stub driver.
void* current_stream(int64_t device);

void launch_recipe(const Recipe& recipe, const Addresses& addresses, int device, void* stream);

}  // namespace rrd::cuda
