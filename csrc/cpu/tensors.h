// Shared by the CPU operators: the kernels' view of tensors, scratch, reduction.
#pragma once

#include <ATen/core/Reduction.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>

#include "cpu/kernels/attention.h"

namespace rrd::cpu {

constexpr double kLog2E = 1.4426950408889634;

inline Element element_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return Element::kFloat;
    case at::kDouble:
      return Element::kDouble;
    case at::kBFloat16:
      return Element::kBFloat16;
    case at::kHalf:
      return Element::kHalf;
    default:
      TORCH_CHECK_TYPE(false, "memory must be float64, float32, bfloat16 or float16; got ", type);
  }
}

inline MemoryView view_of(const at::Tensor& memory) {
  return {memory.const_data_ptr(), element_of(memory.scalar_type()),
          memory.size(0),          memory.size(1),
          memory.stride(0),        memory.stride(1)};
}

template <typename T>
struct Buffer {
  explicit Buffer(int64_t size)
      : storage(at::empty({size * int64_t(sizeof(T))}, at::TensorOptions(at::kByte))),
        data(static_cast<T*>(storage.mutable_data_ptr())) {}
  at::Tensor storage;
  T* data;
};

// The factor of each sample's loss in the reduced loss.
inline double sample_weight_of(int64_t reduction, int64_t batch) {
  return reduction == at::Reduction::Mean ? 1.0 / std::max<int64_t>(batch, 1) : 1.0;
}

// Adds in the order of the samples, so that the result does not depend on the threads.
template <typename T>
at::Tensor reduce(const at::Tensor& losses, int64_t reduction) {
  if (reduction == at::Reduction::None) return losses;
  const T* values = losses.const_data_ptr<T>();
  const double sum = std::accumulate(values, values + losses.numel(), 0.0);
  at::Tensor reduced = at::empty({}, losses.options());
  *reduced.mutable_data_ptr<T>() = T(sum * sample_weight_of(reduction, losses.numel()));
  return reduced;
}

}  // namespace rrd::cpu
