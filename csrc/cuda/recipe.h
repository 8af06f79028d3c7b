// What to launch for one kind of call: compiled kernels with their arguments, made by
// rrd_kernels/triton/runtime/launch.py, which states the same layout.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <vector>

#include "cuda/driver.h"

namespace rrd::cuda {

// Where a parameter's value comes from. Tensors are pointers; a workspace parameter is an offset in
// bytes into it.
enum class Source : int64_t {
  kStudent,
  kTeacher,
  kMemory,
  kPtr,
  kLoss,
  kGradient,
  kWorkspace,
  kValue,  // as many bytes of it as the kernel's parameter has
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
  int64_t gradient_elements = 0;  // that are allocated: more where the kernels begin it as scratch
  std::vector<Launch> launches;   // none: not for this launcher

  static Recipe parse(c10::ArrayRef<int64_t> encoded);
};

// The tensors of one call, by Source; one that it has not is null.
struct Addresses {
  void* of[7];
};

void launch_recipe(const Recipe& recipe, const Addresses& addresses, int device, void* stream);

}  // namespace rrd::cuda
