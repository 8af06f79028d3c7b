// Operator schemas. Every backend registers on these; rrd_kernels/extension.py registers their
// fakes.
#include <torch/library.h>

#include <string>

namespace {

// Defines an operator, and its scheduled_ twin that takes its numbers as tensors (scheduled.cpp).
void define(torch::Library& m, std::string schema) {
  m.def(schema.c_str());
  for (size_t at; (at = schema.find("float ")) != std::string::npos;) {
    schema.replace(at, 5, "Tensor");
  }
  // A CUDA graph would replay the numbers that it was captured with.
  m.def(("scheduled_" + schema).c_str(), {at::Tag::cudagraph_unsafe});
}

}  // namespace

TORCH_LIBRARY(rrd_kernels, m) {
  // Differentiable in z_s. own_pair: the teacher's own row is a column beside the memory's rows.
  // tau_t = 0 is the hard target: the own pair has probability one. kl subtracts the teacher's
  // entropy. reduction is an at::Reduction: 0 (none) returns [B]; 1 (mean) and 2 (sum) return a
  // scalar, zero for B = 0.
  define(m,
         "relational_loss(Tensor z_s, Tensor z_t, Tensor memory, float tau_s, float tau_t, "
         "bool unit_memory, bool own_pair, bool kl, str? precision, int reduction) -> Tensor");

  // relational_loss, and enqueue_ of the rows of z_t. enqueue: "before" or "after" the loss reads
  // the memory.
  define(m,
         "relational_step_(Tensor(a!) memory, Tensor(b!) ptr, Tensor z_s, Tensor z_t, "
         "float tau_s, float tau_t, bool unit_memory, bool own_pair, bool kl, str? precision, "
         "int reduction, str enqueue, bool newest_first, float momentum) -> Tensor");

  // The backends' part of these two, without autograd: the reduced loss and its gradient, [B, D]
  // with need_grad, else [0, D]. Without a reduction, row i is the gradient of loss_i. A backend
  // may omit the second: csrc/composed_step.cpp then composes it from the first and enqueue_.
  define(m,
         "relational_loss_forward(Tensor z_s, Tensor z_t, Tensor memory, float tau_s, float tau_t, "
         "bool unit_memory, bool own_pair, bool kl, str? precision, int reduction, "
         "bool need_grad) -> (Tensor loss, Tensor grad_z_s)");
  define(m,
         "relational_step_forward_(Tensor(a!) memory, Tensor(b!) ptr, Tensor z_s, Tensor z_t, "
         "float tau_s, float tau_t, bool unit_memory, bool own_pair, bool kl, str? precision, "
         "int reduction, str enqueue, bool newest_first, float momentum, bool need_grad) "
         "-> (Tensor loss, Tensor grad_z_s)");

  // The loss's sums over the memory, before any division. Weights are 2^(logit - shift), logits in
  // units of log 2. sums [B, 3]: the student's weights; the teacher's weights; the teacher's weight
  // times b, the student's logit, here in natural units; with kl, times b - a. With need_grad
  // [B, 3 + 2D]: also the student's and the teacher's weighted rows. shifts [B, 2]: student,
  // teacher. A hard target (tau_t = 0) has the student's alone: [B, 1] or [B, 1 + D], and [B, 1].
  // No gradient, and no own pair: it is added once, to the sums of all parts.
  m.def(
      "relational_partials(Tensor z_s, Tensor z_t, Tensor memory, float tau_s, float tau_t, "
      "bool unit_memory, bool kl, str? precision, bool need_grad) "
      "-> (Tensor sums, Tensor shifts)");

  // slot <- normalize(momentum * slot + (1 - momentum) * normalize(key)) from slot ptr on, and
  // ptr <- ptr + B. newest_first: from slot ptr - B on, and ptr <- ptr - B.
  define(m,
         "enqueue_(Tensor(a!) memory, Tensor(b!) ptr, Tensor keys, bool newest_first, "
         "float momentum) -> ()");

  // The loss over sampled rows: z_s against memory_v2 and z_t against memory_v1, at the rows
  // contrast_idx [B, P]. With normalizers (Z_v1, Z_v2) logits are exp(s.m / nce_t) / Z / tau;
  // without, s.m / tau. method: "dense", "gather" or "auto". Differentiable in z_s.
  define(m,
         "sampled_relational_loss(Tensor z_s, Tensor z_t, Tensor memory_v1, Tensor memory_v2, "
         "Tensor contrast_idx, Tensor? normalizers, float tau_s, float tau_t, float nce_t, "
         "str? precision, int reduction, str method) -> Tensor");
  define(m,
         "sampled_relational_loss_forward(Tensor z_s, Tensor z_t, Tensor memory_v1, "
         "Tensor memory_v2, Tensor contrast_idx, Tensor? normalizers, float tau_s, float tau_t, "
         "float nce_t, str? precision, int reduction, str method, bool need_grad) "
         "-> (Tensor loss, Tensor grad_z_s)");

  // Noise-contrastive estimation over sampled rows, of both views: z_s against memory_v2, z_t
  // against memory_v1. Column 0 is the positive. Differentiable in z_s and z_t.
  define(m,
         "sampled_contrastive_loss(Tensor z_s, Tensor z_t, Tensor memory_v1, Tensor memory_v2, "
         "Tensor contrast_idx, Tensor normalizers, float nce_t, str? precision, int reduction, "
         "str method) -> Tensor");
  define(m,
         "sampled_contrastive_loss_forward(Tensor z_s, Tensor z_t, Tensor memory_v1, "
         "Tensor memory_v2, Tensor contrast_idx, Tensor normalizers, float nce_t, str? precision, "
         "int reduction, str method, bool need_grad_s, bool need_grad_t) "
         "-> (Tensor loss, Tensor grad_z_s, Tensor grad_z_t)");

  // normalizers[i] <- mean(exp(s.m / nce_t)) * n_data of view i, if the old value is negative and
  // the new one finite.
  define(m,
         "estimate_normalizers_(Tensor(a!) normalizers, Tensor z_s, Tensor z_t, Tensor memory_v1, "
         "Tensor memory_v2, Tensor contrast_idx, float nce_t) -> ()");

  // memory[i] <- normalize(momentum * memory[i] + (1 - momentum) * normalize(row)), i from index.
  define(m, "momentum_update_(Tensor(a!) memory, Tensor index, Tensor rows, float momentum) -> ()");

  // Raises in a forward that activation checkpointing recomputes. Writes nothing: (a!) only keeps
  // the operator in its place in a graph of torch.compile.
  m.def("refuse_recomputation_(Tensor(a!) memory) -> ()");

  // Implemented in Python, called by csrc/cuda. precision is resolved; enqueue may be "never".
  // triton_step computes one call; triton_recipe returns its launches for reuse (cuda/recipe.h).
  m.def(
      "triton_step(Tensor z_s, Tensor z_t, Tensor(a!) memory, Tensor(b!)? ptr, float tau_s, "
      "float tau_t, bool unit_memory, bool own_pair, bool kl, str precision, int reduction, "
      "bool need_grad, str enqueue, bool newest_first, float momentum) "
      "-> (Tensor loss, Tensor grad_z_s)");
  m.def(
      "triton_recipe(Tensor z_s, Tensor z_t, Tensor memory, Tensor? ptr, float tau_s, "
      "float tau_t, bool unit_memory, bool own_pair, bool kl, str precision, int reduction, "
      "bool need_grad, str enqueue, bool newest_first, float momentum) -> int[]");

  // Loads machine code, uint8 [bytes], on a CUDA device. Returns a handle to the function `name`
  // and its parameters' sizes in bytes, empty if the driver cannot tell.
  m.def(
      "load_kernel(Tensor code, str name, int shared_bytes, int device) "
      "-> (int function, int[] parameter_sizes)");
  // Launches a recipe from rrd_kernels/triton/runtime/launch.py on the device's current stream.
  m.def("launch_kernels(int[] recipe, int device) -> ()");

  // The PyTorch version that the extension was compiled against, and the names of this machine's
  // CPU kernels for float64, float32 and bfloat16 products.
  m.def("torch_version() -> str");
  m.def("cpu_kernels() -> str[]");
}
