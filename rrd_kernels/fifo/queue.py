"""A queue without projections, and the published methods that compare with one."""

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from rrd_kernels import validation as check
from rrd_kernels.fifo.step import FifoStep
from rrd_kernels.settings import MeanLoss
from rrd_kernels.validation import Number

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class RelationalQueue(FifoStep, MeanLoss):
    """The relational loss over a queue of earlier teacher rows, for embeddings as they are.

    It is an :class:`rrd_kernels.RRDLoss` without projections: ``queue(z_s, z_t)`` compares
    the student's embeddings with the teacher's, then the teacher's enter the queue. It has no
    parameters. The classmethods ``for_...`` have the defaults of one published method each;
    docs/methods.md compares them and shows what to replace in the published code.

    Args:
        dim: width D of the embeddings.
        size: rows K. Default 65536.
        tau_s: student temperature, positive. Default 0.1.
        tau_t: teacher temperature, positive. Default 0.02. With ``own_pair`` it may be 0, the hard
            target: the own pair has probability one, as in InfoNCE.
        own_pair: whether the sample's own teacher row is a column beside the queue's rows. Default
            ``False``.
        divergence: ``"cross_entropy"`` (default), or ``"kl"``, which is smaller by the entropy of
            the teacher's softmax. The gradient is the same.
        enqueue: whether a batch's teacher rows enter the queue ``"before"`` or ``"after"``
            (default) its similarities are computed. ``own_pair`` needs ``"after"``: the own row
            would be two columns.
        newest_first: whether the ring of slots grows downwards. ``queue[ptr:]`` followed by
            ``queue[:ptr]`` is then a queue that shifts by B rows and puts the new batch first; of
            more than K rows the first K enter. Default ``False``: rows enter in order, and more
            than K are refused.
        start: the initial rows.

            - ``"unit"`` (default): normal deviates [K, D], each row normalised.
            - ``"unit_columns"``: normal deviates [D, K], each column normalised, transposed. The
              rows have norm 1 too, and are MoCo's for an equal seed.
            - ``"published"``: normal deviates [K, D], each column normalised, so that a row's norm
              is about sqrt(D / K).
            - ``"uniform"``: uniform within ±sqrt(3 / D), so that a row's norm is about 1.
            - ``"zeros"``.
        slot_momentum: weight of the old row when a slot is written, in [0, 1). Default 0.
        precision, backend: as in :func:`rrd_kernels.functional.relational_loss`.
        device, dtype: of the rows, as in :func:`torch.randn`.
        process_group, gather: as in :class:`rrd_kernels.RRDLoss`.

    Attributes:
        tau_s, tau_t, divergence, enqueue, slot_momentum, precision, backend: may be changed
            between steps.
        dim, size: D and K; not to be changed, nor are ``own_pair`` and ``newest_first``.
        queue, queue_ptr, unit_memory: as in :class:`rrd_kernels.FifoMemory`.

    Shapes: ``queue(z_s, z_t)`` takes [B, D] embeddings (or [B, D, 1, 1]), normalised or not, of
    float64, float32, bfloat16 or float16, with B <= K in training unless ``newest_first``. It
    returns the mean loss, a scalar: float64 with float64 products, else float32. Only ``z_s``
    receives a gradient.

    ``eval()`` and ``queue(..., update=False)`` compute the loss and leave the queue alone.
    :func:`rrd_kernels.checkpoint.queue_state` reads the queue of a published checkpoint, and
    :func:`rrd_kernels.checkpoint.to_queue_layout` writes it back.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range. Nothing is made or
            written then.

    Source: arXiv 2407.12073; each preset names its own.

    Example:
        >>> import torch
        >>> from rrd_kernels import RelationalQueue
        >>> queue = RelationalQueue.for_moco(dim=128, size=4096)
        >>> q, k = torch.randn(32, 128, requires_grad=True), torch.randn(32, 128)
        >>> queue(q, k).backward()
    """

    INPUTS = ("z_s", "z_t")
    SIZE = "size"

    def __init__(
        self,
        dim: int,
        size: int = 65536,
        *,
        tau_s: float = 0.1,
        tau_t: float = 0.02,
        own_pair: bool = False,
        divergence: str = "cross_entropy",
        enqueue: str = "after",
        newest_first: bool = False,
        start: str = "unit",
        slot_momentum: float = 0.0,
        precision: str | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        process_group: "ProcessGroup | None" = None,
        gather: str = "keys",
    ) -> None:
        check.check_size("dim", dim)
        if dtype is not None:
            check.check_dtype("dtype", dtype)
        super().__init__(
            dim,
            dim,
            dim,
            size,
            tau_s=tau_s,
            tau_t=tau_t,
            own_pair=own_pair,
            divergence=divergence,
            embed_s=nn.Identity(),
            embed_t=nn.Identity(),
            enqueue=enqueue,
            newest_first=newest_first,
            start=start,
            slot_momentum=slot_momentum,
            precision=precision,
            backend=backend,
            device=device,
            dtype=dtype,
            process_group=process_group,
            gather=gather,
        )

    @property
    def dim(self) -> int:
        """Width D of the embeddings."""
        return self.queue.shape[1]

    @property
    def size(self) -> int:
        """Rows K."""
        return self.nce_k

    def forward(
        self,
        z_s: Tensor,
        z_t: Tensor,
        *,
        tau_s: Number | None = None,
        tau_t: Number | None = None,
        update: bool = True,
    ) -> Tensor:
        """Returns the mean loss of student and teacher embeddings [B, D].

        In training mode the teacher's rows enter the queue, unless ``update`` is false. ``tau_s``
        and ``tau_t`` default to the queue's.
        """
        return self.step(z_s, z_t, tau_s, tau_t, update)

    def extra_repr(self) -> str:
        shown = {
            "dim": self.dim,
            "size": self.size,
            "tau_s": self.tau_s,
            "tau_t": self.tau_t,
            "own_pair": self.own_pair,
            "divergence": self.divergence,
            "enqueue": self.enqueue,
            "newest_first": self.newest_first,
        }
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())

    @classmethod
    def for_moco(cls, dim: int = 128, size: int = 65536, **settings: Any) -> Self:
        """InfoNCE over a queue: MoCo, and MoCo v2 with ``tau_s=0.2``.

        In ``moco/builder.py`` it replaces the two registered buffers, the lines of ``forward`` from
        ``l_pos`` to the call of ``_dequeue_and_enqueue``, and that method; in the script, the
        cross-entropy. solo-learn's MoCo v2+ has two of these, one for each view.

        Args:
            dim, size, settings: as in :class:`RelationalQueue`. Defaults: τ_s = 0.07, the hard
                target.

        Source: arXiv 1911.05722, facebookresearch/moco at 7397dfe.
        """
        hard: dict[str, Any] = {"tau_t": 0.0, "own_pair": True}
        return cls._preset(dim, size, settings, tau_s=0.07, start="unit_columns", **hard)

    @classmethod
    def for_seed(cls, dim: int = 128, size: int = 65536, **settings: Any) -> Self:
        """SEED: the own pair and a soft target.

        In ``seed/builder.py`` it replaces the two registered buffers, the lines of ``forward`` from
        ``logit_stu`` to the call of ``_dequeue_and_enqueue``, and that method; in the script, the
        criterion ``soft_cross_entropy``.

        Args:
            dim, size, settings: as in :class:`RelationalQueue`. Defaults: the script's τ_s = 0.2
                and τ_t = 1e-4.

        Source: arXiv 2101.04731, jacobswan1/SEED at f236cac.
        """
        return cls._preset(
            dim, size, settings, tau_s=0.2, tau_t=1e-4, own_pair=True, start="unit_columns"
        )

    @classmethod
    def for_ressl(cls, dim: int = 512, size: int = 131072, **settings: Any) -> Self:
        """ReSSL: the relational loss as it is.

        In ``network/ressl.py`` it replaces the two registered buffers, the lines of ``forward``
        from ``logitsq`` to the call of ``_dequeue_and_enqueue``, and that method; in the script,
        the line of the loss. With solo-learn: ``for_ressl(256, 65536)``.

        Args:
            dim, size, settings: as in :class:`RelationalQueue`. Defaults: τ_s = 0.1, τ_t = 0.04.

        Source: arXiv 2107.09282, KyleZheng1997/ReSSL at 4d67daa.
        """
        return cls._preset(dim, size, settings, tau_s=0.1, tau_t=0.04, start="unit_columns")

    @classmethod
    def for_isd(cls, dim: int = 512, size: int = 128000, **settings: Any) -> Self:
        """ISD: the KL divergence at one temperature.

        In ``train_isd.py`` it replaces the two registered buffers, the lines of ``forward`` from
        ``queue`` to the call of ``_dequeue_and_enqueue``, that method, and the criterion ``KLD``.
        ISD-plus is ``for_isd(dim, tau_s=0.1, tau_t=0.01, start="unit")``.

        Args:
            dim, size, settings: as in :class:`RelationalQueue`. Defaults: the script's τ_s = τ_t =
                0.02, and the width of a ResNet-18 (a ResNet-50's is 2048).

        Source: arXiv 2012.09259, UMBCvision/ISD at 4bdd603.
        """
        taus: dict[str, Any] = {"tau_s": 0.02, "tau_t": 0.02}
        return cls._preset(dim, size, settings, divergence="kl", start="published", **taus)

    @classmethod
    def for_compress(cls, dim: int = 2048, size: int = 128000, **settings: Any) -> Self:
        """CompRess with one queue.

        It replaces ``CompReSSA`` of ``nn/compress_loss.py``, with the student's features first. The
        published class gives the teacher's features a gradient if they ask for one; here they get
        none.

        Args:
            dim, size, settings: as in :class:`RelationalQueue`. Defaults: τ_s = τ_t = 0.04, and the
                width of a ResNet-50.

        Source: arXiv 2010.14713, UMBCvision/CompRess at c5e57ed.
        """
        taus: dict[str, Any] = {"tau_s": 0.04, "tau_t": 0.04}
        return cls._preset(dim, size, settings, divergence="kl", start="uniform", **taus)

    @classmethod
    def for_lightly_train(cls, dim: int = 768, size: int = 8192, **settings: Any) -> Self:
        """LightlyTrain's distillation: the batch enters before the loss, newest rows first.

        In ``_methods/distillation/distillation.py`` it replaces the buffer ``teacher_queue``, the
        calls of ``_update_queue`` and of the criterion, and both. The published queue shifts; this
        one is a ring with the same rows.

        Args:
            dim, size, settings: as in :class:`RelationalQueue`. Defaults: τ_s = τ_t = 0.07, the
                largest published queue, the width of the default teacher, and ``gather="none"``.

        Source: lightly-ai/lightly-train at 8f5a75c.
        """
        order: dict[str, Any] = {"enqueue": "before", "newest_first": True, "start": "zeros"}
        taus: dict[str, Any] = {"tau_s": 0.07, "tau_t": 0.07}
        return cls._preset(dim, size, settings, divergence="kl", gather="none", **order, **taus)

    @classmethod
    def _preset(cls, dim: int, size: int, given: dict[str, Any], **published: Any) -> Self:
        return cls(dim, size, **published | given)
