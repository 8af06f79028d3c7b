"""The model's constants of one device, as a record of ``make bench`` has measured them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.cases import Case, from_fields
from benchmarks.ceilings import Ceilings
from benchmarks.distributed.model import H200, SPARED, Machine, Step, seconds
from benchmarks.host_time import FUNCTIONAL, KERNELS
from benchmarks.peers import Fused

#: What the rows are stored as, and their products computed in.
FORMAT = "bfloat16"
#: The constants that one device can tell.
MEASURED = ("step", "flops", "read")


def constants(record: Mapping[str, Any]) -> Machine:
    """Of the record's device: its t_step, flops, read, and what it can spare for a memory.

    t_step is what a step of ``RRDLoss`` takes beside its kernels, the sum of these layers; flops
    the best rate that the fused step has reached, on a GPU by the device's clock; read a large
    copy's rate. What one device cannot tell, the links between several, is assumed as for
    :data:`H200`.

    Raises:
        ValueError: the record has not all of it, as one of some cases or parts alone, or of sizes
            that mean nothing.
    """
    rates = [1e9 * row["gflops"] for _, row in _fused(record)]
    read, host = Ceilings.of_record(record).copy_rate, record.get("host_time")
    if not rates or read is None or host is None or "--quick" in record.get("command", ""):
        raise ValueError(
            f"the constants of a card are in a record of the cases in {FORMAT} and of the host's "
            "time, as make bench writes it without --cases, --parts and --quick"
        )
    gpu = record.get("gpu")
    return H200._replace(
        name=f"{gpu['name'] if gpu else record['cpu']}, {FORMAT} (measured; links assumed)",
        step=_beside_kernels(record),
        flops=max(rates),
        read=read,
        capacity=SPARED * gpu["memory_bytes"] if gpu else H200.capacity,
    )


class Timed(NamedTuple):
    """A step of one device: as measured, from embeddings on, and as the model has it."""

    step: Step
    measured: float  # seconds
    model: float
    gave_flops: bool  # whether the model's rate is this step's own


def steps(record: Mapping[str, Any]) -> list[Timed]:
    """Those that the record has; of the layers beside the kernels only what they contain."""
    machine = constants(record)._replace(step=_beside_kernels(record, FUNCTIONAL))
    found = []
    for case, row in _fused(record):
        step = Step("none", 1, case.rows, case.batch, case.dim, case.dtype.itemsize)
        own = 1e9 * row["gflops"] == machine.flops
        found.append(Timed(step, row["seconds"]["median"], seconds(machine, step), own))
    return found


def _beside_kernels(record: Mapping[str, Any], which: tuple[str, ...] = ("",)) -> float:
    """Seconds of the layers that begin with one of ``which``."""
    return sum(
        layer["seconds"]["median"]
        for layer in record["host_time"]["layers"]
        if layer["name"].startswith(which) and not layer["name"].startswith(KERNELS)
    )


def _fused(record: Mapping[str, Any]) -> list[tuple[Case, Mapping[str, Any]]]:
    """The rows of the fused FIFO step in :data:`FORMAT`, with their cases."""
    timed = [
        (from_fields(row["case"]), row)
        for row in record["rows"]
        if row["implementation"] == Fused.name and "seconds" in row
    ]
    # The momentum memory's case is a kind of the FIFO memory's.
    fifo = [(case, row) for case, row in timed if type(case) is Case]
    return [(case, row) for case, row in fifo if case.format == FORMAT]
