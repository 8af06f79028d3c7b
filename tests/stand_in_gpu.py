"""A stand-in for an H200: CPU tensors that say they are on one, and graphs that record operators.

Nothing that is measured on it means anything: it shows that what is done for GPUs alone runs where
there is none. What a GPU computes, it cannot show.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.measuring import clocks
from rrd_kernels.bounds import LOG2_E
from rrd_kernels.triton.runtime.launch import Launch

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
NAME = "Stand-in"
CACHE_BYTES = 1 << 16
#: What every step is said to need at its peak.
PEAK_BYTES = 1 << 20
#: What a launch is called in a profile.
LAUNCH = "cuLaunchKernelEx"

#: A range around all kernels of a profile.
RANGE = "## Call CompiledFxGraph"

#: Tests that a CPU cannot pass for a GPU, and what they would have of one.
UNABLE = {
    "test_export_of_the_functional_loss": "a device that a trace can be of",
    "test_a_schedule_reaches_the_hard_target_in_a_compiled_step": "compiled graphs",
    "test_params_written_behind_a_compiled_graph": "compiled graphs",
    "test_a_tensor_of_a_function_is_no_constant_of_the_graph": "tensors that are on the CPU",
    "test_every_implementation_agrees": "PyTorch's attention kernels",
    "test_every_figure_of_a_case": "PyTorch's attention kernels",
    "test_launches": "a profile of kernels",
    "test_the_global_setting_chooses_tf32": "TF32",
    "test_unit_memory_beyond_the_bounded_range_falls_back": "products in float16",
    "test_parts_make_the_whole": "products in float16",
    "test_online_softmax_takes_any_memory_and_small_temperatures": "products in float16",
    "test_an_index_out_of_range_writes_nothing": "indices that the host does not see",
    "test_column_that_is_not_a_row": "indices that the host does not see",
    "test_every_image_is_the_published_pipelines": "pinned memory",
    "test_an_epoch_entered_in_its_middle_goes_on_as_unbroken": "pinned memory",
    "test_every_loader_gives_the_same_batches": "pinned memory",
    "test_no_host_sync_within_a_cuda_epoch": "pinned memory",
}

_autocast, _profile, _run = torch.autocast, torch.profiler.profile, threading.Thread.run


class Generator(torch.Generator):
    """torch.Generator, on the CPU whatever the device."""

    def __new__(cls, device: Any = CPU) -> "Generator":
        return super().__new__(cls, CPU)


class OnGpu(TorchFunctionMode):
    """Makes tensors on the CPU where the GPU is asked for, and lets all of them say the GPU.

    Args:
        real: where they are made instead; with "meta" they have shapes alone.
    """

    def __init__(self, real: torch.device = CPU) -> None:
        super().__init__()
        self.real = real

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.device:
            return func(*args, **kwargs or {})
        # Bound anew for each look at them, and so equal but never identical.
        if func == Tensor.device.__get__:
            return GPU
        if func == Tensor.is_cuda.__get__:
            return True
        if func == Tensor.get_device:
            return GPU.index
        if func == Tensor.cuda:
            return args[0].to(self.real)
        named = {name: self._really(value) for name, value in (kwargs or {}).items()}
        return func(*map(self._really, args), **named)

    def _really(self, value: Any) -> Any:
        named = isinstance(value, torch.device | str) and str(value).split(":")[0] == "cuda"
        return self.real if named else value


#: Operators for which the host waits, as no capture allows.
WAITS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal)


class Graph(TorchDispatchMode):
    """torch.cuda.CUDAGraph: what is done under it is undone, random draws too, and ``replay()``
    does it, into its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        #: What storages held that were there before, by address.
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._own: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket in WAITS:
            raise RuntimeError("operation not permitted when stream is capturing")
        for storage in _storages((args, kwargs)):  # batch norm's schema does not say what it writes
            if storage.data_ptr() not in self._own:
                self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        returned = func(*args, **kwargs or {})
        self._own |= {storage.data_ptr() for storage in _storages(returned)} - self._before.keys()
        self.recorded.append((func, args, kwargs or {}, returned))
        return returned

    def __enter__(self) -> "Graph":
        self._random = torch.get_rng_state()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for storage, content in self._before.values():
            storage.copy_(content)
        self._before.clear()
        torch.set_rng_state(self._random)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, returned in self.recorded:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(returned), tree_leaves(again), strict=True):
                # Views, and what is written in place, are the same memory already.
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _storages(value: Any) -> list[torch.UntypedStorage]:
    """Of all tensors in it that have values."""
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return [tensor.untyped_storage() for tensor in tensors if not tensor.is_meta]


class Event:
    """torch.cuda.Event, by the host's clock."""

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "Event") -> float:
        return 1e3 * (end.at - self.at)


class Profile:
    """torch.profiler.profile: operators as kernels, and launches."""

    def __init__(self, activities: Sequence[object], acc_events: bool) -> None:
        assert torch.profiler.ProfilerActivity.CUDA in activities
        self.of_cpu = _profile(activities=activities[:1], acc_events=acc_events)

    def __enter__(self) -> "Profile":
        self.of_cpu.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.of_cpu.__exit__(*error)

    def key_averages(self) -> list[SimpleNamespace]:
        events = [
            SimpleNamespace(
                key=event.key,
                count=event.count,
                device_type=DeviceType.CUDA,
                is_user_annotation=False,
                self_device_time_total=event.self_cpu_time_total,
                self_cpu_time_total=0,
            )
            for event in self.of_cpu.key_averages()
        ]
        whole = sum(event.self_device_time_total for event in events)
        named = SimpleNamespace(**vars(events[0]) | {"key": RANGE, "is_user_annotation": True})
        named.self_device_time_total = whole
        launch = SimpleNamespace(
            key=LAUNCH,
            count=3,
            device_type=DeviceType.CPU,
            self_device_time_total=0,
            self_cpu_time_total=6.0,
        )
        return [*events, named, launch]


@contextlib.contextmanager
def _capturing(
    graph: Graph, stream: object = None, capture_error_mode: str = "global"
) -> Iterator[None]:
    with graph:
        yield


def run(launches: Sequence[Launch]) -> None:
    """What the launches of a step with the enqueue before it compute, by the CPU's operator."""
    first, _, last = (launch.arguments for launch in launches)
    loss, gradient = torch.ops.rrd_kernels.relational_step_forward_(
        *(first[name] for name in ("memory", "ptr", "z_s", "z_t")),
        tau_s=LOG2_E / first["scale_s"],
        tau_t=LOG2_E / first["scale_t"],
        unit_memory=True,
        own_pair=False,
        kl=False,
        precision=None,
        reduction=1,
        enqueue="before",
        newest_first=False,
        momentum=0.0,
        need_grad=True,
    )
    last["loss"].copy_(loss)
    last["grad_z_s"].copy_(gradient)


class Autocast(_autocast):
    """torch.autocast, of the CPU whatever the device."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu", *args, **kwargs)


def _run_on_gpu(thread: threading.Thread) -> None:
    with OnGpu():  # modes are those of one thread
        _run(thread)


def _not_compiled(model: Any = None, **options: Any) -> Any:
    """torch.compile, whose graphs would be for a device that is not there."""
    return model if model is not None else lambda function: function


def _called(op: Any, args: Any, kwargs: Mapping[str, Any] | None = None, **options: Any) -> None:
    """torch.library.opcheck, likewise."""
    op(*args, **kwargs or {})


@contextlib.contextmanager
def in_place(real: torch.device = CPU) -> Iterator[None]:
    """As long as it lasts, PyTorch has a GPU; ``real`` as :class:`OnGpu` has it."""
    properties = SimpleNamespace(
        name=NAME,
        major=9,
        minor=0,
        multi_processor_count=2,  # few, so that small sizes have several plans
        shared_memory_per_block_optin=227 * 1024,
        total_memory=1 << 30,
        L2_cache_size=CACHE_BYTES,
        uuid="0",
    )
    stream = SimpleNamespace(wait_stream=lambda other: None)
    functions: dict[str, Any] = {
        "is_available": lambda: True,
        "get_device_name": lambda device=None: NAME,
        "device_count": lambda: 1,
        "get_device_properties": lambda device: properties,
        "get_device_capability": lambda device=None: (9, 0),
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: PEAK_BYTES,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": _capturing,
        "Stream": lambda device=None: stream,
        "current_stream": lambda device=None: stream,
        "set_stream": lambda stream: None,
        "stream": lambda stream: contextlib.nullcontext(),
        "_sleep": lambda cycles: None,
        "device": lambda device: contextlib.nullcontext(),
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "set_sync_debug_mode": lambda mode: None,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "mem_get_info": lambda device=None: (1 << 30, 1 << 30),
    }
    with contextlib.ExitStack() as stack:
        for name, function in functions.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        for module, name, value in (
            (torch.accelerator, "synchronize", lambda device: None),
            (torch.profiler, "profile", Profile),
            (torch, "Generator", Generator),
            (torch, "autocast", Autocast),
            (torch, "compile", _not_compiled),
            (torch.library, "opcheck", _called),
            (threading.Thread, "run", _run_on_gpu),
            # Between looks at a clock: more would only take longer.
            (clocks, "BLOCK_CALLS", 2),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        stack.enter_context(mock.patch("rrd_kernels.triton.runtime.run.run", run))
        stack.enter_context(OnGpu(real))
        yield
