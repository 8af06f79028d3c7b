// Writes one row of a memory, for enqueue_ and momentum_update_.
#pragma once

#include <ATen/core/TensorAccessor.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/kernels/attention.h"

namespace rrd::cpu {

// The factor that makes a row a unit row, as in torch.nn.functional.normalize.
inline double inverse_norm(const std::vector<double>& row) {
  double square = 0;
  for (const double value : row) square += value * value;
  return 1.0 / std::max(std::sqrt(square), kNormEps);
}

template <typename Stored>
void write_slot(at::TensorAccessor<Stored, 1> slot, std::vector<double>& key, double momentum) {
  // A sum of value * 0 is NaN if any value is not finite: such a key leaves its slot as it was.
  double check = 0;
  for (const double value : key) check += value * 0.0;
  if (check != 0.0) return;

  const double scale = inverse_norm(key);
  for (double& value : key) value *= scale;
  if (momentum != 0.0) {
    for (size_t d = 0; d < key.size(); ++d) {
      key[d] = momentum * double(slot[d]) + (1.0 - momentum) * key[d];
    }
    const double again = inverse_norm(key);
    for (double& value : key) value *= again;
  }
  for (size_t d = 0; d < key.size(); ++d) slot[d] = static_cast<Stored>(key[d]);
}

}  // namespace rrd::cpu
