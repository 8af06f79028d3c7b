"""The model's constants of one device, as a record of ``make bench`` has measured them."""

from collections.abc import Mapping
from typing import Any

from benchmarks.cases import Case, from_fields
from benchmarks.ceilings import Ceilings
from benchmarks.distributed.model import H200, SPARED, Machine, Step
from benchmarks.host_time import KERNELS
from benchmarks.peers import Fused

#: What the rows are stored as, and their products computed in.
FORMAT = "bfloat16"
#: The constants that one device can tell.
MEASURED = ("step", "flops", "read")


def constants(record: Mapping[str, Any]) -> Machine:
    """Of the record's device: its t_step, flops, read, and what it can spare for a memory.

    t_step is a step of ``RRDLoss`` at the official size without its kernels; flops the best rate
    that the fused step has reached, on a GPU by the device's clock; read a large copy's rate. What
    one device cannot tell, the links between several, is assumed as for :data:`H200`.

    Raises:
        ValueError: the record has not all of it, as one of some cases or parts alone.
    """
    rates = [1e9 * row["gflops"] for _, row in _fused(record)]
    read, host = Ceilings.of_record(record).copy_rate, record.get("host_time")
    if not rates or read is None or host is None:
        raise ValueError(
            f"the constants of a card are in a record of the cases in {FORMAT} and of the host's "
            "time, as make bench writes it without --cases and --parts"
        )
    [kernels] = [layer for layer in host["layers"] if layer["name"].startswith(KERNELS)]
    gpu = record.get("gpu")
    return H200._replace(
        name=f"{gpu['name'] if gpu else record['cpu']}, {FORMAT} (measured; links assumed)",
        step=max(0.0, host["step"]["median"] - kernels["seconds"]["median"]),
        flops=max(rates),
        read=read,
        capacity=SPARED * gpu["memory_bytes"] if gpu else H200.capacity,
    )


def steps(record: Mapping[str, Any]) -> list[tuple[Step, float]]:
    """The steps of one device that the record has, and the seconds that each took."""
    return [
        (
            Step("none", 1, case.rows, case.batch, case.dim, case.dtype.itemsize),
            row["seconds"]["median"],
        )
        for case, row in _fused(record)
    ]


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
