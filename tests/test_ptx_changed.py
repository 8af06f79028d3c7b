"""A kernel that is changed wrongly in one line fails what executes it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]
FIFO, MOMENTUM = "tests/test_ptx_fifo.py", "tests/test_ptx_momentum.py"

#: Kernels' module, line, what becomes of it, and the kernel's tests: a file, and which of them.
CHANGES = [
    (
        *("common/tiles", 'logits = tl.where(inside[None, :], logits, float("-inf"))', "pass"),
        *(FIFO, "steps and tf32 and 64 and 5x333 and sm_90"),
    ),
    (
        *("fifo/attention", "shrink = tl.exp2(shift - larger)", "shrink = tl.exp2(larger - shift)"),
        *(FIFO, "steps and float16 and 128 and sm_80"),
    ),
    (
        *("fifo/attention", "begin + tiles_per_split * BLOCK_N, ", "begin + tiles_per_split, "),
        *(FIFO, "steps and tf32 and 64 and 5x333 and sm_90"),
    ),
    (
        "fifo/attention",
        *("mask=inside[:, None] & (d[None, :] < DIM_PAD))", "mask=inside[:, None])"),
        *(FIFO, "steps and bfloat16 and 100 and sm_90"),
    ),
    (
        "fifo/loss_only",
        "cross += tl.sum(weights * finite, axis=1)",
        "cross += tl.sum(weights * logits_s, axis=1)",
        *(FIFO, "steps and float32 and 100 and 5x333 and sm_90"),
    ),
    ("fifo/loss_only", "finite = logits_s - logits_t", "finite = logits_s",
     FIFO, "steps and float32 and kl and kept and sm_90"),
    ("fifo/combine", "(output_s - output_t) * inverse", "(output_s + output_t) * inverse",
     FIFO, "steps and mean and 64 and sm_80"),
    ("fifo/combine", "share * (own - output_s)", "share * own",
     FIFO, "steps and own and float16 and sm_90"),
    ("common/splits", 'sem="acq_rel"', 'sem="relaxed"', FIFO, "steps and mean and 64 and sm_80"),
    ("common/prepare", "tl.store(progress + 1, 0)", "pass",
     FIFO, "steps and mean and 64 and sm_80"),
    ("common/prepare", "store_query(queries, batch + i,", "store_query(queries, i,",
     FIFO, "partial_sums"),
    ("common/rows", "mask=d < kept", "mask=d < DIM", FIFO, "not_finite and float32 and sm_90"),
    ("common/rows", "return tl.where(at < 0, at + size, at)", "return at", FIFO, "enqueue_alone"),
    ("common/rows", "at = slot_of(at - batch, size)", "at = at - batch",
     FIFO, "enqueue_alone and True and sm_90"),
    ("fifo/enqueue", "slot = (first + i) % size", "slot = first + i", FIFO, "enqueue_alone"),
    ("fifo/merge", "tl.store(row + 2, cross * LOG_2)", "tl.store(row + 2, cross)",
     FIFO, "partial_sums"),
    ("momentum/update", "tl.range(i + 1, batch", "tl.range(i, batch", MOMENTUM, "update"),
    ("momentum/normalizers", "p < columns, tl.exp(logits), 0.0", "p < columns, logits, 0.0",
     MOMENTUM, "normalizers and sm_90"),
    ("momentum/dense", "(row >= 0) & (row < n_data), row, n_data", "row >= 0, row, n_data",
     MOMENTUM, "no_row"),
    ("momentum/gather", "(index >= 0) & (index < n_data)", "index >= 0", MOMENTUM, "no_row"),
    ("momentum/combine", "log2(total_s) + shift_s - mean_logit", "log2(total_s) - mean_logit",
     MOMENTUM, "test_losses and gather and 32 and sm_90"),
    ("momentum/contrastive", "LOG_2 + x * series", "LOG_2 - tl.log2(1.0 - s) * LOG_2",
     MOMENTUM, "told_apart and gather and sm_90"),
    ("momentum/contrastive", "output *= (largest / 32768.0)[:, None]", "output /= 32768.0",
     MOMENTUM, "contrastive_losses and float16 and 32 and sm_90"),
]  # fmt: skip


def run(folder, file, selected):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file]
    return subprocess.run(
        [*command, "-k", selected],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package and what executes it."""
    folder = tmp_path_factory.mktemp("changed")
    for name in ("rrd_kernels", "tests"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("pyproject.toml", "VERSION"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "was", "becomes", "file", "selected"),
    CHANGES,
    ids=[f"{module}-{becomes}" for module, _, becomes, *_ in CHANGES],
)
def test_a_wrong_line_is_noticed(module, was, becomes, file, selected, copy):
    folder, name = module.split("/")
    path = copy / "rrd_kernels" / "triton" / folder / "kernels" / f"{name}.py"
    text = path.read_text()
    assert text.count(was) == 1
    try:
        path.write_text(text.replace(was, becomes))
        done = run(copy, file, selected)
    finally:
        path.write_text(text)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "PtxError" in done.stdout or "AssertionError" in done.stdout
