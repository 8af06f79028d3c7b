"""Whether Triton is installed, without importing it, which takes a second."""

import importlib.util
from importlib.machinery import ModuleSpec, PathFinder

#: What the compiler here imports of Triton.
PARTS = ("backends", "compiler", "language", "runtime")


def triton_found() -> bool:
    """Whether ``import triton`` gives Triton, and no stand-in for it.

    Test suites and images without a GPU have such: a module without a spec, a mock, ``None``, a
    finder that refuses the name, or a package with little in it.
    """
    try:
        spec = importlib.util.find_spec("triton")
    except Exception:  # refused; or a module in sys.modules without a spec, whatever it raises
        return False
    places = spec.submodule_search_locations if isinstance(spec, ModuleSpec) else None
    # Not importlib.util's find_spec, which imports triton itself to find a part of it.
    return bool(places) and all(PathFinder.find_spec(f"triton.{part}", places) for part in PARTS)
