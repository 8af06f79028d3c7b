"""The training loop that teachers, students and probes share."""

import argparse
import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

import checkpoint
import graphed
import options as flags
import processes
from images.data import ImageSet, load
from images.loaders import EvaluationLoader, TrainLoader, train_loader
from losses import check_finite, correct
from run import Run

#: Of the loss's value, on a GPU, where each look waits for the device.
STEPS_BETWEEN_LOOKS = 50

#: From a batch to the loss, its terms and the logits, where it has any.
Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor], Tensor | None]]


def prepare(options: argparse.Namespace, *, together: bool = False) -> torch.device:
    """Seeds and settings of the process; the device of the run.

    Args:
        options: the command line's.
        together: whether several processes may train one model.

    Raises:
        ValueError: torchrun has started several, and they may not; or --graph cannot be had.
    """
    device = device_of(options)
    if options.graph:
        graphed.check(options, device)
    if together:
        device = processes.start(device)
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "only train_student.py runs in several processes; start this script with python, not "
            "torchrun"
        )
    if options.deterministic:
        # cuBLAS's condition for it, which must be there before it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    torch.backends.cudnn.benchmark = not options.deterministic
    return device


def device_of(options: argparse.Namespace) -> torch.device:
    """The one that is named, or a GPU if there is one."""
    return torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def make_data(
    options: argparse.Namespace, device: torch.device
) -> tuple[ImageSet, tuple[TrainLoader, EvaluationLoader]]:
    """The training images, and the loaders of them and of those that the network is tested on, as
    the options say.

    Raises:
        ValueError: the data set has not so many images to hold out, or not such classes.
    """
    train = load(options.dataset, options.data_folder, train=True).of_classes(options.classes)
    if options.held_out:
        train, test = train.split(options.held_out)
    else:
        test = load(options.dataset, options.data_folder, train=False).of_classes(options.classes)
    train, test = (part.thinned(options.images) for part in (train, test))
    batches = train_loader(
        options.loader,
        train,
        options.batch_size,
        seed=options.seed,
        device=device,
        drop_last=options.drop_last,
        workers=options.num_workers,
        part=(processes.rank(), processes.size()),
    )
    return train, (batches, EvaluationLoader(test, 4 * options.batch_size, device=device))


class Sums:
    """Sums over an epoch, on the device: nothing is read back at a step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.values: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        self.values[name] = self.values.get(name, zero) + value.detach()

    def total(self) -> dict[str, Tensor]:
        """The sums of all processes."""
        return dict(zip(self.values, processes.total(self.values.values()), strict=True))

    def means(self, count: int) -> dict[str, float]:
        return {name: value.item() / max(count, 1) for name, value in self.total().items()}


def autocast(amp: str | None, device: torch.device) -> contextlib.AbstractContextManager:
    """As ``--amp`` says."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp or "")
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: EvaluationLoader,
    device: torch.device,
    amp: contextlib.AbstractContextManager,
) -> dict[str, float]:
    """Mean cross-entropy, and top-1 and top-5 accuracy in percent, in evaluation mode."""
    model.eval()
    sums, count = Sums(device), 0
    for images, labels, _ in loader:
        with amp:
            logits = model(images)
        loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
        sums.add("loss", loss)
        sums.add("acc", 100 * correct(logits, labels, 1))
        sums.add("acc_top5", 100 * correct(logits, labels, 5))
        count += len(labels)
    return {name: value.item() / count for name, value in sums.values.items()}


class Trainer:
    """SGD over epochs, with checkpoints from which a killed run goes on to the same weights.

    Args:
        options: the command line's, see options.py.
        run: where it writes.
        model: what is trained and evaluated, on ``device``.
        modules: everything with a state, by its key in a checkpoint; ``model`` among them.
        step: from a batch to the loss.
        loaders: of training and test images; no test images: no evaluation.
        device: of all tensors.
        learning_rate: the first.
        projection_lr: that of the modules beside the model, where it is another.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        run: Run,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        step: Step,
        loaders: tuple[TrainLoader, EvaluationLoader | None],
        device: torch.device,
        learning_rate: float,
        projection_lr: float | None = None,
    ) -> None:
        self.options, self.run, self.device = options, run, device
        self.model, self.modules, self.step = model, modules, step
        self.train_loader, self.test_loader = loaders

        def trained(keys: Iterable[str]) -> list[nn.Parameter]:
            return [p for key in keys for p in modules[key].parameters() if p.requires_grad]

        groups = [(learning_rate, trained(modules))]
        if projection_lr is not None:
            others = trained(key for key in modules if key != "model")
            groups = [(learning_rate, trained(["model"])), (projection_lr, others)]
        self.learning_rates = [rate for rate, _ in groups]
        self.optimizer = torch.optim.SGD(
            [{"params": parameters, "lr": rate} for rate, parameters in groups],
            momentum=options.momentum,
            weight_decay=options.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.amp == "fp16")
        self.graphed = (
            graphed.GraphedStep(self._update, options.batch_size, self.optimizer, device)
            if options.graph
            else None
        )
        self.epoch, self.batch, self.count = 1, 0, 0
        self.best, self.accuracy = -1.0, 0.0
        self.sums = Sums(device)
        self.console = Console(
            width=None if Console().is_terminal else 100, quiet=processes.rank() > 0
        )

    def amp(self) -> contextlib.AbstractContextManager:
        return autocast(self.options.amp, self.device)

    def state(self) -> dict[str, Any]:
        """Everything that what comes next depends on, in the published layout and beyond it; of all
        processes, which must all call this."""
        everyones = processes.everyones(checkpoint.random_state(self.device))
        return {
            "epoch": self.epoch - 1,  # the last that is finished
            "next_epoch": self.epoch,
            "batch": self.batch,
            "best_acc": self.best,
            "accuracy": self.accuracy,
            "settings": flags.plain_settings(self.options),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": everyones[0] if len(everyones) == 1 else everyones,
            "sums": self.sums.total(),
            "count": self.count,
        } | {key: module.state_dict() for key, module in self.modules.items()}

    def resume(self) -> None:
        """Goes back to the last checkpoint, if there is one.

        Raises:
            ValueError: the checkpoint is not of such a training.
        """
        saved = self.run.saved()
        if saved is None:
            return
        missing = self.state().keys() - saved.keys()
        if missing:
            raise ValueError(
                f"--resume cannot continue from {self.run.last}: it lacks {sorted(missing)}"
            )
        flags.check_unchanged(self.options, saved["settings"])
        if saved["next_epoch"] > self.options.epochs + 1:
            raise ValueError(
                f"{self.run.folder} has {saved['next_epoch'] - 1} epochs, more than --epochs "
                f"{self.options.epochs}; raise --epochs, or start a new run with another --trial"
            )
        for key, module in self.modules.items():
            module.load_state_dict(checkpoint.unwrapped(saved[key]))
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.epoch, self.batch, self.count = saved["next_epoch"], saved["batch"], saved["count"]
        self.best, self.accuracy = saved["best_acc"], saved["accuracy"]
        if processes.rank() == 0:  # which has the others' too
            self.sums.values = {name: v.to(self.device) for name, v in saved["sums"].items()}
        else:
            self.sums.values = {name: 0 * v.to(self.device) for name, v in saved["sums"].items()}
        random = saved["random"]
        own = random[processes.rank()] if processes.size() > 1 else random
        checkpoint.set_random_state(own, self.device)
        self.console.print(f"resuming in epoch {self.epoch}, after {self.batch} batches")

    def fit(self) -> float:
        """Trains to the last epoch; the best test accuracy in percent. Ends with the run's
        :meth:`Run.release`."""
        try:
            return self._fit()
        finally:
            self.run.release()

    def _fit(self) -> float:
        self.resume()
        if self.run.writes:
            flags.write_settings(self.options, self.run.folder / "settings.json")
        while self.epoch <= self.options.epochs:
            started = time.perf_counter()
            seen = self.count
            self._set_learning_rate()
            self._train_epoch()
            seconds = time.perf_counter() - started
            images_per_second = (self.count - seen) / seconds
            trained = self.sums.means(self.count)
            tested = {}
            if self.test_loader is not None:
                tested = evaluate(self.model, self.test_loader, self.device, self.amp())
            values = (
                {f"train_{name}": value for name, value in trained.items()}
                | {f"test_{name}": value for name, value in tested.items()}
                | {
                    "learning_rate": self.optimizer.param_groups[0]["lr"],
                    "images_per_second": images_per_second,
                }
            )
            self._check_weights(tested.get("loss", 0.0))
            self.accuracy = tested.get("acc", self.accuracy)
            best = tested.get("acc", self.best) > self.best
            self.best = max(self.best, tested.get("acc", self.best))
            epoch = self.epoch
            # The state at the start of the next epoch.
            self.epoch, self.batch, self.count, self.sums = epoch + 1, 0, 0, Sums(self.device)
            self.run.log(epoch, values)
            state = self.state()
            # Kept before the last checkpoint says that the epoch is done: a run that is killed
            # between the two goes through the epoch once more.
            if epoch % self.options.save_freq == 0:
                self.run.keep(epoch, state)
            self.run.save(state, best=best)
            accuracy = ""
            if tested:
                accuracy = (
                    f"accuracy: train {trained['acc']:.2f} %, test {tested['acc']:.2f} %, best "
                    f"{self.best:.2f} %  "
                )
            self.console.print(
                f"epoch {epoch:3d}  loss {trained['loss']:.4f}  {accuracy}"
                f"{images_per_second:.0f} images/s",
                highlight=False,
            )
        return self.best

    def _check_weights(self, loss: float = 0.0) -> None:
        """Before anything is written: the last step may have spoilt what its own loss did not show.

        Raises:
            FloatingPointError: a weight, a running statistic or the test loss is not finite.
        """
        tensors = [t for module in self.modules.values() for t in module.state_dict().values()]
        norms = torch._foreach_norm([t for t in tensors if t.is_floating_point()])
        stuck = self.scaler.is_enabled() and self.scaler.get_scale() < 2.0**-10
        if stuck or not (math.isfinite(loss) and torch.stack(norms).isfinite().all()):
            raise FloatingPointError(
                f"the weights or their gradients are not finite in epoch {self.epoch}. Lower "
                f"--learning_rate, or give --amp bf16 in place of fp16; the last checkpoint was "
                f"written before this"
            )

    def _set_learning_rate(self) -> None:
        options = self.options
        steps = sum(self.epoch > epoch for epoch in options.lr_decay_epochs)
        groups = zip(self.optimizer.param_groups, self.learning_rates, strict=True)
        for group, rate in groups:
            group["lr"] = rate * options.lr_decay_rate**steps

    def _train_epoch(self) -> None:
        for module in self.modules.values():
            module.train()
        total = len(self.train_loader)
        look = 1 if self.device.type == "cpu" else STEPS_BETWEEN_LOOKS
        columns = (TextColumn("epoch {task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(
            *columns,
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=self.options.quiet or not self.console.is_terminal,
        ) as progress:
            task = progress.add_task(str(self.epoch), total=total, completed=self.batch)
            for images, labels, idx in self.train_loader.epoch(self.epoch, self.batch):
                loss, terms = self._train_batch(images, labels, idx, total)
                if self.batch % look == 0 or self.batch == total:
                    check_finite(loss, terms, self.batch)
                progress.advance(task)
                every = self.options.save_steps * self.options.accumulate
                if every and self.batch % every == 0 and self.batch < total:
                    check_finite(loss, terms, self.batch)
                    self._check_weights()
                    self.run.save(self.state())

    def _train_batch(
        self, images: Tensor, labels: Tensor, idx: Tensor, total: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.options.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        # The last batches of an epoch may be fewer than the others' steps have.
        accumulate = self.options.accumulate
        first = self.batch // accumulate * accumulate
        together = min(accumulate, total - first)
        # Each image counts alike, also in a last batch that is smaller.
        size, images_in_all = self.options.batch_size, self.train_loader.samples
        in_group = min((first + together) * size, images_in_all) - first * size
        in_batch = len(labels) * processes.size()  # as many in each process
        self.batch += 1
        if self.graphed is not None:  # where each batch is a group of its own
            loss, terms, right = self.graphed(images, labels, idx)
        else:
            last = self.batch - first == together
            loss, terms, right = self._update(images, labels, idx, in_batch / in_group, last)
        self.count += in_batch
        self.sums.add("loss", loss * len(labels))
        for name, value in terms.items():
            self.sums.add(name, value * len(labels))
        if right is not None:
            self.sums.add("acc", 100 * right)
        return loss, terms

    def _update(
        self, images: Tensor, labels: Tensor, idx: Tensor, share: float = 1.0, last: bool = True
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Forward and backward, and with the ``last`` batch of a group, of which this one has a
        ``share``, the optimizer's step; the loss, its terms and how many labels were right,
        None without logits."""
        with self.amp():
            loss, terms, logits = self.step(images, labels, idx)
        self.scaler.scale(loss * share).backward()
        if last:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        terms = {name: value.detach() for name, value in terms.items()}
        right = None if logits is None else correct(logits.detach(), labels, 1)
        return loss.detach(), terms, right
