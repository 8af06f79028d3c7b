"""The Triton kernels in place of the CPU's, under Triton's interpreter (TRITON_INTERPRET=1).

Imported by conftest.py there, so that the suite's tests, which compare with the float64 reference
on every device, hold the kernels to the same bounds where there is no GPU.
"""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

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


def patch_the_language_once() -> None:
    """When a kernel begins, and not again in each function that it calls: a third of the time."""
    from triton.runtime import interpreter

    patch, tl = interpreter._patch_lang, interpreter.tl
    every_module = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})

    def call(self, *arguments, **options):  # type: ignore[no-untyped-def]
        return self.rewrite()(*arguments, **options)

    interpreter._patch_lang = lambda function: patch(every_module)
    interpreter.InterpretedFunction.__call__ = call


def gpu_kernels() -> dict[str, Callable[..., Any]]:
    """What csrc/cuda has Triton do, by operator: what C++ settles before is settled here."""
    from rrd_kernels.triton import operators

    def loss_forward(
        z_s: Tensor, z_t: Tensor, memory: Tensor, *options: Any
    ) -> tuple[Tensor, Tensor]:
        *numbers, precision, reduction, need_grad = options
        last = (operators.settled(precision), reduction, 0, 0.0, need_grad)
        return operators.triton_step(z_s, z_t, memory, None, *numbers, *last)

    def step_forward(
        memory: Tensor, pointer: Tensor, z_s: Tensor, z_t: Tensor, *options: Any
    ) -> tuple[Tensor, Tensor]:
        *numbers, precision, reduction, first, momentum, need_grad = options
        inputs = (z.clone() if torch._C._is_alias_of(z, memory) else z for z in (z_s, z_t))
        enqueue = 1 if first else 2
        last = (operators.settled(precision), reduction, enqueue, momentum, need_grad)
        return operators.triton_step(*inputs, memory, pointer, *numbers, *last)

    others = (
        *("relational_partials", "enqueue_", "sampled_relational_loss_forward"),
        *("estimate_normalizers_", "momentum_update_"),
    )
    return {
        "relational_loss_forward": loss_forward,
        "relational_step_forward_": step_forward,
        **{name: getattr(operators, name) for name in others},
    }


def replace_cpu_kernels() -> None:
    round_as_hardware_does()
    patch_the_language_once()
    library = torch.library.Library("rrd_kernels", "IMPL")
    for name, function in gpu_kernels().items():
        library.impl(name, function, "CPU", allow_override=True)
    _libraries.append(library)
