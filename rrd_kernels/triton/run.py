"""Launches from Python: compiled once for what a kernel is specialised on, then found again."""

from collections.abc import Iterable
from typing import Any

import triton
from triton.runtime.jit import JITFunction

from rrd_kernels.triton.compiled import compile_launch, constants_of, function_of
from rrd_kernels.triton.launch import Launch, describe

_compiled: dict[tuple[Any, ...], Any] = {}


def key_of(launch: Launch, device: int) -> tuple[Any, ...]:
    """All that a compiled kernel depends on."""
    return (
        launch.kernel,
        device,
        launch.num_warps,
        launch.num_stages,
        tuple(launch.constants.items()),
        tuple(describe(launch, name) for name in launch.arguments),
    )


def compiled(launch: Launch) -> Any:
    """The kernel for ``launch`` on the current device, compiled and loaded at its first use."""
    key = key_of(launch, triton.runtime.driver.active.get_current_device())
    kernel = _compiled.get(key)
    if kernel is None:
        kernel = compile_launch(launch)
        kernel.run  # noqa: B018 - loads it, which must not wait for a graph's capture
        # The first of two threads' is kept: where a kernel is dropped, its handle is invalid.
        kernel = _compiled.setdefault(key, kernel)
    return kernel


def run(launches: Iterable[Launch]) -> None:
    """Launches in order, on the current device and stream."""
    for launch in launches:
        function = function_of(launch.kernel)
        values = launch.arguments | constants_of(launch)
        if not isinstance(function, JITFunction):  # under Triton's interpreter
            function[launch.grid](**values)
            continue
        grid = launch.grid + (1,) * (3 - len(launch.grid))
        ordered = [values[name] for name in launch.kernel.parameters]
        compiled(launch)[grid](*ordered)
