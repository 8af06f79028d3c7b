"""Run by test_triton_pack.py in a process whose libcuda.so.1 is the stub: every operator with kernels out
of a pack, for tensors on the CPU that go the way of an H200's."""

import json
import sys

import torch

from rrd_kernels import functional
from rrd_kernels.triton import run
from rrd_kernels.triton.configs import Hardware
from rrd_kernels.triton.launch import Launch
from rrd_kernels.triton.momentum import normalizer_launches, update_launch
from rrd_kernels.triton.partials import partials_launches
from rrd_kernels.triton.sampled_step import Inputs, SampledSettings, sampled_launches
from rrd_kernels.triton.step import Settings, enqueue_launches, step_launches

HARDWARE = Hardware("sm_90", 132)
BATCH, SIZE, DIM, COLUMNS = 8, 512, 32, 6
TAUS = {"tau_s": 0.1, "tau_t": 0.02}


def tensors(device: str) -> tuple[torch.Tensor, ...]:
    """z_s, z_t, memory, pointer, contrast_idx, normalizers."""
    z_s, z_t = torch.ones(2, BATCH, DIM, device=device)
    memory = torch.ones(SIZE, DIM, device=device)
    pointer = torch.zeros(1, dtype=torch.int64, device=device)
    contrast_idx = torch.zeros(BATCH, COLUMNS, dtype=torch.int64, device=device)
    return z_s, z_t, memory, pointer, contrast_idx, torch.ones(2, device=device)


def launches() -> list[Launch]:
    """Of what :func:`main` calls, on tensors that have no memory."""
    z_s, z_t, memory, pointer, contrast_idx, normalizers = tensors("meta")
    found: list[Launch] = []
    for need_grad in (True, False):
        settings = Settings(*TAUS.values(), True, "float32", 1, need_grad)
        step = settings._replace(enqueue="before")
        found += step_launches(z_s, z_t, memory, pointer, step, HARDWARE)[1]
        found += step_launches(z_s, z_t, memory, None, settings, HARDWARE)[1]
        whole = settings._replace(reduction=0)
        found += partials_launches(z_s, z_t, memory, whole, HARDWARE)[1]
        inputs = Inputs(z_s, z_t, memory, memory, contrast_idx, normalizers)
        for method in ("dense", "gather"):
            sampled = SampledSettings(*TAUS.values(), 0.07, "float32", 1, method, need_grad)
            found += sampled_launches(inputs, sampled, HARDWARE)[1]
    found += enqueue_launches(memory, pointer, z_t, 0.0)
    found += normalizer_launches(normalizers, *inputs[:5], 0.07, HARDWARE)
    found.append(update_launch(memory, contrast_idx[:, 0], z_t, 0.5))
    return found


def main() -> None:
    from stub_driver.h200 import Function, take_its_place, taken

    take_its_place()
    z_s, z_t, memory, _, contrast_idx, normalizers = tensors("cpu")
    functional.warmup(BATCH, SIZE, DIM, **TAUS, unit_memory=True)
    for need_grad in (True, False):
        functional.relational_partials(
            z_s, z_t, memory, **TAUS, need_grad=need_grad, unit_memory=True
        )
        leaf = z_s.clone().requires_grad_(need_grad)
        for method in ("dense", "gather"):
            functional.sampled_relational_loss(
                leaf, z_t, memory, memory, contrast_idx, normalizers=normalizers, **TAUS,
                nce_t=0.07, method=method,
            )  # fmt: skip
    views = z_s, z_t, memory, memory, contrast_idx
    functional.estimate_normalizers_(normalizers, *views, nce_t=0.07)
    functional.momentum_update_(memory, contrast_idx[:, 0], z_t, 0.5)
    report = {
        "triton": "triton" in sys.modules,
        "counts": run.counts(),
        "launched": sorted({launched.name for launched in taken()}),
        "modes": sorted(
            {
                Function.from_address(kernel.function).loaded_in_capture_mode
                for kernel in run._loaded.values()
                if kernel is not None
            }
        ),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
