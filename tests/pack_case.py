"""Run by test_triton_pack.py in a process whose libcuda.so.1 is the stub: trainings with kernels
out of a pack, on CPU tensors that go the way of an H200's, without Triton."""

import json
import sys

if __name__ == "__main__":
    sys.modules["triton"] = None  # type: ignore[assignment]  # as if it were not installed

import torch

from rrd_kernels import CRDLoss, RRDLoss, functional
from rrd_kernels.pack import fifo_launches, momentum_launches
from rrd_kernels.triton.cards import Hardware
from rrd_kernels.triton.runtime import run
from rrd_kernels.triton.runtime.launch import Launch

HARDWARE = Hardware("sm_90", 132)
BATCH, ROWS, DIM, N_DATA = 8, 512, 32, 600
COLUMNS = {"dense": 300, "gather": 6}  # as "auto" has it for a memory of that size
FLOAT32 = (torch.float32, torch.float32, "float32", HARDWARE)


def launches() -> list[Launch]:
    """What :func:`main` needs, as `python -m rrd_kernels.pack` lists it."""
    found = list(fifo_launches(BATCH, ROWS, DIM, *FLOAT32))
    for columns in COLUMNS.values():
        found += momentum_launches(BATCH, columns, N_DATA, DIM, *FLOAT32)
    return found


def train(criterion: RRDLoss | CRDLoss, batch: int, *idx: torch.Tensor) -> None:
    """A step and an evaluation, for which a warm-up has loaded all."""
    criterion.warmup(BATCH)
    warm = run._loaded.copy()
    f_s, f_t = torch.randn(batch, 12), torch.randn(batch, 20)
    criterion.train()(f_s, f_t, *idx).backward()
    criterion.eval()
    with torch.no_grad():
        criterion(f_s, f_t, *idx)
    assert run._loaded == warm


def main() -> None:
    from stub_driver.h200 import Function, take_its_place, taken

    take_its_place()
    sizes = {"s_dim": 12, "t_dim": 20, "feat_dim": DIM}
    for start in ("published", "unit"):
        criterion = RRDLoss(**sizes, nce_k=ROWS, start=start)
        train(criterion, BATCH)
        train(criterion, BATCH - 1)
    z_s, z_t, memory = torch.randn(8, DIM), torch.randn(8, DIM), torch.randn(ROWS, DIM)
    for need_grad in (True, False):
        functional.relational_partials(z_s, z_t, memory, need_grad=need_grad)
    for columns in COLUMNS.values():
        for similarity in ("exponential", "cosine"):
            criterion = RRDLoss(
                **sizes,
                memory_type="momentum",
                n_data=N_DATA,
                nce_k=columns - 1,
                similarity=similarity,
            )
            train(criterion, BATCH, torch.arange(BATCH))
        contrastive = CRDLoss(**sizes, n_data=N_DATA, nce_k=columns - 1)
        train(contrastive, BATCH, torch.arange(BATCH))
    loaded = [kernel for kernel in run._loaded.values() if kernel is not None]
    functions = [Function.from_address(kernel.function) for kernel in loaded]
    try:
        functional.relational_loss(z_s[:, :24], z_t[:, :24], memory[:, :24])
    except RuntimeError as error:
        missing = str(error)
    report = {
        "missing": missing,
        "counts": run.counts(),
        "loaded": sorted({function.name.decode() for function in functions}),
        "modes": sorted({function.loaded_in_capture_mode for function in functions}),
        "launched": bool(taken()),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
