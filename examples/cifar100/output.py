"""What the measuring scripts print and record."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import files
from benchmarks.measuring.hardware import environment


def print_table(table: Table, width: int = 100) -> None:
    """As wide as the terminal; into a file or a pipe, ``width`` columns."""
    console = Console()
    (console if console.is_terminal else Console(width=width)).print(table)


def write_record(
    path: Path | None, device: torch.device, fields: Mapping[str, Any], *, quiet: bool = False
) -> None:
    """``fields`` as JSON with the machine and the versions; nowhere for None. Says so unless
    ``quiet``."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps({**environment(device), **fields}, indent=2) + "\n")
    if not quiet:
        print(f"record written to {path}")
