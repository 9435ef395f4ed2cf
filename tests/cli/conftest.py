"""Fixtures for tests of the command: the command on a fresh mount, and a tmpfs to work on."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from tests.support import filesystems
from tests.support.daemon import ROOT, Mount
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.users import User

SMALL: Final = 64 << 10


class Command:
    """``ktaskfs`` on a mount."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount

    def words(self, *arguments: str) -> list[str]:
        """Returns the command line."""
        command, *rest = arguments
        return [sys.executable, "-m", "ktaskfs.cli.main", command, "-m", str(self.mount.path), *rest]

    def __call__(self, *arguments: str, stdin: str | bytes = "", user: User | None = None) -> Outcome:
        return run(*self.words(*arguments), stdin=stdin, user=user, cwd=ROOT)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts the command, with pipes as its output and standard error."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self.words(*arguments), cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def command(mounted: Mount) -> Command:
    """The command on a fresh mount."""
    return Command(mounted)


@pytest.fixture
def memory(root: None, area: Path) -> Iterator[Path]:
    """A tmpfs open to every user, with a small file ``file``."""
    with filesystems.tmpfs(area / "memory", 256 << 20) as path:
        (path / "file").write_bytes(b"x" * SMALL)
        yield path
