"""How often a student and the teacher predict the same class."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import files
import options as flags
from comparing.runner import read_json
from engine import autocast
from images.loaders import EvaluationLoader
from models import ImageClassifier
from teacher import architecture_of, load_teacher


class Agreement:
    """Compares students with one teacher on the images that the runs are evaluated on.

    Args:
        path_t: the teacher's checkpoint.
        model_t: its architecture; None: from its folder's name.
        loader: of N images with ``classes`` classes.
        device: where the networks run.
        amp: autocast, as the runs are evaluated: ``"bf16"``, ``"fp16"`` or None.

    Attributes:
        teacher: its ``architecture``, the ``digest`` of its weights, and its ``accuracy`` in
            percent once :meth:`of` has been called.

    Raises:
        FileNotFoundError, ValueError: as :func:`teacher.load_teacher`.
    """

    def __init__(
        self,
        path_t: Path,
        model_t: str | None,
        loader: EvaluationLoader,
        device: torch.device,
        amp: str | None = None,
    ) -> None:
        self.loader, self.device, self.amp = loader, device, amp
        self.classes = len(loader.images.classes)
        self._teacher = load_teacher(path_t, self.classes, model_t)
        self.teacher: dict[str, Any] = {
            "architecture": model_t or architecture_of(path_t),
            "digest": flags.digest_of(self._teacher),
        }
        images = hashlib.sha256(loader.images.images.numpy().tobytes())
        images.update(loader.images.labels.numpy().tobytes())
        self._source = {
            "teacher_digest": self.teacher["digest"],
            "images_digest": images.hexdigest()[:16],
            "amp": amp,
        }

    @cached_property
    def _taught(self) -> Tensor:
        return self._predictions(self._teacher)

    def _percent(self, classes: Tensor) -> float:
        return 100 * (self._taught == classes).double().mean().item()

    @torch.no_grad()
    def _predictions(self, network: ImageClassifier) -> Tensor:
        """int64 [N], on the CPU."""
        network.to(self.device)
        with autocast(self.amp, self.device):
            parts = [network(batch.images).argmax(dim=1).cpu() for batch in self.loader]
        network.cpu()
        return torch.cat(parts)

    def of(self, checkpoint: Path, model: str) -> dict[str, Any]:
        """With the student of a checkpoint: ``agreement`` in percent of the images, and
        ``student_digest``, of its weights. From agreement.json beside it, where that is of these
        weights and images; else computed and written there."""
        student = load_teacher(checkpoint, self.classes, model)
        source = {"student_digest": flags.digest_of(student), **self._source}
        path = checkpoint.with_name("agreement.json")
        saved = read_json(path)
        if saved is None or any(saved.get(name) != value for name, value in source.items()):
            agreement = self._percent(self._predictions(student))
            accuracy = self._percent(self.loader.images.labels)
            saved = source | {"agreement": agreement, "teacher_accuracy": accuracy}
            files.write_text(path, json.dumps(saved, indent=2) + "\n")
        self.teacher["accuracy"] = saved["teacher_accuracy"]
        return saved
