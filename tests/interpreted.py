"""The Triton kernels in place of the CPU's, under Triton's interpreter (TRITON_INTERPRET=1).

Imported by conftest.py there, so that the suite's tests, which compare with the float64 reference
on every device, hold the kernels to the same bounds where there is no GPU.
"""

import os

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

#: Libraries keep registrations alive.
_libraries: list[torch.library.Library] = []


def round_as_hardware_does() -> None:
    """Triton's interpreter cuts float32 off to bfloat16; GPUs round to the nearest."""
    from triton.runtime import interpreter

    as_it_is = interpreter._convert_float
    fp32, bf16 = interpreter.tl.float32, interpreter.tl.bfloat16

    def convert(value, source, target, rounding):  # type: ignore[no-untyped-def]
        if source == fp32 and target == bf16:
            rounded = torch.tensor(value).to(torch.bfloat16)
            return rounded.view(torch.int16).numpy().view("uint16")
        return as_it_is(value, source, target, rounding)

    interpreter._convert_float = convert


def replace_cpu_kernels() -> None:
    from rrd_kernels.triton import operators

    round_as_hardware_does()

    def loss_forward(
        z_s: Tensor, z_t: Tensor, memory: Tensor, *options: object
    ) -> tuple[Tensor, Tensor]:
        *numbers, precision, reduction, need_grad = options
        last = (precision or "float32", reduction, 0, 0.0, need_grad)
        return operators.triton_step(z_s, z_t, memory, None, *numbers, *last)

    def step_forward(
        memory: Tensor, pointer: Tensor, z_s: Tensor, z_t: Tensor, *options: object
    ) -> tuple[Tensor, Tensor]:
        *numbers, precision, reduction, first, momentum, need_grad = options
        inputs = (z.clone() if torch._C._is_alias_of(z, memory) else z for z in (z_s, z_t))
        last = (precision or "float32", reduction, 1 if first else 2, momentum, need_grad)
        return operators.triton_step(*inputs, memory, pointer, *numbers, *last)

    def sampled_forward(*arguments: object) -> tuple[Tensor, Tensor]:
        *tensors_and_numbers, precision, reduction, method, need_grad = arguments
        last = (precision or "float32", reduction, method, need_grad)
        return operators.sampled_relational_loss_forward(*tensors_and_numbers, *last)

    def partials(*arguments: object) -> tuple[Tensor, Tensor]:
        *tensors_and_numbers, precision, need_grad = arguments
        last = (precision or "float32", need_grad)
        return operators.relational_partials(*tensors_and_numbers, *last)

    library = torch.library.Library("rrd_kernels", "IMPL")
    library.impl("relational_loss_forward", loss_forward, "CPU", allow_override=True)
    library.impl("relational_step_forward_", step_forward, "CPU")
    library.impl("relational_partials", partials, "CPU", allow_override=True)
    library.impl("enqueue_", operators.enqueue_, "CPU", allow_override=True)
    library.impl("sampled_relational_loss_forward", sampled_forward, "CPU", allow_override=True)
    for name in ("estimate_normalizers_", "momentum_update_"):
        library.impl(name, getattr(operators, name), "CPU", allow_override=True)
    _libraries.append(library)
