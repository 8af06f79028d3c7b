// Operator schemas. Every backend registers on these; rrd_kernels/ops.py registers their fakes.
#include <torch/library.h>

TORCH_LIBRARY(rrd_kernels, m) {
  // Differentiable in z_s. reduction as at::Reduction: 0 none, loss [B]; 1 mean, 2 sum: a scalar.
  m.def(
      "relational_loss(Tensor z_s, Tensor z_t, Tensor memory, float tau_s, float tau_t, "
      "bool unit_memory, str? precision, int reduction) -> Tensor");

  // loss [B] and, with need_grad, d loss_i / d z_s_i [B, D] (else [0, D]); no autograd graph.
  m.def(
      "relational_loss_forward(Tensor z_s, Tensor z_t, Tensor memory, float tau_s, float tau_t, "
      "bool unit_memory, str? precision, bool need_grad) -> (Tensor loss, Tensor grad_z_s)");

  // slot <- normalize(momentum * slot + (1 - momentum) * normalize(key)), pointer <- pointer + B.
  m.def("enqueue_(Tensor(a!) memory, Tensor(b!) pointer, Tensor keys, float momentum) -> ()");

  // The PyTorch that this was compiled against, and the CPU kernels that run on this machine for
  // float64, float32 and bfloat16 products.
  m.def("torch_version() -> str");
  m.def("cpu_kernels() -> str[]");
}
