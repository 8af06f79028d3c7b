// Forwards that activation checkpointing runs a second time: nothing is to be written then.
// rrd_kernels/recomputation.py sees them where Python runs; a graph that torch.compile has made
// runs without it, and without the kernels above the backends'.
#pragma once

#include <c10/util/Exception.h>
#include <c10/util/string_view.h>
#include <torch/csrc/autograd/graph_task.h>

namespace rrd {

// Autograd runs a forward itself for this reason alone.
inline bool is_recomputation() { return torch::autograd::get_current_graph_task_id() != -1; }

// For a loss that is taken before the memory changes: it would differentiate another loss than the
// one that was returned.
inline void refuse_recomputation() {
  TORCH_CHECK(!is_recomputation(),
              "torch.utils.checkpoint recomputes a loss whose memory has changed since; call the "
              "criterion outside of the function that is checkpointed, or with update=False");
}

// Whether a step's rows enter the memory.
inline bool may_write(c10::string_view enqueue) {
  TORCH_CHECK_VALUE(enqueue == "before" || enqueue == "after",
                    "rrd_kernels: enqueue must be 'before' or 'after'; got '", enqueue, "'");
  if (enqueue == "after") refuse_recomputation();
  return !is_recomputation();
}

}  // namespace rrd
