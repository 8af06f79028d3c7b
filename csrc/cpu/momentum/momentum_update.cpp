// momentum_update_ on the CPU: moves rows of a memory towards new ones, in place.
#include <ATen/Dispatch_v2.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <unordered_map>
#include <vector>

#include "cpu/momentum/indices.h"
#include "cpu/parallel.h"
#include "cpu/slots.h"

namespace rrd::cpu {
namespace {

template <typename Stored, typename New>
void update_rows(const at::Tensor& memory, const at::Tensor& index, const at::Tensor& rows,
                 const std::vector<int64_t>& wanted, double momentum) {
  auto slots = memory.accessor<Stored, 2>();
  const auto at = index.accessor<const int64_t, 1>();
  const auto from = rows.accessor<const New, 2>();
  const int64_t dim = memory.size(1), count = static_cast<int64_t>(wanted.size());
  in_phases(kWritten * double(count * dim), ranges(count, kSamples), [&](Worker& worker) {
    std::vector<double> row(dim);
    worker.run_ranges(count, kSamples, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t i = wanted[k];
        for (int64_t d = 0; d < dim; ++d) row[d] = static_cast<double>(from[i][d]);
        write_slot<Stored>(slots[at[i]], row, momentum);
      }
    });
  });
}

// The last occurrence of each index.
std::vector<int64_t> last_occurrences(const at::Tensor& index) {
  const auto at = index.accessor<const int64_t, 1>();
  std::unordered_map<int64_t, int64_t> last;
  for (int64_t i = 0; i < index.size(0); ++i) last[at[i]] = i;
  std::vector<int64_t> wanted;
  wanted.reserve(last.size());
  for (const auto& [row, i] : last) wanted.push_back(i);
  return wanted;
}

void momentum_update(at::Tensor& memory, const at::Tensor& index, const at::Tensor& new_rows,
                     double momentum) {
  // For direct callers of the operator; rrd_kernels.functional checks all but the indices itself.
  TORCH_CHECK_VALUE(memory.dim() == 2 && new_rows.dim() == 2 && index.dim() == 1 &&
                        memory.size(1) == new_rows.size(1) && index.size(0) == new_rows.size(0) &&
                        index.scalar_type() == at::kLong && memory.numel() > 0,
                    "momentum_update_: index ", index.sizes(), " and rows ", new_rows.sizes(),
                    " do not fit a memory ", memory.sizes());
  check_indices("index", index, memory.size(0));
  const std::vector<int64_t> wanted = last_occurrences(index);
  // New rows that alias the memory must not change while it is written.
  const at::Tensor rows = new_rows.is_alias_of(memory) ? new_rows.clone() : new_rows;
  AT_DISPATCH_V2(memory.scalar_type(), "momentum_update_", AT_WRAP([&] {
                   using stored_t = scalar_t;
                   AT_DISPATCH_V2(rows.scalar_type(), "momentum_update_", AT_WRAP([&] {
                                    update_rows<stored_t, scalar_t>(memory, index, rows, wanted,
                                                                    momentum);
                                  }),
                                  AT_EXPAND(AT_FLOATING_TYPES), at::kHalf, at::kBFloat16);
                 }),
                 AT_EXPAND(AT_FLOATING_TYPES), at::kHalf, at::kBFloat16);
}

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, CPU, m) { m.impl("momentum_update_", momentum_update); }

}  // namespace rrd::cpu
