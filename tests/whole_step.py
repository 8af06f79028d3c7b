"""A whole distillation step as one CUDA graph, as examples/cifar100 trains with --graph, beside the
same steps without a graph."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples" / "cifar100"))

from graphed import WARM_UP, GraphedStep
from losses import DistillationLoss
from models import make_model
from rrd_kernels import RRDLoss

#: The memory's rows are no multiple of the batch: the queue wraps within one.
BATCH, CLASSES, ROWS = 8, 10, 100


class Training:
    """From the same start each time; ``states`` are what its steps write."""

    def __init__(self, graph: bool) -> None:
        torch.manual_seed(0)
        teacher, student = (make_model("resnet8", CLASSES).to("cuda") for _ in range(2))
        self.teacher, self.student = teacher.eval().requires_grad_(False), student.train()
        loss = RRDLoss(s_dim=student.feature_dim, t_dim=teacher.feature_dim, nce_k=ROWS)
        self.criterion = DistillationLoss(1.0, 1.0, 1.0, 4.0, rrd=loss).to("cuda")
        trained = [*student.parameters(), *loss.embed_s.parameters()]
        self.optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.step: Any = self._step
        if graph:
            self.step = GraphedStep(self._step, BATCH, self.optimizer, torch.device("cuda"))

    def _step(self, images: Tensor, labels: Tensor, idx: Tensor) -> Tensor:
        features, logits = self.student(images, is_feat=True)
        with torch.no_grad():
            taught, teacher_logits = self.teacher(images, is_feat=True)
        loss, _ = self.criterion((features, logits), (taught, teacher_logits), labels, idx, None)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    @property
    def states(self) -> list[Tensor]:
        momenta = [state["momentum_buffer"] for state in self.optimizer.state.values()]
        modules = (self.student, self.criterion)
        return [*momenta, *(t for module in modules for t in module.state_dict().values())]


def in_a_graph(count: int) -> dict[str, int]:
    """``count`` replays on fresh data against steps without a graph, at two learning rates:
    "repeats", and "moved", those after which a bit of a loss or a state is another. A NaN is too:
    what nobody has written is one."""
    torch.use_deterministic_algorithms(True)
    try:
        plain, graphed = Training(graph=False), Training(graph=True)
        moves = []
        for number in range(WARM_UP + count):
            batch = (
                torch.randn(BATCH, 3, 32, 32, device="cuda"),
                torch.randint(CLASSES, (BATCH,), device="cuda"),
                torch.arange(BATCH, device="cuda"),
            )
            for training in (plain, graphed):
                training.optimizer.param_groups[0]["lr"] = 0.05 if number < WARM_UP + 2 else 0.01
            found, wanted = graphed.step(*batch), plain.step(*batch)
            pairs = [(found, wanted), *zip(graphed.states, plain.states, strict=True)]
            moves.append(torch.stack([(a != b).any() for a, b in pairs]).any())
    finally:
        torch.use_deterministic_algorithms(False)
    return {"repeats": count, "moved": int(torch.stack(moves)[WARM_UP:].sum().item())}
