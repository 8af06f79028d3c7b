"""A training step on a momentum memory of which every rank has a copy."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rrd_kernels import validation as check
from rrd_kernels.distributed.agreement import Share, Standing, agree, check_projections
from rrd_kernels.distributed.collectives import copy_from, gather_rows
from rrd_kernels.distributed.ddp import refuse_join
from rrd_kernels.extension import use_fused
from rrd_kernels.momentum import functional
from rrd_kernels.momentum.state import MomentumState, Views


@torch._disable_dynamo  # as for keys_step
def shared_step(
    memory: MomentumState,
    embed: Callable[[], tuple[Tensor, Views, bool]],
    temperatures: Mapping[str, check.Number],
    *,
    draws: bool,
) -> Tensor:
    """The loss of this rank's samples; every rank updates the rows of all ranks' samples.

    Args:
        memory: the memory; written.
        embed: checks this rank's input; returns its samples' indices, the inputs of the loss and
            whether the samples' rows are updated.
        temperatures: those of the loss, by their names.
        draws: whether the columns are drawn here rather than given.

    Returns:
        The mean over this rank's samples, weighted as :meth:`Step.weighted` does.

    Raises:
        RuntimeError, ValueError: as :func:`rrd_kernels.distributed.agreement.agree`.
    """
    ranks, rows = memory.ranks, memory.contrast
    embedded: list[tuple[Tensor, Views, bool]] = []

    def share() -> Share:
        for name, value in temperatures.items():
            check.check_temperature(name, value)
        if ranks.are_others() and rows.standing == Standing.ALIKE:
            rows.standing = Standing.STALE
        embedded.append(embed())
        idx, (z_s, z_t, memory_v1, _, contrast_idx), writes = embedded[0]
        use_fused(memory.backend, rows.params.device)
        check.check_has_columns(contrast_idx)
        check.check_range("contrast_idx", contrast_idx, len(memory_v1))
        alike: dict[str, Any] = memory.alike() | check.floats(temperatures)
        alike |= {"update": writes, "dtype of z_s": z_s.dtype, "dtype of z_t": z_t.dtype}
        # Drawn columns are K + 1; a state that only some ranks loaded may have changed K there.
        alike["P, the columns of contrast_idx,"] = "drawn" if draws else contrast_idx.shape[1]
        return Share(len(idx), alike, standing=rows.standing)

    refuse_join(ranks)
    step = agree(ranks, rows.params.device, share)
    (idx, views, writes) = embedded[0]
    if step.stale:
        check_projections(ranks, rows.params.device, memory)
    if writes or step.stale:  # as in rrd_kernels.fifo.distributed.begin
        rows.standing = Standing.UNFINISHED
    if step.stale:
        copy_from(ranks, step.source, (rows.params, rows.memory_v1, rows.memory_v2))
        size = rows.size
        rows.read_params()
        rows.normalized = False
        if draws and rows.size != size:
            views = (*views[:4], memory.draw(idx))
    # Both are gathered while the loss is computed.
    samples = gather_rows(ranks, idx, step.batches) if writes else None
    moved = gather_rows(ranks, torch.cat(views[:2], 1), step.batches) if writes else None
    normalizers = memory.stored_normalizers(writes)
    if normalizers is not None and not rows.normalized:
        _estimate_(memory, normalizers, views)
        rows.normalized = writes and not bool((normalizers < 0).any())
    loss = memory.loss(views, normalizers, **temperatures)
    if samples is not None and moved is not None:
        memory.move_rows(samples.wait(), *moved.wait().chunk(2, dim=1))
    rows.mark_read()
    rows.standing = Standing.ALIKE
    return step.weighted(loss, ranks.rank)


def _estimate_(memory: MomentumState, normalizers: Tensor, views: Views) -> None:
    """:func:`functional.estimate_normalizers_` over the samples of all ranks."""
    ranks = memory.ranks
    own = torch.full_like(normalizers, -1)
    functional.estimate_normalizers_(
        own, *views, nce_t=memory.contrast.nce_t, backend=memory.backend
    )
    columns = views[-1].numel()
    sums = own.new_zeros((1, 3), dtype=torch.float64)
    if columns:
        # A mean that is not finite was not set. NaN makes the whole mean NaN, as in one process.
        sums[0, :2] = own.double().where(own > 0, torch.nan) * columns
        sums[0, 2] = columns
    total = gather_rows(ranks, sums, [1] * ranks.count).wait().sum(dim=0)
    mean = (total[:2] / total[2]).to(normalizers.dtype)
    unset = (normalizers < 0) & mean.isfinite()
    normalizers.copy_(torch.where(unset, mean, normalizers))
