// Operator schemas. Every backend registers on these; rrd_kernels/extension.py registers their
// fakes.
#include <torch/library.h>

TORCH_LIBRARY(rrd_kernels, m) {
  // Differentiable in z_s. reduction as at::Reduction: 0 none, loss [B]; 1 mean, 2 sum: a scalar,
  // which is zero for B = 0.
  m.def(
      "relational_loss(Tensor z_s, Tensor z_t, Tensor memory, float tau_s, float tau_t, "
      "bool unit_memory, str? precision, int reduction) -> Tensor");

  // The same, with the rows of z_t entering the memory as enqueue_ writes them, before or after the
  // similarities are taken.
  m.def(
      "relational_step_(Tensor(a!) memory, Tensor(b!) ptr, Tensor z_s, Tensor z_t, "
      "float tau_s, float tau_t, bool unit_memory, str? precision, int reduction, "
      "str enqueue, float momentum) -> Tensor");

  // What a backend computes for these two, without an autograd graph: the loss, reduced, and with
  // need_grad its derivative [B, D] (else [0, D]), of loss_i in row i where nothing is reduced.
  // A backend may leave the second out: it is then composed from the first and enqueue_.
  m.def(
      "relational_loss_forward(Tensor z_s, Tensor z_t, Tensor memory, float tau_s, float tau_t, "
      "bool unit_memory, str? precision, int reduction, bool need_grad) "
      "-> (Tensor loss, Tensor grad_z_s)");
  m.def(
      "relational_step_forward_(Tensor(a!) memory, Tensor(b!) ptr, Tensor z_s, Tensor z_t, "
      "float tau_s, float tau_t, bool unit_memory, str? precision, int reduction, "
      "str enqueue, float momentum, bool need_grad) -> (Tensor loss, Tensor grad_z_s)");

  // What that adds up over the memory, before any division: for each sample, with weights
  // 2^(logit log2(e) - shift), their sums for the student and the teacher, the sum of the teacher's
  // times the student's logits, and with need_grad both weighted sums of rows, [B, 3 + 2D] or
  // [B, 3]; and the shifts [B, 2]. Without a derivative.
  m.def(
      "relational_partials(Tensor z_s, Tensor z_t, Tensor memory, float tau_s, float tau_t, "
      "bool unit_memory, str? precision, bool need_grad) -> (Tensor sums, Tensor shifts)");

  // slot <- normalize(momentum * slot + (1 - momentum) * normalize(key)), ptr <- ptr + B.
  m.def("enqueue_(Tensor(a!) memory, Tensor(b!) ptr, Tensor keys, float momentum) -> ()");

  // The loss over sampled rows: z_s against memory_v2 and z_t against memory_v1, at the rows
  // contrast_idx [B, P]. With normalizers (Z_v1, Z_v2) logits are exp(s.m / nce_t) / Z / tau;
  // without, s.m / tau. method: "dense", "gather" or "auto". Differentiable in z_s.
  m.def(
      "sampled_relational_loss(Tensor z_s, Tensor z_t, Tensor memory_v1, Tensor memory_v2, "
      "Tensor contrast_idx, Tensor? normalizers, float tau_s, float tau_t, float nce_t, "
      "str? precision, int reduction, str method) -> Tensor");
  m.def(
      "sampled_relational_loss_forward(Tensor z_s, Tensor z_t, Tensor memory_v1, "
      "Tensor memory_v2, Tensor contrast_idx, Tensor? normalizers, float tau_s, float tau_t, "
      "float nce_t, str? precision, int reduction, str method, bool need_grad) "
      "-> (Tensor loss, Tensor grad_z_s)");

  // normalizers[i] <- mean(exp(s.m / nce_t)) * n_data of view i, where it is negative and that is
  // finite.
  m.def(
      "estimate_normalizers_(Tensor(a!) normalizers, Tensor z_s, Tensor z_t, Tensor memory_v1, "
      "Tensor memory_v2, Tensor contrast_idx, float nce_t) -> ()");

  // row <- normalize(momentum * row + (1 - momentum) * normalize(new)), at index.
  m.def("momentum_update_(Tensor(a!) memory, Tensor index, Tensor rows, float momentum) -> ()");

  // Raises in a forward that activation checkpointing repeats. Nothing is written; the schema says
  // so to keep it where it is in a graph of torch.compile.
  m.def("refuse_recomputation_(Tensor(a!) memory) -> ()");

  // What csrc/cuda leaves to Python. precision is settled; enqueue may be "never" too. The first
  // computes a call; the second says how calls of its kind are launched, see csrc/cuda/recipe.h.
  m.def(
      "triton_step(Tensor z_s, Tensor z_t, Tensor(a!) memory, Tensor(b!)? ptr, float tau_s, "
      "float tau_t, bool unit_memory, str precision, int reduction, bool need_grad, str enqueue, "
      "float momentum) -> (Tensor loss, Tensor grad_z_s)");
  m.def(
      "triton_recipe(Tensor z_s, Tensor z_t, Tensor memory, Tensor? ptr, float tau_s, "
      "float tau_t, bool unit_memory, str precision, int reduction, bool need_grad, str enqueue, "
      "float momentum) -> int[]");

  // Loads machine code, uint8 [bytes], on a CUDA device: a handle to the function of this name, and
  // the sizes in bytes of its parameters, none where the driver cannot tell.
  m.def(
      "load_kernel(Tensor code, str name, int shared_bytes, int device) "
      "-> (int function, int[] parameter_sizes)");
  // Launches encoded as rrd_kernels/triton/runtime/launch.py does, on the device's current stream.
  m.def("launch_kernels(int[] recipe, int device) -> ()");

  // The PyTorch that this was compiled against, and the CPU kernels that run on this machine for
  // float64, float32 and bfloat16 products.
  m.def("torch_version() -> str");
  m.def("cpu_kernels() -> str[]");
}
