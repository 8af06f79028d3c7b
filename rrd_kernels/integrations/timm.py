"""timm's feature distillation task, with a loss of this package as the distillation term.

The change in timm's ``train.py``, or in a loop of your own, is the import::

    from rrd_kernels.integrations.timm import RRDDistillationTask as FeatureDistillationTask
"""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from timm.task import DistillationTeacher, FeatureDistillationTask
from timm.task.distillation import FeatureDistillationTrainableModule
from timm.utils import ModelEmaV3, unwrap_model
from torch import Tensor, nn

from rrd_kernels.crd import CRDLoss
from rrd_kernels.distributed import ignore_in_ddp
from rrd_kernels.loss import RRDLoss

__all__ = ["RRDDistillationTask"]

_logger = logging.getLogger(__name__)


class _Trainable(FeatureDistillationTrainableModule):
    """The student, and the criterion in place of the projection of timm's own task.

    The criterion is called in here: then DDP averages the gradients of its projections.
    """

    def __init__(self, student: nn.Module, rrd: RRDLoss | CRDLoss) -> None:
        super().__init__(student)
        self.rrd = rrd

    def forward(
        self,
        input: Tensor,
        teacher_features: Tensor,
        idx: Tensor | None = None,
        contrast_idx: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the student's logits and the distillation loss."""
        logits, features = super().forward(input)
        return logits, self.rrd(features, teacher_features, idx, contrast_idx)


def _criterion_in(trainable: nn.Module) -> RRDLoss | CRDLoss:
    """The criterion of a trainable module that may be compiled or under DDP."""
    criterion: RRDLoss | CRDLoss = unwrap_model(trainable).rrd
    return criterion


class RRDDistillationTask(FeatureDistillationTask):
    """timm's ``FeatureDistillationTask`` with :class:`rrd_kernels.RRDLoss` instead of the MSE.

    The loss is ``task_loss_weight * task_loss + distill_loss_weight * kd_loss``, where ``kd_loss``
    compares the pooled features (pre-logits) of student and teacher. The criterion is a part of the
    trainable module. So its projection is in the optimizer that is made from
    ``task.get_trainable_module()``, and is clipped with the student. Checkpoints have the
    criterion's whole state under ``task_state``, and the plain student's under ``state_dict``.

    Args:
        student_model: timm model to train, with ``forward_features`` and ``forward_head``.
        teacher_model: a model, a name of timm's (pretrained weights are loaded then), or a
            ``timm.task.DistillationTeacher``.
        criterion, criterion_kwargs: the classification loss, or arguments for timm's
            ``create_classification_loss``, as in timm's task.
        rrd: a criterion that is ready: :class:`rrd_kernels.RRDLoss` or
            :class:`rrd_kernels.CRDLoss`. It is moved to ``device``. Default: one is made.
        rrd_kwargs: settings of the :class:`rrd_kernels.RRDLoss` that is made, such as ``nce_k``.
            Default: none. ``s_dim``, ``t_dim``, ``device`` and ``dtype`` are given already.
        student_feature_dim, teacher_feature_dim: widths of the pooled features. Default: those that
            the models name. Not read with ``rrd``.
        verbose: whether the weights and the criterion are logged. Default ``True``.
        options: all other arguments of timm's task: ``teacher_pretrained_path``,
            ``teacher_pretrained_cfg_overlay``, ``distill_loss_weight``, ``task_loss_weight``,
            ``device``, ``dtype``. With neither weight, both are 1.

    Attributes:
        rrd: the criterion, also where the trainable module is compiled or under DDP. A schedule
            sets ``task.rrd.tau_s``.

    Shapes:
        ``task(input, target)`` takes images [B, C, H, W] and the labels that ``criterion`` takes.
        It returns a dict with ``loss``, ``output`` (logits), ``task_loss`` and ``kd_loss``.

        ``task(input, target, idx, contrast_idx=None)`` is for the momentum memory.

    In training mode each call enters the batch into the memory; after ``task.eval()`` none does.
    ``setup_ema`` averages the student alone.

    Raises:
        TypeError: both ``rrd`` and ``rrd_kwargs`` were given.
        ValueError: a width is not known, or as :class:`rrd_kernels.RRDLoss`.

    Source: timm 1.0.31, ``timm/task/distillation.py``; arXiv 2407.12073.

    Example:
        >>> import timm, torch
        >>> student = timm.create_model("test_efficientnet_gn", num_classes=10)
        >>> teacher = timm.create_model("test_resnet", num_classes=10)
        >>> task = RRDDistillationTask(student, teacher, rrd_kwargs={"nce_k": 64}, verbose=False)
        >>> images, labels = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
        >>> sorted(task(images, labels))
        ['kd_loss', 'loss', 'output', 'task_loss']
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: "str | nn.Module | DistillationTeacher",  # the site is built without timm
        criterion: nn.Module | None = None,
        criterion_kwargs: dict[str, Any] | None = None,
        *,
        rrd: RRDLoss | CRDLoss | None = None,
        rrd_kwargs: Mapping[str, Any] | None = None,
        student_feature_dim: int | None = None,
        teacher_feature_dim: int | None = None,
        verbose: bool = True,
        **options: Any,
    ) -> None:
        if rrd is not None and rrd_kwargs:
            raise TypeError(f"give rrd or rrd_kwargs, not both; got the settings {[*rrd_kwargs]}")
        super().__init__(
            student_model,
            teacher_model,
            criterion,
            criterion_kwargs,
            student_feature_dim=0,  # equal widths: timm then makes no projection of its own
            teacher_feature_dim=0,
            verbose=False,  # it would log these widths
            **options,
        )
        self.verbose = verbose
        if rrd is None:
            s_dim, t_dim = student_feature_dim, teacher_feature_dim
            rrd = RRDLoss(
                s_dim=self._detect_feature_dim(student_model) if s_dim is None else s_dim,
                t_dim=self._detect_feature_dim(self.teacher.model) if t_dim is None else t_dim,
                device=self.device,
                dtype=self.dtype,
                **(rrd_kwargs or {}),
            )
        self.trainable_module = _Trainable(student_model, rrd.to(self.device))
        if verbose:
            weights = f"{self.task_loss_weight} * task_loss + {self.distill_loss_weight} * kd_loss"
            _logger.info("RRDDistillationTask: loss = %s, with %s", weights, rrd)

    @property
    def rrd(self) -> RRDLoss | CRDLoss:
        """The criterion, out of all wrappers of the trainable module."""
        return _criterion_in(self.trainable_module)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        idx: Tensor | None = None,
        contrast_idx: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Returns ``loss`` and its terms ``task_loss`` and ``kd_loss``, scalars, and ``output``,
        the student's logits. ``idx`` and ``contrast_idx`` are for the momentum memory."""
        with torch.no_grad():
            images = self.teacher.normalize_input(input, self.student_mean, self.student_std)
            teacher_features = self.teacher(images, return_features=True)
        output, kd_loss = self.trainable_module(input, teacher_features, idx, contrast_idx)
        task_loss = self.criterion(output, target)
        loss = self.task_loss_weight * task_loss + self.distill_loss_weight * kd_loss
        return {"loss": loss, "output": output, "task_loss": task_loss, "kd_loss": kd_loss}

    def prepare_distributed(
        self, device_ids: list[Any] | None = None, **ddp_kwargs: Any
    ) -> "RRDDistillationTask":
        """Wraps student and criterion in DDP, which leaves the memory alone."""
        ignore_in_ddp(self.trainable_module)  # here: compile() has put a prefix before all names
        super().prepare_distributed(device_ids, **ddp_kwargs)
        return self

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """The student's parameters, without its head if told so, and the criterion's."""
        return [*super().get_clip_parameters(exclude_head), *self.rrd.parameters()]

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """The criterion's state for a checkpoint. There is none beside averaged weights.

        Raises:
            RuntimeError: this rank has a part of the memory only.
        """
        if ema:
            return {}
        state = _criterion_in(module or self.trainable_module).state_dict()
        if any(type(value).__name__ == "DTensor" for value in state.values()):
            raise RuntimeError(
                "with gather='shard' each rank has a part of the memory, and timm saves on one "
                "rank: save task.get_trainable_module() with torch.distributed.checkpoint"
            )
        return {"rrd": state}

    def load_task_state(
        self,
        state: Mapping[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Loads the criterion's state. Warns if a checkpoint has none."""
        if ema:  # the averaged weights are the student's; timm may offer a state all the same
            return
        if not state or "rrd" not in state:
            warnings.warn(
                "the checkpoint has no state of the criterion: its projection and its memory stay "
                "as they are",
                stacklevel=4,  # the call of resume_task_checkpoint
            )
            return
        criterion = _criterion_in(module or self.trainable_module)
        criterion.load_state_dict(state["rrd"], strict=strict)

    def _student_alone(self) -> nn.Module:
        return FeatureDistillationTrainableModule(unwrap_model(self.trainable_module).student)

    def setup_ema(
        self,
        decay: float = 0.9999,
        use_warmup: bool = False,
        device: torch.device | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        """Makes the average of the student's weights. A mean of memories would mean nothing."""
        self.trainable_module_ema = ModelEmaV3(
            self._student_alone(), decay=decay, use_warmup=use_warmup, device=device, **kwargs
        )
        return self.trainable_module_ema

    def update_ema(self, step: int | None = None) -> None:
        """Moves the average towards the student's weights."""
        if self.has_ema():
            self.trainable_module_ema.update(self._student_alone(), step=step)
