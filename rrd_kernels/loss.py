"""RRDLoss: the drop-in replacement for the published class of the same name."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from rrd_kernels import checkpoint
from rrd_kernels import validation as check
from rrd_kernels.distributed.ddp import ignore_in_ddp
from rrd_kernels.fifo.memory import FifoMemory
from rrd_kernels.momentum.memory import MomentumMemory
from rrd_kernels.opt import Published, read
from rrd_kernels.settings import MeanLoss, Settings, alias

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MEMORY_TYPES = ("fifo", "momentum")


class Protocol(NamedTuple):
    """Settings that differ between the two published versions of the code."""

    enqueue: str
    tau_s: float
    tau_t: float


PROTOCOLS = {
    "2024": Protocol(enqueue="after", tau_s=0.04, tau_t=0.1),
    "2025": Protocol(enqueue="before", tau_s=0.1, tau_t=0.02),
}


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _refuse(memory_type: str, settings: dict[str, Any]) -> None:
    """Raises if keywords of the other memory type were given: they would have no effect."""
    if names := ", ".join(_given(settings)):
        other = "momentum" if memory_type == "fifo" else "fifo"
        raise ValueError(
            f"memory_type={memory_type!r} does not take {names}; use memory_type={other!r}"
        )


class RRDLoss(Settings, MeanLoss):
    """Relational Representation Distillation: a drop-in for the published ``RRDLoss(opt)``.

    Settings come from ``opt``, under their published names, or from keywords. Keywords win.
    ``embed_s`` is trained with the student: give ``criterion.parameters()`` to the optimizer too.

    Args:
        opt: any object with the attributes ``s_dim``, ``t_dim``, ``feat_dim``, ``nce_k``,
            ``nce_t_s``, ``nce_t_t``, ``memory_type``, and for the momentum memory ``nce_t``,
            ``nce_m``, ``n_data``. The published script's namespace is one, and so are objects of
            configuration libraries; a plain dict is not. Nothing else is read from ``opt``: pass
            ``similarity`` and ``protocol`` as keywords.
        s_dim: width of the student's features. Required, here or in ``opt``, without ``embed_s``.
        t_dim: width of the teacher's features. Required, here or in ``opt``, without ``embed_t``.
        feat_dim: width D of the embeddings. Default 128.
        nce_k: rows K of the FIFO memory, or negatives per sample with the momentum memory.
            Default 16384. A FIFO memory with more rows than there are training samples holds some
            samples twice once it is full: use a smaller K for a small data set.
        nce_t_s: student temperature. Default 0.1 (protocol ``"2025"``) or 0.04 (``"2024"``).
        nce_t_t: teacher temperature. Default 0.02 (protocol ``"2025"``) or 0.1 (``"2024"``).
        memory_type: ``"fifo"`` (default) or ``"momentum"``.
        nce_t, nce_m, n_data, similarity, method, generator: with ``"momentum"`` only, as in
            :class:`rrd_kernels.MomentumMemory`.
        embed_s: the student's projection: any module that maps [B, s_dim] to [B, feat_dim], such
            as an MLP. It is used as it is, on its own device. Default:
            ``nn.Linear(s_dim, feat_dim)``.
        embed_t: the teacher's projection, likewise. Its parameters get ``requires_grad=False``.
        protocol: the published code to match: ``"2025"`` (default), or ``"2024"`` for
            versions 1 to 3 of the paper, where the batch enters the memory after the loss.
        enqueue: with ``"fifo"`` only, as in :class:`rrd_kernels.FifoMemory`. It overrides the
            protocol's order.
        start, slot_momentum, own_pair, divergence: with ``"fifo"`` only, as in
            :class:`rrd_kernels.FifoMemory`.
        precision: format of the products: ``"float64"``, ``"float32"``, ``"tf32"``, ``"float16"``
            or ``"bfloat16"``. Default: that of the embeddings and the memory, float32 if they
            differ; see :func:`rrd_kernels.functional.relational_loss`.
        backend: ``"auto"`` (default: fused kernels where there are any), ``"fused"`` (raises where
            there are none) or ``"reference"`` (plain PyTorch).
        device, dtype: as in :class:`torch.nn.Linear`.
        memory_dtype: dtype of the stored rows. Default: ``dtype``.
        process_group: the processes that train together. Default, for every ``gather``: all
            processes if ``torch.distributed.init_process_group`` has run, else this process alone.
        gather: what these ranks share. Construct the criterion on every rank, after
            ``init_process_group``. docs/scaling.md compares the costs.

            - ``"keys"`` (default): one memory, copied to every rank. Every training step gathers
              the rows of all ranks. Thus W ranks with B samples each train as one process with W·B
              samples, under DDP or anything else that averages gradients over ranks.
            - ``"none"``: nothing. Each rank has a memory of its own rows.
            - ``"shard"``: one memory, of which each rank holds K / W rows, for a K that does not
              fit on one rank. For the FIFO memory only.

    Attributes:
        embed_s: the student's projection. Another module may be assigned.
        embed_t: the teacher's projection, without a gradient. Another module may be assigned.
        memory: the :class:`rrd_kernels.FifoMemory` or :class:`rrd_kernels.MomentumMemory`.
        tau_s: student temperature in use; ``nce_t_s`` is the same.
        tau_t: teacher temperature in use; ``nce_t_t`` is the same.
        reduction: ``"mean"``, as in PyTorch's own losses; nothing else can be set.

    A schedule may set the temperatures at any time. It may also set ``nce_t``, ``nce_m`` and
    ``nce_k`` of the momentum memory, ``slot_momentum``, ``precision`` and the other settings of
    either memory.

    Shapes:
        ``criterion(f_s, f_t)`` takes [B, s_dim] and [B, t_dim] features (or [B, dim, 1, 1]) of any
        floating dtype and any B (B <= K in training with a FIFO memory). It returns a scalar:
        float64 with float64 products, else float32.

        ``criterion(f_s, f_t, idx, contrast_idx=None)`` is for the momentum memory, which needs the
        samples' dataset indices in any integer dtype. The FIFO memory accepts and ignores both.

    ``load_state_dict`` loads a checkpoint of any published layout, and that of a criterion that was
    compiled or under DDP. :func:`rrd_kernels.checkpoint.to_layout` writes the older layouts.
    ``eval()`` and ``criterion(..., update=False)`` compute the loss and leave the memory alone.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range. No state is made
            or changed then. If ranks share a memory, all of them raise: a rank whose own arguments
            are right raises a RuntimeError with the other rank's message.

    Source: arXiv 2407.12073 and its published code.

    Example:
        >>> import torch
        >>> from rrd_kernels import RRDLoss
        >>> criterion = RRDLoss(s_dim=64, t_dim=256)
        >>> optimizer = torch.optim.SGD(criterion.parameters(), lr=0.05)
        >>> criterion(torch.randn(32, 64, requires_grad=True), torch.randn(32, 256)).backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        opt: object | None = None,
        *,
        s_dim: int | None = None,
        t_dim: int | None = None,
        feat_dim: int | None = None,
        nce_k: int | None = None,
        nce_t_s: float | None = None,
        nce_t_t: float | None = None,
        memory_type: str | None = None,
        embed_s: nn.Module | None = None,
        embed_t: nn.Module | None = None,
        protocol: str = "2025",
        nce_t: float | None = None,
        nce_m: float | None = None,
        n_data: int | None = None,
        similarity: str | None = None,
        method: str | None = None,
        generator: torch.Generator | None = None,
        enqueue: str | None = None,
        start: str | None = None,
        slot_momentum: float | None = None,
        own_pair: bool | None = None,
        divergence: str | None = None,
        precision: str | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        memory_dtype: torch.dtype | None = None,
        process_group: "ProcessGroup | None" = None,
        gather: str = "keys",
    ) -> None:
        check.check_choice("protocol", protocol, tuple(PROTOCOLS))
        published = PROTOCOLS[protocol]
        keywords = {"protocol": protocol, "similarity": similarity, "enqueue": enqueue}
        for name, given in (keywords | {"slot_momentum": slot_momentum}).items():
            if (value := read(opt, name)) is not None and str(value) != str(given):
                warnings.warn(
                    f"opt.{name} is {value!r}, but is not read: pass RRDLoss(opt, {name}=...)",
                    stacklevel=2,
                )

        setting = Published(opt).setting
        tau_s = setting("nce_t_s", nce_t_s, published.tau_s)
        tau_t = setting("nce_t_t", nce_t_t, published.tau_t)
        check.check_temperature("nce_t_s", tau_s)
        check.check_target("nce_t_t", tau_t, bool(own_pair))
        memory_type = setting("memory_type", memory_type, "fifo")
        check.check_choice("memory_type", memory_type, MEMORY_TYPES)
        size = setting("nce_k", nce_k, 16384)
        check.check_size("nce_k", size)
        common: dict[str, Any] = {
            "s_dim": setting("s_dim", s_dim, needed=embed_s is None),
            "t_dim": setting("t_dim", t_dim, needed=embed_t is None),
            "feat_dim": setting("feat_dim", feat_dim, 128),
            "size": size,
            "tau_s": tau_s,
            "tau_t": tau_t,
            "embed_s": embed_s,
            "embed_t": embed_t,
            "precision": precision,
            "backend": backend,
            "device": device,
            "dtype": dtype,
            "memory_dtype": memory_dtype,
            "process_group": process_group,
            "gather": gather,
        }
        for_fifo: dict[str, Any] = {
            "enqueue": enqueue,
            "start": start,
            "slot_momentum": slot_momentum,
            "own_pair": own_pair,
            "divergence": divergence,
        }
        for_momentum: dict[str, Any] = {
            "nce_t": nce_t,
            "nce_m": nce_m,
            "n_data": n_data,
            "similarity": similarity,
            "method": method,
            "generator": generator,
        }
        if memory_type == "momentum" and protocol == "2024":
            raise ValueError("protocol '2024' has no momentum memory; use protocol='2025'")
        _refuse(memory_type, for_momentum if memory_type == "fifo" else for_fifo)

        super().__init__()
        self._protocol = protocol
        self.memory: FifoMemory | MomentumMemory
        if memory_type == "fifo":
            for_fifo["enqueue"] = published.enqueue if enqueue is None else enqueue
            self.memory = FifoMemory(**_given(for_fifo), **common)
            ignore_in_ddp(self)
            return
        for_momentum["n_data"] = setting("n_data", n_data)
        for name in ("nce_t", "nce_m"):
            for_momentum[name] = setting(name, for_momentum[name], needed=False)
        self.memory = MomentumMemory(**_given(for_momentum), **common)
        ignore_in_ddp(self)

    # Everything that a step reads is the memory's.
    embed_s, embed_t = alias("embed_s", "memory"), alias("embed_t", "memory")
    tau_s, tau_t = alias("tau_s", "memory"), alias("tau_t", "memory")
    nce_t_s, nce_t_t = tau_s, tau_t
    nce_k, nce_t, nce_m = (alias(name, "memory") for name in ("nce_k", "nce_t", "nce_m"))
    n_data, similarity = alias("n_data", "memory"), alias("similarity", "memory")
    method, generator = alias("method", "memory"), alias("generator", "memory")
    enqueue, slot_momentum = alias("enqueue", "memory"), alias("slot_momentum", "memory")
    own_pair, divergence = alias("own_pair", "memory"), alias("divergence", "memory")
    precision, backend = alias("precision", "memory"), alias("backend", "memory")
    queue, queue_ptr = alias("queue", "memory"), alias("queue_ptr", "memory")

    @property
    def protocol(self) -> str:
        """``"2025"`` or ``"2024"``, the published code that this criterion matches."""
        return self._protocol

    @property
    def memory_type(self) -> str:
        """``"fifo"`` or ``"momentum"``."""
        return "fifo" if isinstance(self.memory, FifoMemory) else "momentum"

    def forward(
        self,
        f_s: Tensor,
        f_t: Tensor,
        idx: Tensor | None = None,
        contrast_idx: Tensor | None = None,
        *,
        update: bool = True,
    ) -> Tensor:
        """Returns the loss, a scalar.

        In training mode the batch also updates the memory, unless ``update`` is false. Pass
        ``update=False`` for a batch that the memory already holds.
        """
        if self.training and update:
            self.refuse_replica()
        loss: Tensor = self.memory(f_s, f_t, idx, contrast_idx, update=update)
        return loss

    def warmup(self, batch_size: int, *, dtype: torch.dtype | None = None) -> None:
        """Compiles the kernels for batches of this size, before training or graph capture.

        The memory and its pointer do not change. Without a warmup the first step compiles.

        Args:
            batch_size: B, at least 1.
            dtype: dtype of the projected embeddings. Under autocast give autocast's dtype. Default:
                that of the weights of ``embed_s``.

        Example:
            >>> RRDLoss(s_dim=64, t_dim=256).warmup(64)
        """
        self.memory.warmup(batch_size, dtype=dtype)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        checkpoint.unwrap_keys_(state_dict, prefix)
        own = {name for name, _ in (*self.named_parameters(), *self.named_buffers())}
        checkpoint.rename_older_keys_(state_dict, prefix, own)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"protocol={self.protocol!r}, tau_s={self.tau_s}, tau_t={self.tau_t}"
