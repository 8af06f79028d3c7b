"""A run's folder: settings, epochs as CSV and for TensorBoard, checkpoints."""

import csv
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

import checkpoint
import files
import lock
import processes


class Run:
    """Where one training writes.

    Args:
        folder: of this run; made where it is not there.
        name: of the model, for its checkpoints ``<name>_best.pth`` and ``<name>_last.pth``.
        resume: go on with what the folder holds; else a folder that holds a checkpoint is refused.

    The first process alone reads and writes here; the others may be on other machines. It holds
    the folder's lock until :meth:`release`.

    Raises:
        FileExistsError: the folder holds a run already, and ``resume`` is false.
        ValueError: another training is at work in the folder.
    """

    def __init__(self, folder: Path, name: str, *, resume: bool) -> None:
        self.folder = folder
        self.writes = processes.rank() == 0
        self.best = folder / f"{name}_best.pth"
        self.last = folder / f"{name}_last.pth"
        self.epochs = folder / "epochs.csv"
        self._writer: SummaryWriter | None = None
        processes.of_first(lambda: self._take(resume))

    def _take(self, resume: bool) -> None:
        if not resume and self.last.exists():
            raise FileExistsError(
                f"{self.folder} holds a run already; continue it with --resume, or start a new run "
                f"with another --trial"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        lock.hold(self.folder)
        for unfinished in self.folder.glob(".*.new.*"):  # of a process killed while it wrote
            unfinished.unlink()

    def release(self) -> None:
        """Leaves the folder to other processes."""
        if self.writes:
            lock.release(self.folder)

    def saved(self) -> dict[str, Any] | None:
        """The last checkpoint, if there is one, in all processes."""

        def read() -> dict[str, Any] | None:
            return checkpoint.read(self.last) if self.last.exists() else None

        return processes.of_first(read)

    def save(self, state: dict[str, Any], *, best: bool = False) -> None:
        if not self.writes:
            return
        # The best first: the last says already that it is there.
        if best:
            checkpoint.write_atomically(state, self.best)
        checkpoint.write_atomically(state, self.last)

    def keep(self, epoch: int, state: dict[str, Any]) -> None:
        """An epoch's model under the published name, beside the last and the best."""
        if not self.writes:
            return
        kept = {name: state[name] for name in ("epoch", "accuracy", "model")}
        checkpoint.write_atomically(kept, self.folder / f"ckpt_epoch_{epoch}.pth")

    def log(self, epoch: int, values: dict[str, float]) -> None:
        """A row of epochs.csv, in place of those from this epoch on, which a killed run may have
        left, and a point of every TensorBoard curve."""
        if not self.writes:
            return
        rows = [row for row in self.rows() if int(row["epoch"]) < epoch]
        rows.append({"epoch": str(epoch)} | {name: f"{v:.6g}" for name, v in values.items()})
        columns = dict.fromkeys(name for row in rows for name in row)
        with files.replacing(self.epochs) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(columns), restval="")
            writer.writeheader()
            writer.writerows(rows)
        if self._writer is None:
            # What a killed run logged beyond its checkpoint is not shown twice.
            self._writer = SummaryWriter(str(self.folder), purge_step=epoch)
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def rows(self) -> list[dict[str, str]]:
        """epochs.csv as it is now."""
        if not self.epochs.exists():
            return []
        with self.epochs.open(newline="") as file:
            return list(csv.DictReader(file))
