"""Argument checks, before anything is computed or written; and the default precision."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)
PRECISIONS = ("float64", "float32", "tf32", "float16", "bfloat16")
REDUCTIONS = ("none", "mean", "sum")  # in the order of at::Reduction
ENQUEUES = ("before", "after")
DIVERGENCES = ("cross_entropy", "kl")
SIMILARITIES = ("exponential", "cosine")
METHODS = ("auto", "dense", "gather")
BACKENDS = ("auto", "fused", "reference")

#: A temperature or momentum; a tensor has one element, on the CPU.
Number = float | Tensor


def check_choice(name: str, value: object, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_number(name: str, value: object) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a real number; got {type(value).__name__} {value!r}")


def _checked_number(name: str, value: Number) -> float:
    if type(value) is float:
        return value
    if not isinstance(value, Tensor):
        check_number(name, value)
        return value
    if value.requires_grad:
        raise TypeError(
            f"{name} must not require a gradient, because it gets none; pass a number, or detach() "
            f"it"
        )
    if value.numel() != 1 or value.device.type != "cpu" or not value.is_floating_point():
        raise TypeError(
            f"{name} must be a real number, or a floating tensor on the CPU with one element; got "
            f"{value.dtype} {list(value.shape)} on {value.device}"
        )
    # A compiled graph has no value yet; the operator checks it.
    return 0.5 if torch.compiler.is_compiling() else float(value)


def floats(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with floats in the place of tensors, in eager code."""
    return {
        name: float(value) if isinstance(value, Tensor) else value
        for name, value in settings.items()
    }


def settle_numbers(*values: Number) -> list[Any]:
    """Temperatures or momenta as an operator takes them: floats. In a graph of ``torch.compile``,
    if one is a tensor, or a number that has changed since the first graph, all are tensors, for the
    operator's scheduled twin."""
    if torch.compiler.is_compiling() and any(map(_may_change, values)):
        # Added to a tensor: torch.tensor would make a constant of such a number.
        zero = torch.zeros((), dtype=torch.float64, device="cpu")
        return [
            value.detach().to(torch.float64) if isinstance(value, Tensor) else zero.add(value)
            for value in values
        ]
    return [value if type(value) is float else float(value) for value in values]


def _may_change(value: Number) -> bool:
    """Whether a number of a graph that is traced is no constant of it."""
    # Imported here, where torch.compile has imported it: it takes a quarter of a second.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return isinstance(value, Tensor) or not statically_known_true(value < 1e300)


def check_temperature(name: str, value: Number) -> None:
    value = _checked_number(name, value)
    # Comparisons only: torch.compile can trace them for a number that changes.
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite; got {value}")


def check_target(name: str, value: Number, own_pair: bool) -> None:
    """Checks a teacher's temperature, which is 0 for the hard target: the own pair alone."""
    number = _checked_number(name, value)
    if 0 < number < math.inf or (own_pair and number == 0):
        return
    zero = ", or 0 for the hard target" if own_pair else ""
    hint = ". A hard target, 0, needs own_pair=True" if number == 0 else ""
    raise ValueError(f"{name} must be positive and finite{zero}; got {number}{hint}")


def check_order(enqueue: str, own_pair: bool) -> None:
    """Checks a memory's order of enqueue and loss."""
    check_choice("enqueue", enqueue, ENQUEUES)
    if own_pair and enqueue == "before":
        raise ValueError(
            "own_pair=True needs enqueue='after': with 'before' the sample's own row is in the "
            "memory already, and would be two columns"
        )


def check_momentum(name: str, value: Number) -> None:
    value = _checked_number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1); got {value}")


def check_size(name: str, value: object) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int; got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")


def check_formats(precision: str | None, backend: str, memory_dtype: torch.dtype | None) -> None:
    """Checks what the arguments of both memories have in common."""
    check_choice("precision", precision, (None, *PRECISIONS))
    check_choice("backend", backend, BACKENDS)
    if memory_dtype is not None:
        check_dtype("memory_dtype", memory_dtype)


def check_dtype(name: str, value: object) -> None:
    if not isinstance(value, torch.dtype):
        raise TypeError(f"{name} must be a torch.dtype; got {type(value).__name__}")
    if value not in DTYPES:
        wanted = ", ".join(map(str, DTYPES))
        raise ValueError(f"{name} must be one of {wanted}; got {value}")


def check_not_distributed(name: str, value: Tensor) -> None:
    # By name: importing torch.distributed.tensor takes half a second.
    if type(value).__name__ == "DTensor":
        raise TypeError(f"{name} is a DTensor; pass its local or full tensor")


def has_values(value: Tensor) -> bool:
    """Whether a tensor's values can be read; those of meta and fake tensors cannot, nor those that
    torch.func.vmap has given each sample."""
    wrapped = torch._C._functorch.is_batchedtensor(value)
    return not (wrapped or value.is_meta or type(value).__name__ == "FakeTensor")


def check_tensor(name: str, value: object) -> Tensor:
    """Checks that ``value`` is a dense tensor of a dtype that the kernels take; returns it."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor; got {type(value).__name__}")
    check_not_distributed(name, value)
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor; got layout {value.layout}")
    if value.dtype not in DTYPES:
        wanted = ", ".join(str(dtype) for dtype in DTYPES)
        raise TypeError(f"{name} must be floating, one of {wanted}; got {value.dtype}")
    return value


def check_rows(name: str, value: object) -> Tensor:
    """Checks that ``value`` is a dense floating matrix; returns it."""
    rows = check_tensor(name, value)
    if rows.dim() != 2:
        raise ValueError(f"{name} must be 2-D [rows, D]; got shape {tuple(rows.shape)}")
    return rows


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}")


def check_loss(
    z_s: object,
    z_t: object,
    memory: object,
    tau_s: Number,
    tau_t: Number,
    own_pair: bool = False,
    divergence: str = "cross_entropy",
) -> None:
    """Checks embeddings [B, D], memory [K, D], temperatures and terms of the relational loss."""
    rows = {"z_s": z_s, "z_t": z_t, "memory": memory}
    z_s, z_t, memory = (check_rows(name, value) for name, value in rows.items())
    check_alike("z_s", z_s, "z_t", z_t, same_rows=True)
    check_alike("z_s", z_s, "memory", memory, same_rows=False)
    check_not_empty("memory", memory)
    check_temperature("tau_s", tau_s)
    check_flag("own_pair", own_pair)
    check_target("tau_t", tau_t, own_pair)
    check_choice("divergence", divergence, DIVERGENCES)


def check_features(name: str, value: object, width: int | None, device: torch.device) -> None:
    """Checks that ``value`` is a batch of features, [B, width] or [B, width, 1, 1]."""
    features = check_tensor(name, value)
    if features.dim() < 2 or width not in (None, features.shape[1:].numel()):
        wanted = "dim" if width is None else width
        raise ValueError(f"{name} must be [B, {wanted}]; got shape {tuple(features.shape)}")
    if features.device != device:
        raise ValueError(
            f"{name} and the criterion must be on one device; got {features.device} and {device}"
        )


def check_module(name: str, value: object) -> None:
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module; got {type(value).__name__}")


def check_embeddings(name: str, value: object, batch: int, rows: Tensor) -> None:
    """Checks what the projection ``name`` made of ``batch`` features, for a memory of ``rows``."""
    if not isinstance(value, Tensor) or value.dtype not in DTYPES:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must return a floating Tensor; got {got}")
    if value.shape != (batch, rows.shape[1]):
        raise ValueError(
            f"{name} must map features to [{batch}, {rows.shape[1]}], the batch and the width D of "
            f"the memory (feat_dim); it returned {tuple(value.shape)}"
        )


def is_autocast(device_type: str) -> bool:
    """Whether autocast is on for a device. It does not know meta."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def check_alike(name_a: str, a: Tensor, name_b: str, b: Tensor, *, same_rows: bool) -> None:
    """Checks that two matrices agree in width and device, and with ``same_rows`` in rows."""
    if a.shape[1] != b.shape[1] or (same_rows and a.shape[0] != b.shape[0]):
        wanted = "the same shape" if same_rows else "the same width D"
        raise ValueError(
            f"{name_a} and {name_b} must have {wanted}; got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if a.device != b.device:
        raise ValueError(
            f"{name_a} and {name_b} must be on one device; got {a.device} and {b.device}"
        )


def check_not_empty(name: str, value: Tensor) -> None:
    if value.shape[0] == 0 or value.shape[1] == 0:
        raise ValueError(f"{name} must not be empty; got shape {tuple(value.shape)}")


def check_writable(name: str, value: Tensor) -> None:
    """Checks that no two elements share an address and that no gradient is required."""
    made_there = not torch.compiler.is_compiling() and value.is_inference()
    if value.is_contiguous() and not value.requires_grad and not made_there:
        return
    dims = zip(value.stride(), value.shape, strict=True)
    reach = 0  # largest offset within the dimensions with smaller strides
    for stride, size in sorted((stride, size) for stride, size in dims if size > 1):
        if stride <= reach:
            raise ValueError(
                f"{name} is expanded or overlaps itself, so it cannot be written in place; pass a "
                f"clone()"
            )
        reach += stride * (size - 1)
    if value.requires_grad:
        raise ValueError(
            f"{name} requires a gradient, so it cannot be written in place; detach() it"
        )
    if made_there and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{name} was made in inference mode and can be written only there; clone() it outside, "
            f"and write the clone"
        )


def check_fits(name: str, rows: Tensor, memory: Tensor) -> None:
    if rows.shape[0] > memory.shape[0]:
        raise ValueError(
            f"{name} has {rows.shape[0]} rows, more than the {memory.shape[0]} rows of memory; got "
            f"shapes {tuple(rows.shape)} and {tuple(memory.shape)}. Use a larger memory or a "
            f"smaller batch"
        )


def check_ptr(ptr: object, memory: Tensor) -> None:
    if not isinstance(ptr, Tensor) or ptr.dtype != torch.int64:
        got = ptr.dtype if isinstance(ptr, Tensor) else type(ptr).__name__
        raise TypeError(f"ptr must be an int64 Tensor; got {got}")
    if tuple(ptr.shape) != (1,):
        raise ValueError(f"ptr must have shape (1,); got {tuple(ptr.shape)}")
    if ptr.device != memory.device:
        raise ValueError(
            f"ptr and memory must be on one device; got {ptr.device} and {memory.device}"
        )


def as_int64(name: str, index: object) -> Tensor:
    """Checks that ``index`` is a tensor of an integer dtype; returns it in int64, without a copy if
    it is that already. What int64 does not hold becomes its largest number, which is no row."""
    if not isinstance(index, Tensor) or index.dtype not in INTEGERS:
        got = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"{name} must be an int64 Tensor, or of another integer dtype; got {got}")
    check_not_distributed(name, index)
    if index.dtype == torch.int64:
        return index
    whole = index.to(torch.int64)
    if index.dtype == torch.uint64:  # wrapped, it could count from the end, as -1 does
        whole = torch.where(whole < 0, torch.iinfo(torch.int64).max, whole)
    return whole


def check_index(name: str, index: object, rows: Tensor, *, dims: int) -> Tensor:
    """Checks that ``index`` is of integers, [B] or [B, P], with the B of ``rows``; returns it in
    int64."""
    index = as_int64(name, index)
    if index.dim() != dims or index.shape[0] != rows.shape[0]:
        wanted = f"[{rows.shape[0]}]" if dims == 1 else f"[{rows.shape[0]}, P]"
        raise ValueError(f"{name} must be {wanted}; got shape {tuple(index.shape)}")
    if index.device != rows.device:
        raise ValueError(
            f"{name} and the embeddings must be on one device; got {index.device} and {rows.device}"
        )
    return index


def check_has_columns(contrast_idx: Tensor) -> None:
    """Checks that P > 0: the loss over no columns is undefined."""
    if contrast_idx.shape[1] == 0:
        raise ValueError("contrast_idx must name at least one row for each sample; got P = 0")


def check_range(name: str, index: Tensor, rows: int, what: str = "") -> None:
    """Checks that ``index`` is in [0, rows), in eager code on a CPU: a GPU would sync."""
    if torch.compiler.is_compiling() or index.device.type != "cpu" or index.numel() == 0:
        return
    if not has_values(index):
        return
    low, high = (int(value) for value in index.aminmax())
    if low < 0 or high >= rows:
        raise IndexError(f"{name} must be in [0, {rows}{what}); got {low if low < 0 else high}")


def check_views(
    z_s: Tensor, z_t: Tensor, memory_v1: Tensor, memory_v2: Tensor, contrast_idx: Tensor
) -> Tensor:
    """Checks what functions of the momentum memory take first; returns ``contrast_idx`` in
    int64."""
    rows = {"z_s": z_s, "z_t": z_t, "memory_v1": memory_v1, "memory_v2": memory_v2}
    for name, value in rows.items():
        check_rows(name, value)
    check_alike("z_s", z_s, "z_t", z_t, same_rows=True)
    check_alike("memory_v1", memory_v1, "memory_v2", memory_v2, same_rows=True)
    check_alike("z_s", z_s, "memory_v1", memory_v1, same_rows=False)
    check_not_empty("memory_v1", memory_v1)
    return check_index("contrast_idx", contrast_idx, z_s, dims=2)


def check_normalizers(normalizers: object, memory: Tensor) -> None:
    """Checks that ``normalizers`` is a tensor of (Z_v1, Z_v2), on the memories' device."""
    wanted = (torch.float64, torch.float32)
    if not isinstance(normalizers, Tensor) or normalizers.dtype not in wanted:
        got = normalizers.dtype if isinstance(normalizers, Tensor) else type(normalizers).__name__
        raise TypeError(f"normalizers must be a float64 or float32 Tensor; got {got}")
    if tuple(normalizers.shape) != (2,):
        raise ValueError(f"normalizers must have shape (2,); got {tuple(normalizers.shape)}")
    if normalizers.device != memory.device:
        raise ValueError(
            f"normalizers and the memories must be on one device; got {normalizers.device} and "
            f"{memory.device}"
        )


def settle_precision(precision: str | None, *tensors: Tensor) -> str | None:
    """The format of the products' operands. ``None`` is float32 as PyTorch's global setting has it.
    Operators read the setting at run time, since a compiled graph must not freeze it."""
    if precision is not None:
        check_choice("precision", precision, PRECISIONS)
        return precision
    dtypes = {tensor.dtype for tensor in tensors}
    if torch.float64 in dtypes:
        return "float64"
    if dtypes == {torch.bfloat16}:
        return "bfloat16"
    if dtypes == {torch.float16}:
        return "float16"
    return None
