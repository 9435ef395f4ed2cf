"""podman beside the machine's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE: Final = 600


class Podman:
    """podman with separate images and containers, in a directory that is removed."""

    def __init__(self, storage: Path) -> None:
        places = [f"--{each}={storage / each}" for each in ("root", "runroot", "tmpdir")]
        self._command = ["podman", "--runtime=runc", "--cgroup-manager=cgroupfs", "--storage-driver=vfs", *places]

    def __call__(self, *arguments: str) -> Outcome:
        return run(*self._command, *arguments, timeout=PATIENCE)

    def words(self, *arguments: str) -> list[str]:
        """The command line."""
        return [*self._command, *arguments]
