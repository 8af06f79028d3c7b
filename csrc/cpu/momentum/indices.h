// Checks a caller's row indices before anything is written.
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>

#include "cpu/parallel.h"

namespace rrd::cpu {

// indices: int64, any shape. Raises IndexError, which names the first that is not a row.
inline void check_indices(const char* name, const at::Tensor& indices, int64_t rows) {
  const at::Tensor flat = indices.contiguous();
  const int64_t* values = flat.const_data_ptr<int64_t>();
  std::atomic<bool> wrong{false};
  constexpr int64_t kEach = 1 << 16;
  constexpr double kChecked = 0.3;  // nanoseconds
  in_phases(kChecked * double(flat.numel()), ranges(flat.numel(), kEach), [&](Worker& worker) {
    worker.run_ranges(flat.numel(), kEach, [&](int64_t begin, int64_t end) {
      // Branch-free, so that the loop vectorises; as uint64_t, negative numbers are
      // large.
      bool outside = false;
      for (int64_t i = begin; i < end; ++i) {
        outside |= uint64_t(values[i]) >= uint64_t(rows);
      }
      if (outside) wrong = true;
    });
  });
  if (!wrong) return;
  for (int64_t i = 0; i < flat.numel(); ++i) {
    TORCH_CHECK_INDEX(0 <= values[i] && values[i] < rows, name, " has ", values[i],
                      ", which is not one of the memory's ", rows, " rows");
  }
}

}  // namespace rrd::cpu
