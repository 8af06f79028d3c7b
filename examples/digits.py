"""Distillation on scikit-learn's digits: data, teacher, student, and the methods compared."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from rrd_kernels import RRDLoss

TEACHER_STEPS = 400
TEACHER_LEARNING_RATE = 1e-3
STUDENT_LEARNING_RATE = 3e-3
BATCH = 64
LABELS_PER_CLASS = 5
# A little less than an epoch of teacher rows, so that an image rarely meets itself twice.
MEMORY_ROWS = 1024
KD_TEMPERATURE = 4.0
#: Of all that is made here, whatever PyTorch's default device is.
CPU = torch.device("cpu")

Arrays = tuple[np.ndarray, np.ndarray]


class Digits(NamedTuple):
    """Images [N, 1, 8, 8] in [0, 1] and labels [N]."""

    images: Tensor
    labels: Tensor


def load(validate: bool = False) -> tuple[Digits, Digits]:
    """Training images, two thirds, and test images, one third.

    With ``validate`` the test images are not touched: a quarter of the training images is held out
    in their place, for choosing hyper-parameters.
    """
    train, test = _split(load_digits(return_X_y=True), 1 / 3)
    if validate:
        train, test = _split(train, 1 / 4)
    return _tensors(*train), _tensors(*test)


def _split(data: Arrays, share: float) -> tuple[Arrays, Arrays]:
    x, x_held_out, y, y_held_out = train_test_split(
        *data, test_size=share, stratify=data[1], random_state=0
    )
    return (x, y), (x_held_out, y_held_out)


def _tensors(images: np.ndarray, labels: np.ndarray) -> Digits:
    scaled = torch.from_numpy(images).float() / 16
    return Digits(scaled.view(-1, 1, 8, 8), torch.from_numpy(labels))


class Outputs(NamedTuple):
    """Penultimate features [B, width] and logits [B, 10]."""

    features: Tensor
    logits: Tensor

    def rows(self, index: Tensor | slice) -> "Outputs":
        return Outputs(self.features[index], self.logits[index])


class Network(nn.Module):
    """A body that ends in penultimate features, and a linear classifier on them."""

    def __init__(self, body: nn.Sequential, width: int) -> None:
        super().__init__()
        self.body = body
        self.width = width
        self.classifier = nn.Linear(width, 10, device=CPU)

    def forward(self, images: Tensor) -> Outputs:
        features = self.body(images)
        return Outputs(features, self.classifier(features))

    @property
    def size(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def make_teacher() -> Network:
    width = 128
    with CPU:
        body = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(64 * 4 * 4, width), nn.ReLU()),
        )
    return Network(body, width)


def make_student(seed: int) -> Network:
    """Equal seeds give equal weights, whatever the method."""
    torch.manual_seed(seed)
    width = 16
    with CPU:
        body = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(8 * 2 * 2, width), nn.ReLU()),
        )
    return Network(body, width)


@dataclass(frozen=True)
class Method:
    """loss = CE(few labels) + kd_weight · KD(all images) + rrd_weight · RRD(all images)."""

    name: str
    kd_weight: float = 0.0
    rrd_weight: float = 0.0
    protocol: str = "2025"

    @property
    def distils(self) -> bool:
        return bool(self.kd_weight or self.rrd_weight)


def methods(kd_weight: float, rrd_weight: float) -> list[Method]:
    return [
        Method("student alone"),
        Method("Hinton KD", kd_weight),
        Method("RRD 2025", rrd_weight=rrd_weight),
        Method("RRD 2024", rrd_weight=rrd_weight, protocol="2024"),
        Method("RRD 2025 + KD", kd_weight, rrd_weight),
    ]


class Distillation(nn.Module):
    """The weighted sum of a method's distillation losses; RRD's projection is trained with it."""

    def __init__(
        self, method: Method, student: Network, teacher: Network, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.method = method
        self.rrd = RRDLoss(
            s_dim=student.width,
            t_dim=teacher.width,
            nce_k=MEMORY_ROWS,
            protocol=method.protocol,
            backend=backend,
            device=CPU,
        )

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        loss = student.logits.new_zeros(())
        if self.method.kd_weight:
            loss = loss + self.method.kd_weight * hinton_kd(student.logits, teacher.logits)
        if self.method.rrd_weight:
            loss = loss + self.method.rrd_weight * self.rrd(student.features, teacher.features)
        return loss


def hinton_kd(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """T² · KL(teacher ‖ student) of the softened class probabilities (arXiv 1503.02531)."""
    divergence = F.kl_div(
        F.log_softmax(student_logits / KD_TEMPERATURE, dim=1),
        F.log_softmax(teacher_logits / KD_TEMPERATURE, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return KD_TEMPERATURE**2 * divergence


def train_teacher(train: Digits, steps: int, on_step: Callable[[], object]) -> Network:
    """A teacher that has seen every training label, frozen."""
    torch.manual_seed(0)
    teacher = make_teacher()
    optimizer = torch.optim.Adam(teacher.parameters(), TEACHER_LEARNING_RATE)
    for batch in islice(_batches(len(train.labels), torch.Generator().manual_seed(0)), steps):
        _, logits = teacher(train.images[batch])
        optimizer.zero_grad()
        F.cross_entropy(logits, train.labels[batch]).backward()
        optimizer.step()
        on_step()
    return teacher.eval().requires_grad_(False)


def train_student(
    method: Method,
    teacher: Network,
    train: Digits,
    seed: int,
    steps: int,
    on_step: Callable[[], object],
) -> Network:
    """A student of ``method``; equal seeds share first weights, labelled images and batches."""
    student = make_student(seed)
    distillation = Distillation(method, student, teacher)
    generator = torch.Generator().manual_seed(seed)
    labelled = _few_of_each_class(train.labels, generator)
    # Without augmentation the teacher answers the same in every epoch: asked once.
    answers = teacher(train.images)

    parameters = [*student.parameters(), *distillation.parameters()]
    optimizer = torch.optim.Adam(parameters, STUDENT_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for batch in islice(_batches(len(train.labels), generator), steps):
        outputs = student(train.images[torch.cat([labelled, batch])])
        loss = F.cross_entropy(outputs.logits[: len(labelled)], train.labels[labelled])
        loss = loss + distillation(outputs.rows(slice(len(labelled), None)), answers.rows(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        on_step()
    return student.eval().requires_grad_(False)


def _few_of_each_class(labels: Tensor, generator: torch.Generator) -> Tensor:
    shuffled = torch.randperm(len(labels), generator=generator, device=CPU)
    of_class = [shuffled[labels[shuffled] == c][:LABELS_PER_CLASS] for c in range(10)]
    return torch.cat(of_class)


def _batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Epoch after epoch without a break: a short last batch, weighted as a full one, is noise."""
    waiting = torch.empty(0, dtype=torch.int64, device=CPU)
    while True:
        drawn = torch.randperm(count, generator=generator, device=CPU)
        waiting = torch.cat([waiting, drawn])
        *full, waiting = waiting.split(BATCH)
        yield from full


class Scores(NamedTuple):
    """Shares of the held-out images, and the correlation of similarities with the teacher's."""

    accuracy: float
    agreement: float
    structure: float


def evaluate(student: Network, teacher: Network, test: Digits) -> Scores:
    _, logits = student(test.images)
    _, teacher_logits = teacher(test.images)
    answers = logits.argmax(dim=1)
    return Scores(
        accuracy=(answers == test.labels).float().mean().item(),
        agreement=(answers == teacher_logits.argmax(dim=1)).float().mean().item(),
        structure=correlation(similarities(student, test), similarities(teacher, test)),
    )


def similarities(network: Network, data: Digits) -> Tensor:
    """[N, N] cosines of penultimate features, the images sorted by class."""
    features, _ = network(data.images[data.labels.argsort(stable=True)])
    unit = F.normalize(features.detach(), dim=1)
    return unit @ unit.T


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r of the entries off the diagonal, where every image meets itself."""
    pairs = ~torch.eye(len(a), dtype=torch.bool, device=a.device)
    return torch.corrcoef(torch.stack([a[pairs], b[pairs]]))[0, 1].item()
