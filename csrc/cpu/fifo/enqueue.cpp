// enqueue_ on the CPU: writes unit rows into a ring of slots, in place.
#include <ATen/Dispatch_v2.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <vector>

#include "cpu/parallel.h"
#include "cpu/slots.h"

namespace rrd::cpu {
namespace {

template <typename Stored, typename Key>
void write_rows(const at::Tensor& memory, int64_t first, const at::Tensor& keys, double momentum) {
  auto slots = memory.accessor<Stored, 2>();
  const auto rows = keys.accessor<const Key, 2>();
  const int64_t size = memory.size(0), dim = memory.size(1), count = rows.size(0);
  in_phases(kWritten * double(count * dim), ranges(count, kSamples), [&](Worker& worker) {
    std::vector<double> key(dim);
    worker.run_ranges(count, kSamples, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t d = 0; d < dim; ++d) key[d] = static_cast<double>(rows[i][d]);
        write_slot<Stored>(slots[(first + i) % size], key, momentum);
      }
    });
  });
}

void enqueue(at::Tensor& memory, at::Tensor& ptr, const at::Tensor& rows, bool newest_first,
             double momentum) {
  // For direct callers of the operator; rrd_kernels.functional checks everything itself.
  TORCH_CHECK_VALUE(memory.dim() == 2 && rows.dim() == 2 && memory.size(1) == rows.size(1) &&
                        rows.size(0) <= memory.size(0) && memory.numel() > 0,
                    "enqueue_: keys ", rows.sizes(), " do not fit a memory ", memory.sizes());
  TORCH_CHECK_VALUE(ptr.numel() == 1 && ptr.scalar_type() == at::kLong,
                    "enqueue_: ptr must be one int64");
  // Keys that alias the memory must not change while slots are written.
  const at::Tensor keys = rows.is_alias_of(memory) ? rows.clone() : rows;
  const int64_t size = memory.size(0);
  int64_t* at = ptr.mutable_data_ptr<int64_t>();
  // ptr from a checkpoint may hold any number; the modulo makes it a valid slot.
  const int64_t given = ((*at % size) + size) % size, count = keys.size(0);
  const int64_t first = newest_first ? (given + size - count) % size : given;
  AT_DISPATCH_V2(memory.scalar_type(), "enqueue_", AT_WRAP([&] {
                   using stored_t = scalar_t;
                   AT_DISPATCH_V2(keys.scalar_type(), "enqueue_", AT_WRAP([&] {
                                    write_rows<stored_t, scalar_t>(memory, first, keys, momentum);
                                  }),
                                  AT_EXPAND(AT_FLOATING_TYPES), at::kHalf, at::kBFloat16);
                 }),
                 AT_EXPAND(AT_FLOATING_TYPES), at::kHalf, at::kBFloat16);
  *at = newest_first ? first : (first + count) % size;
}

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, CPU, m) { m.impl("enqueue_", enqueue); }

}  // namespace rrd::cpu
