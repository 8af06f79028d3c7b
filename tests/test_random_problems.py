"""Any shape, stride, dtype and temperature, as hypothesis draws them."""

import pytest
import torch
import torch.nn.functional as F
from problems import FORMS, draw, in_float64

from rrd_kernels import reference
from rrd_kernels.functional import enqueue_

hypothesis = pytest.importorskip("hypothesis")
example, given, settings = hypothesis.example, hypothesis.given, hypothesis.settings
st = hypothesis.strategies

from test_enqueue import accuracy, pointer  # noqa: E402
from test_properties import DTYPES, check  # noqa: E402


def lay_out(rows: torch.Tensor, how: str) -> torch.Tensor:
    """The same matrix in other strides."""
    if how == "transposed":
        return rows.T.contiguous().T
    if how == "strided":
        wide = rows.new_full((2 * rows.shape[0], rows.shape[1] + 3), torch.nan)
        wide[::2, :-3] = rows
        return wide[::2, :-3]
    if how == "expanded":
        return rows[:1].expand_as(rows)
    return rows


temperature = st.floats(0.02, 2.0)
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


def problem_of(batch, dim, rows, dtypes, layouts, bounded):
    """One that is tried each time."""
    sizes = {"batch": batch, "dim": dim, "rows": rows, "dtypes": dtypes, "layouts": layouts}
    return example(**sizes, form="own pair", tau_s=0.1, tau_t=0.02, bounded=bounded, seed=0)


@settings(deadline=None)
@problem_of(37, 93, 259, [FLOAT32] * 3, ["transposed", "strided", "plain"], True)
@problem_of(42, 100, 155, [BFLOAT16] * 3, ["strided", "plain", "transposed"], False)
@problem_of(70, 150, 400, [FLOAT16] * 3, ["plain", "transposed", "strided"], True)
@problem_of(9, 18, 256, [FLOAT16, BFLOAT16, FLOAT32], ["expanded", "expanded", "strided"], False)
@given(
    batch=st.integers(1, 70),
    dim=st.integers(1, 150),
    rows=st.integers(1, 400),
    dtypes=st.tuples(*[st.sampled_from(DTYPES)] * 3),
    layouts=st.tuples(*[st.sampled_from(["plain", "transposed", "strided", "expanded"])] * 3),
    form=st.sampled_from(list(FORMS)),
    tau_s=temperature,
    tau_t=temperature,
    bounded=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_matches_float64(
    batch, dim, rows, dtypes, layouts, form, tau_s, tau_t, bounded, seed, device
):
    torch.manual_seed(seed)
    terms = {"tau_s": tau_s, "tau_t": tau_t} | FORMS[form]
    problem = draw(batch, dim, rows, torch.float64, device, **terms)
    for name, dtype, how in zip(("z_s", "z_t", "memory"), dtypes, layouts, strict=True):
        setattr(problem, name, lay_out(getattr(problem, name).to(dtype), how))
    check(problem, unit_memory=bounded)


@settings(deadline=None)
@example(dtype=FLOAT32, scale=50.0, tau=0.002, seed=0)
@example(dtype=BFLOAT16, scale=50.0, tau=0.002, seed=0)
@example(dtype=FLOAT16, scale=0.01, tau=0.02, seed=0)
@given(
    dtype=st.sampled_from(DTYPES),
    scale=st.floats(0.01, 50.0),
    tau=st.floats(0.002, 0.02),
    seed=st.integers(0, 2**31),
)
def test_online_softmax_takes_any_memory_and_small_temperatures(dtype, scale, tau, seed, device):
    torch.manual_seed(seed)
    problem = draw(9, 20, 300, torch.float64, device, tau_s=10 * tau, tau_t=tau)
    problem.memory *= scale * torch.rand(300, 1, dtype=torch.float64).to(device)
    for name in ("z_s", "z_t", "memory"):
        setattr(problem, name, getattr(problem, name).to(dtype))
    check(problem)


def write_of(dtypes, momentum, bad, transposed):
    """One that wraps and is tried each time."""
    sizes = {"size": 50, "batch": 40, "dim": 33, "start": 49, "dtypes": dtypes}
    downwards = {"newest_first": not transposed}
    return example(**sizes, momentum=momentum, bad=bad, transposed=transposed, seed=0, **downwards)


@settings(deadline=None)
@write_of((BFLOAT16, FLOAT32), 0.4, float("nan"), True)
@write_of((FLOAT32, FLOAT16), 0.0, float("inf"), False)
@given(
    size=st.integers(1, 50),
    batch=st.integers(0, 50),
    dim=st.integers(1, 40),
    start=st.integers(0, 49),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    momentum=st.sampled_from([0.0, 0.4, 0.9]),
    newest_first=st.booleans(),
    bad=st.sampled_from([None, float("nan"), float("inf"), -float("inf")]),
    transposed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_enqueue_matches_the_reference(
    size, batch, dim, start, dtypes, momentum, newest_first, bad, transposed, seed, device
):
    torch.manual_seed(seed)
    batch, start = min(batch, size), start % size
    memory = F.normalize(torch.randn(size, dim), dim=1).to(device, dtypes[0])
    keys = torch.randn(batch, dim).to(device, dtypes[1])
    if bad is not None and batch:
        keys[batch // 2, dim // 2] = bad
    if transposed:
        memory, keys = memory.T.contiguous().T, keys.T.contiguous().T
    wanted, wanted_ptr = memory.clone(), pointer(start, device)
    options = {"newest_first": newest_first, "momentum": momentum}
    in_float64(reference.enqueue_, wanted, wanted_ptr, keys, **options)
    ptr = pointer(start, device)
    enqueue_(memory, ptr, keys, **options)
    assert torch.equal(ptr, wanted_ptr)
    # One rounding to the stored dtype, which may fall either way.
    close = {"rtol": torch.finfo(dtypes[0]).eps, "atol": accuracy(device, *dtypes)}
    torch.testing.assert_close(memory, wanted, **close)
