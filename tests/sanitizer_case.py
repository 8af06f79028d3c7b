"""A few steps of odd shapes, by themselves and under compute-sanitizer: for ``make gpu-check``."""

import torch
import torch.nn.functional as F

from rrd_kernels.functional import enqueue_, relational_loss, relational_step_

#: B, D, K, dtype, order; few and small, since memcheck follows every access to memory.
CASES = [
    (3, 24, 50, torch.float32, "before"),
    (37, 72, 517, torch.bfloat16, "after"),
    (70, 100, 301, torch.float16, "before"),
]


def steps(batch: int, dim: int, rows: int, dtype: torch.dtype, enqueue: str) -> None:
    """Two, the second of which wraps; then each operator alone."""
    memory = F.normalize(torch.randn(rows, dim, device="cuda"), dim=1).to(dtype)
    pointer = torch.tensor([rows - batch - 1], device="cuda")
    settings = {"unit_memory": True, "backend": "fused"}
    for _ in range(2):
        z_s, z_t = torch.randn(2, batch, dim, device="cuda").to(dtype)
        z_s.requires_grad_()
        relational_step_(z_s, z_t, memory, pointer, enqueue=enqueue, **settings).backward()
    assert z_s.grad is not None
    assert z_s.grad.isfinite().all()
    assert pointer.item() == (rows + batch - 1) % rows
    enqueue_(memory, pointer, z_t, momentum=0.5, backend="fused")
    with torch.no_grad():
        assert relational_loss(z_s, z_t, memory, reduction="none", backend="fused").isfinite().all()


if __name__ == "__main__":
    torch.manual_seed(0)
    for case in CASES:
        steps(*case)
    print("done")
