"""The training step as one CUDA graph: one launch by the host in place of thousands."""

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import processes

#: Full batches that are trained before the graph is captured. One would do for the optimizer's
#: momenta; PyTorch's notes on CUDA graphs take a few.
WARM_UP = 3
#: Methods whose losses select by a mask, or decompose matrices: the host waits for their outcome.
WAITING = ("rkd", "pkt", "kdsvd")


def check(options: argparse.Namespace, device: torch.device) -> None:
    """Whether ``--graph`` can be had with the other settings.

    Raises:
        ValueError: it cannot; the message names the setting.
    """
    distill = getattr(options, "distill", None)
    several = max(processes.size(), int(os.environ.get("WORLD_SIZE", "1"))) > 1
    hindrances = {
        f"needs a GPU; the device is {device}": device.type != "cuda",
        "takes no --amp fp16, whose scaler decides at each step; give --amp bf16": (
            options.amp == "fp16"
        ),
        "takes no --accumulate, as every batch must be a whole step": options.accumulate > 1,
        "takes no --compile": options.compile,
        "runs in one process; start the script with python, not torchrun": several,
        f"takes no --distill {distill}, whose loss waits for the GPU": distill in WAITING,
    }
    for hindrance, there in hindrances.items():
        if there:
            raise ValueError(f"--graph {hindrance}")


class GraphedStep:
    """A training step that is captured once and then replayed for every full batch.

    The first ``WARM_UP`` full batches are trained without a graph, on the stream that captures:
    after them kernels are compiled, libraries have chosen their algorithms, and the optimizer has
    its momenta. They are steps of the training like all others, so nothing has to be put back.
    Capturing runs nothing. A smaller batch is trained without a graph.

    Args:
        step: takes images, labels and the samples' numbers, trains on them and returns tensors, in
            any nesting. It may not wait for the device, and leaves no gradients behind.
        batch_size: of a full batch.
        optimizer: the step's, whose settings are constants of a graph: if one changes, such as the
            learning rate, the step is captured anew. As a tensor the rate would need the fused SGD,
            which rounds otherwise: PyTorch's others read it on the host.
        device: the GPU.

    Calling it returns what ``step`` returns. The next call writes over these tensors.

    Raises:
        ValueError: the step cannot be captured.

    Source: "CUDA Graphs" in PyTorch's notes on CUDA semantics.
    """

    def __init__(
        self,
        step: Callable[[Tensor, Tensor, Tensor], Any],
        batch_size: int,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
    ) -> None:
        self.step, self.batch_size, self.optimizer = step, batch_size, optimizer
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._trained = 0
        self._inputs: tuple[Tensor, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._captured_with: list[dict[str, Any]] = []
        self._outputs: Any = None

    def __call__(self, images: Tensor, labels: Tensor, idx: Tensor) -> Any:
        if len(labels) < self.batch_size:
            return self.step(images, labels, idx)
        self._copy_in(images, labels, idx)
        if self._trained < WARM_UP:
            self._trained += 1
            return self._without_graph()
        settings = self._settings()
        if self._graph is None or settings != self._captured_with:
            self._capture()
            self._captured_with = settings
        assert self._graph is not None
        self._graph.replay()
        return self._outputs

    def _copy_in(self, *batch: Tensor) -> None:
        """A graph reads where it read when it was captured."""
        if not self._inputs:
            self._inputs = tuple(torch.empty_like(part) for part in batch)  # in its memory format
        for static, part in zip(self._inputs, batch, strict=True):
            static.copy_(part)

    def _settings(self) -> list[dict[str, Any]]:
        """Of the optimizer: its numbers and switches."""
        return [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]

    def _without_graph(self) -> Any:
        outside = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            outputs = self.step(*self._inputs)
        outside.wait_stream(self._stream)
        return outputs

    def _capture(self) -> None:
        self._graph = self._outputs = None  # whose memory the new one may have
        graph = torch.cuda.CUDAGraph()
        try:
            # Of this thread alone: that of a loader, which pins memory, may go on meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._outputs = self.step(*self._inputs)
        except RuntimeError as error:
            first = str(error).split("\n", 1)[0]
            raise ValueError(
                f"--graph cannot capture this training step: {first}. Start a new run without it"
            ) from error
        self._graph = graph
