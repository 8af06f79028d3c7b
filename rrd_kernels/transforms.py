"""Function transforms: torch.func's grad, vjp, jvp and vmap, and forward-mode derivatives.

The fused operators have no rules for them, so the reference runs inside. torch.func refuses to
write a tensor from outside the function that it transforms, so a memory is written outside.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

__all__ = ["are_running", "outside", "plain"]


def are_running() -> bool:
    """Whether eager code runs inside of one."""
    return not torch.compiler.is_compiling() and (
        _functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    )


def plain(value: Any) -> Any:
    """A tensor as it is outside of all transforms, to be written.

    Raises:
        RuntimeError: vmap gives each sample another one.
    """
    while isinstance(value, Tensor) and _functorch.is_functorch_wrapped_tensor(value):
        if _functorch.is_batchedtensor(value):
            raise RuntimeError(
                "torch.func.vmap cannot write a memory or normalizers, which have no copy for "
                "each sample; call with update=False"
            )
        value = _functorch.get_unwrapped(value)
    return value


def outside(write: Callable[..., None]) -> Callable[..., None]:
    """A function that writes tensors, made to run outside of all transforms."""

    @functools.wraps(write)
    def run(*arguments: Any, **keywords: Any) -> None:
        if not are_running():
            write(*arguments, **keywords)
            return
        # Imported here: torch.func is rare.
        from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

        arguments = tuple(map(plain, arguments))
        keywords = {name: plain(value) for name, value in keywords.items()}
        with temporarily_clear_interpreter_stack(), forward_ad._set_fwd_grad_enabled(False):
            write(*arguments, **keywords)

    return run
