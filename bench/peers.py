"""The C programs that ktaskfs is measured against: compiled from bench/c/ when needed."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from bench.harness import HERE

if TYPE_CHECKING:
    from pathlib import Path


def build(name: str) -> Path:
    """The compiled ``bench/c/NAME.c``, newer than its sources."""
    program = HERE / "build" / name
    sources = [HERE / "c" / f"{name}.c", *(HERE / "c").glob("*.h")]
    if not program.exists() or program.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        program.parent.mkdir(exist_ok=True)
        flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
        subprocess.run(["gcc", *flags, "-o", str(program), str(sources[0])], check=True)
    return program


def inner_seconds(program: Path, *arguments: object) -> float:
    """Run a program that prints its own time."""
    command = [str(program), *map(str, arguments)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
