// Detects forwards that activation checkpointing recomputes: these must not write the memory.
// rrd_kernels/recomputation.py does so in eager mode. A graph of torch.compile runs without Python
// and calls the backends' operators directly, so these check.
#pragma once

#include <c10/util/Exception.h>
#include <c10/util/string_view.h>
#include <torch/csrc/autograd/graph_task.h>

namespace rrd {

// Recomputation is the only reason why a forward runs inside autograd's backward.
inline bool is_recomputation() { return torch::autograd::get_current_graph_task_id() != -1; }

// For a loss that reads the memory before it is written: the recomputation would read the new
// memory, and so differentiate another loss than the one that was returned.
inline void refuse_recomputation() {
  TORCH_CHECK(!is_recomputation(),
              "torch.utils.checkpoint recomputes a loss whose memory has changed since; call the "
              "criterion outside the checkpointed function, or with update=False");
}

// Whether a step writes its rows. Raises if it is a recomputation with enqueue = "after".
inline bool may_write(c10::string_view enqueue) {
  TORCH_CHECK_VALUE(enqueue == "before" || enqueue == "after",
                    "rrd_kernels: enqueue must be 'before' or 'after'; got '", enqueue, "'");
  if (enqueue == "after") refuse_recomputation();
  return !is_recomputation();
}

}  // namespace rrd
