"""Runs a Python program with the stand-in in a GPU's place.

    python tests/on_stand_in.py [--record FOLDER] PROGRAM.py ARGUMENTS | -m MODULE ARGUMENTS

FOLDER gets a file with the kernels that a GPU would have launched.
"""

import os
import runpy
import sys
from contextlib import ExitStack
from pathlib import Path

import recorded
import stand_in_gpu


def main() -> None:
    _, *given = sys.argv
    with stand_in_gpu.in_place(), ExitStack() as stack:
        if given[0] == "--record":
            _, folder, *given = given
            path = Path(folder) / f"{os.getpid()}.json"
            stack.enter_context(recorded.into(path))
        if given[0] == "-m":
            sys.argv, sys.path[0] = given[1:], ""
            runpy.run_module(given[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = given, str(Path(given[0]).parent)
            runpy.run_path(given[0], run_name="__main__")


if __name__ == "__main__":
    main()
