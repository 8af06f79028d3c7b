"""``python -m rrd_kernels`` prints what a bug report needs; what fails, with its error."""

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import rrd_kernels
from rrd_kernels.extension import EXTENSION_ERROR, LIBRARY, TRITON_FOUND, why_not_fused
from rrd_kernels.functional import relational_step_
from rrd_kernels.loading import libraries
from rrd_kernels.triton.cards import family_of
from rrd_kernels.triton.runtime.pack import MANIFEST, OWN, VARIABLE, Pack

CAPABILITY = "RRD_CPU_CAPABILITY"


def of_torch() -> str:
    cuda, hip = torch.version.cuda, torch.version.hip
    build = f"CUDA {cuda}" if cuda else f"HIP {hip}" if hip else "neither CUDA nor HIP"
    return f"{torch.__version__}, built with {build}"


def of_triton() -> str:
    if not TRITON_FOUND:
        return "not installed"
    import triton

    return str(triton.__version__)


def of_extension() -> str:
    state = "loaded" if EXTENSION_ERROR is None else f"not used: {EXTENSION_ERROR}"
    if hasattr(torch.ops.rrd_kernels, "torch_version"):
        state = f"built against PyTorch {torch.ops.rrd_kernels.torch_version()}, {state}"
    return state if LIBRARY is None else f"{LIBRARY}, {state}"


def of_libraries() -> str:
    return ", ".join(version or "one built from source" for version in libraries()) or "none"


def of_processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def of_cpu_kernels() -> str:
    if EXTENSION_ERROR is not None:
        return "none without the extension"
    sets = torch.ops.rrd_kernels.cpu_kernels()
    return ", ".join(map(" ".join, zip(("float64", "float32", "bfloat16"), sets, strict=True)))


def of_pack(folder: Path) -> str:
    pack = Pack(folder)
    return f"{len(pack.kernels)} kernels, compiled by Triton {pack.manifest['triton']}"


def of_gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    reason = why_not_fused(torch.device("cuda", index))
    kernels = f"reference: {reason}" if reason else f"block sizes of {family_of(index)}"
    if torch.version.hip is not None:
        return f"{properties.name}, {properties.gcnArchName}, {kernels}"
    capability = f"{properties.major}.{properties.minor}"
    return f"{properties.name}, compute capability {capability}, {kernels}"


def of_step(device: torch.device) -> str:
    torch.manual_seed(0)
    z_s, z_t, rows = torch.nn.functional.normalize(torch.randn(3, 8, 16), dim=2).to(device)

    def loss(backend: str) -> str:
        memory, ptr = rows.clone(), torch.zeros(1, dtype=torch.int64, device=device)
        step = relational_step_(z_s.requires_grad_(), z_t, memory, ptr, backend=backend)
        step.backward()
        return f"{backend}, loss {step.item():.6f}"

    reason = why_not_fused(device)
    return f"{loss('reference')}: {reason}" if reason else f"{loss('fused')} ({loss('reference')})"


def show(name: str, value: Callable[..., object], *arguments: object) -> None:
    try:
        text = str(value(*arguments))
    except Exception as error:
        text = f"failed: {type(error).__name__}: {error}"
    print(f"{name}: {' '.join(text.split())}", flush=True)


def main() -> None:
    show("rrd_kernels", lambda: f"{rrd_kernels.__version__}, {Path(__file__).parent}")
    show("python", lambda: f"{platform.python_version()}, {sys.executable}")
    show("platform", platform.platform)
    show("processor", of_processor)
    show("torch", of_torch)
    show("triton", of_triton)
    show("extension", of_extension)
    show("extensions, by PyTorch", of_libraries)
    show("CPU kernels", of_cpu_kernels)
    show("threads", lambda: f"{torch.get_num_threads()}, of {os.cpu_count()} processors")
    show(CAPABILITY, os.environ.get, CAPABILITY, "not set, so the best is chosen")
    for name in sorted(os.environ.keys() - {CAPABILITY}):
        if name.startswith("RRD_"):
            show(name, os.environ.get, name)
    root = Path(os.environ.get(VARIABLE) or OWN)
    packs = sorted(path.parent for path in root.glob(f"*/{MANIFEST}"))
    show("packs", lambda: f"{len(packs)} of GPU kernels compiled ahead, in {root}")
    for folder in packs:
        show(f"pack {folder.name}", of_pack, folder)
    # Steps come last, so that all else is printed before one that ends the process.
    gpus = range(torch.cuda.device_count())
    show("GPUs", len, gpus)
    for index in gpus:
        show(f"GPU {index}", of_gpu, index)
    for device in ("cpu", *(f"cuda:{index}" for index in gpus)):
        show(f"step on {device}", of_step, torch.device(device))


if __name__ == "__main__":
    main()
