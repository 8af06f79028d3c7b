"""The model's constants of one device, out of a record of ``make bench``."""

from collections.abc import Mapping
from typing import Any

from benchmarks.distributed.model import H200, Machine, Step

#: What the host's layers of a functional step begin with; RRDLoss has more.
FUNCTIONAL = ("operator", "autograd", "Python: checks")


def card_of(record: Mapping[str, Any]) -> tuple[Machine, float, list[tuple[Step, float]]]:
    """The device; seconds that a functional step takes beside its kernels; such steps' seconds.

    The device's t_step is what a step of ``RRDLoss`` takes beside its kernels; flops the best rate
    of the fused bfloat16 step, on a GPU by the device's clock; read the rate of a large copy.

    Raises:
        ValueError: the record lacks the bfloat16 cases or the host's time.
    """
    steps, flops = [], []
    for row in record["rows"]:
        case = row["case"]
        fifo = case.get("dtype_name") == "bfloat16" and "n_data" not in case
        if fifo and row["implementation"] == "rrd_kernels" and "seconds" in row:
            step = Step("none", 1, case["rows"], case["batch"], case["dim"], element=2)
            steps.append((step, row["seconds"]["median"]))
            flops.append(1e9 * row["gflops"])
    if not steps or not record.get("host_time"):
        raise ValueError("a card's constants take the bfloat16 cases and the host's time")
    layers = {
        layer["name"]: layer["seconds"]["median"]
        for layer in record["host_time"]["layers"]
        if not layer["name"].startswith("kernels")
    }
    name = record["gpu"]["name"] if "gpu" in record else record["cpu"]
    machine = H200._replace(
        name=f"{name}, bfloat16 (t_step, flops, read measured, else assumed)",
        step=sum(layers.values()),
        flops=max(flops),
        read=1e9 * max(at["copy_gbytes_per_second"] for at in record["machine"].values() if at),
    )
    functional = sum(layers[name] for name in layers if name.startswith(FUNCTIONAL))
    return machine, functional, steps
