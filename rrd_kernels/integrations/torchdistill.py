"""RRD for torchdistill: a mid-level loss, and the student's wrapper that holds its criterion.

Name this module among the ``dependencies`` of a configuration, or import it. It registers

- ``RRDLoss``, a mid-level loss (:class:`MidLevelRRDLoss`), which says where the features are;
- ``Student4RRD``, an auxiliary model wrapper for the student, which has the criterion's settings.

torchdistill gives its optimizer the parameters of the student and moves, saves and switches modes
of the student only; it keeps losses in a plain dict. So the criterion, whose projection learns and
whose memory is a state, lives in the student's wrapper, and the loss calls it there. torchdistill's
own CRD has its projections in such wrappers too, but its memory in the loss.
"""

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torchdistill.losses.registry import register_mid_level_loss
from torchdistill.models.registry import register_auxiliary_model_wrapper
from torchdistill.models.util import wrap_if_distributed
from torchdistill.models.wrapper import AuxiliaryModelWrapper

from rrd_kernels import RRDLoss
from rrd_kernels.distributed import ignore_in_ddp

__all__ = ["MidLevelRRDLoss", "Student4RRD"]

#: The entry of the student's I/O dict under which the loss finds the wrapper's criterion.
_ENTRY = "criterion"


@register_auxiliary_model_wrapper
class Student4RRD(AuxiliaryModelWrapper):
    """The student and its :class:`rrd_kernels.RRDLoss`, as one model: key ``Student4RRD``.

    The distillation box optimises, moves and saves this model as its ``student_model``. Paths of
    the student's modules begin with ``model.``.

    Args:
        student_model: the student. The distillation box passes it, and the next three.
        device: where student and criterion are moved.
        device_ids: for DistributedDataParallel.
        distributed: whether to wrap student and criterion in DistributedDataParallel, each in its
            own, as torchdistill's other wrappers do. Configure no ``wrapper`` of the student
            besides.
        find_unused_parameters: for the student's DistributedDataParallel. Default None: True if
            the student has frozen parameters.
        **settings: the arguments of :class:`rrd_kernels.RRDLoss`: ``s_dim``, ``t_dim``, ``nce_k``
            and so on.

    Attributes:
        model: the student, in DistributedDataParallel if ``distributed``.
        criterion: the RRDLoss, likewise.

    A call takes the arguments of the student. A dict behind another argument is torchdistill's
    ``supp_dict`` and is kept for the loss: a momentum memory needs its ``pos_idx``, and takes its
    ``contrast_idx``, as ``CRDDatasetWrapper`` makes them. Use a ``forward_proc`` that passes it,
    such as ``forward_batch_supp_dict``.

    Raises:
        TypeError, ValueError: as :class:`rrd_kernels.RRDLoss`.
        RuntimeError: at the first step of an optimizer that has the student but not ``embed_s``.

    Source: torchdistill 1.1.5, ``torchdistill/models/wrapper.py``.

    Example, of the student in a configuration::

        student:
          forward_proc: forward_batch_only
          auxiliary_model_wrapper:
            key: Student4RRD
            kwargs: {s_dim: 512, t_dim: 2048, nce_k: 16384}
          forward_hook: {output: [model.avgpool]}
    """

    def __init__(
        self,
        student_model: nn.Module,
        device: torch.device,
        device_ids: list[int] | None,
        distributed: bool,
        find_unused_parameters: bool | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        parallel = (device, device_ids, distributed)
        self.model = wrap_if_distributed(student_model, *parallel, find_unused_parameters)
        # embed_t is frozen, so that torchdistill would look for unused parameters.
        self.criterion = wrap_if_distributed(RRDLoss(**settings), *parallel, False)
        self._supp_dict: Mapping[str, Any] = {}
        ignore_in_ddp(self)  # torchdistill's scripts wrap this model once more to evaluate it
        _unchecked.add(self)

    @property
    def rrd(self) -> RRDLoss:
        """The RRDLoss itself, also under DDP. Set a schedule's temperatures here."""
        wrapped = isinstance(self.criterion, DistributedDataParallel)
        found: RRDLoss = self.criterion.module if wrapped else self.criterion
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The student's output."""
        self._supp_dict = {}
        if len(args) > 1 and isinstance(args[-1], Mapping):
            *args, self._supp_dict = args  # type: ignore[assignment]
        return self.model(*args, **kwargs)

    def secondary_forward(self, io_dict: dict[str, dict[str, Any]]) -> None:
        """Hands the criterion to the loss. torchdistill calls it between student and loss."""
        io_dict[_ENTRY] = {"call": self._relations}

    def _relations(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        indices = (self._supp_dict.get(name) for name in ("pos_idx", "contrast_idx"))
        on_device = (None if index is None else index.to(f_s.device) for index in indices)
        loss: Tensor = self.criterion(f_s, f_t, *on_device)
        return loss


#: Students whose projection no optimizer has updated yet.
_unchecked: WeakSet[Student4RRD] = WeakSet()


def _check_optimizer(optimizer: Optimizer, *_: object) -> None:
    """Raises before a student's first update if its projection has a gradient but no optimizer.

    A wrapper never sees the optimizer, and torchdistill's ``module_wise_configs`` may leave out the
    criterion without a warning. Another wrapper of the same student, of an earlier stage or box,
    has no gradient or was checked.
    """
    for student in list(_unchecked):
        learning = [each for each in student.rrd.embed_s.parameters() if each.grad is not None]
        given = {id(each) for group in optimizer.param_groups for each in group["params"]}
        if not learning or given.isdisjoint(map(id, student.model.parameters())):
            continue
        _unchecked.discard(student)
        if not given.issuperset(map(id, learning)):
            raise RuntimeError(
                "the optimizer has the student but not its projection criterion.embed_s, which "
                "would never learn: add {module: criterion} to module_wise_configs of the "
                "optimizer, or criterion to frozen_modules of the student if it shall not learn"
            )


register_optimizer_step_pre_hook(_check_optimizer)


@register_mid_level_loss(key="RRDLoss")
class MidLevelRRDLoss(nn.Module):
    """RRD between two hooked features: key ``RRDLoss``.

    It has no parameters and no memory. The criterion is that of the student's
    :class:`Student4RRD`, and so are its settings.

    Args:
        student_module_path: path of a module in the student with [B, s_dim] or [B, s_dim, 1, 1]
            features, which begins with ``model.``. It must be among the student's ``forward_hook``.
        teacher_module_path: the same for the teacher and t_dim, without ``model.`` unless the
            teacher has a wrapper of its own.
        student_module_io: ``"output"`` (default) or ``"input"`` of the module.
        teacher_module_io: the same for the teacher.

    A call with torchdistill's ``student_io_dict`` and ``teacher_io_dict`` returns the loss, a
    scalar. In training mode the batch enters the memory.

    Raises:
        TypeError: settings of the criterion are given here.
        RuntimeError: in a call, if the student is not in a :class:`Student4RRD`.

    Source: torchdistill 1.1.5, ``torchdistill/losses/mid_level.py``.

    Example, of the criterion in a configuration::

        criterion:
          key: WeightedSumLoss
          kwargs:
            sub_terms:
              rrd:
                criterion:
                  key: RRDLoss
                  kwargs: {student_module_path: model.avgpool, teacher_module_path: avgpool}
                weight: 1.0
    """

    def __init__(
        self,
        student_module_path: str,
        teacher_module_path: str,
        student_module_io: str = "output",
        teacher_module_io: str = "output",
        **settings: Any,
    ) -> None:
        super().__init__()
        if settings:
            raise TypeError(
                f"RRDLoss as a mid-level loss does not take {', '.join(settings)}: no optimizer "
                f"would reach a projection here. Give the student's auxiliary_model_wrapper the "
                f"key Student4RRD, with these among its kwargs"
            )
        self.student_module_path, self.student_module_io = student_module_path, student_module_io
        self.teacher_module_path, self.teacher_module_io = teacher_module_path, teacher_module_io

    def forward(
        self,
        student_io_dict: Mapping[str, Mapping[str, Any]],
        teacher_io_dict: Mapping[str, Mapping[str, Any]],
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Returns the loss, a scalar."""
        if "call" not in student_io_dict.get(_ENTRY, ()):
            raise RuntimeError(
                "RRDLoss needs a student with auxiliary_model_wrapper: {key: Student4RRD}, which "
                "holds the projection and the memory. If there is one, configure no wrapper "
                "around it (wrapper: DistributedDataParallel, accelerate): Student4RRD wraps the "
                "student itself, and torchdistill does not look for it inside of another wrapper"
            )
        f_s: Tensor = student_io_dict[self.student_module_path][self.student_module_io]
        f_t: Tensor = teacher_io_dict[self.teacher_module_path][self.teacher_module_io]
        loss: Tensor = student_io_dict[_ENTRY]["call"](f_s, f_t)
        return loss

    def extra_repr(self) -> str:
        student = f"student={self.student_module_path!r} {self.student_module_io}"
        return f"{student}, teacher={self.teacher_module_path!r} {self.teacher_module_io}"
