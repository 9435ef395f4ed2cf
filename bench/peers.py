"""The C programs that ktaskfs is measured against: compiled from bench/c/ when needed."""

from __future__ import annotations

import shlex
import subprocess
from typing import TYPE_CHECKING

from bench.harness import HERE

if TYPE_CHECKING:
    from pathlib import Path


def build(name: str, *libraries: str) -> Path:
    """The compiled ``bench/c/NAME.c``, newer than its sources, linked with ``libraries`` that pkg-config knows."""
    program = HERE / "build" / name
    sources = [HERE / "c" / f"{name}.c", *(HERE / "c").glob("*.h")]
    if not program.exists() or program.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        program.parent.mkdir(exist_ok=True)
        flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
        linked = shlex.split(_pkg_config("--cflags", "--libs", *libraries).stdout) if libraries else []
        subprocess.run(["gcc", *flags, "-o", str(program), str(sources[0]), *linked], check=True)
    return program


def available(library: str) -> bool:
    """Whether programs can be built with ``library`` here."""
    try:
        return _pkg_config("--exists", library).returncode == 0
    except FileNotFoundError:  # there is no pkg-config
        return False


def _pkg_config(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["pkg-config", *arguments], stdout=subprocess.PIPE, text=True, check=False)


def inner_times(program: Path, *arguments: object) -> list[float]:
    """Run a program that prints the seconds of its own work; the printed numbers."""
    command = [str(program), *map(str, arguments)]
    return list(map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()))


def inner_seconds(program: Path, *arguments: object) -> float:
    """Run a program that prints its own time."""
    (seconds,) = inner_times(program, *arguments)
    return seconds
