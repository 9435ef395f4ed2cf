"""Fixtures for tests of the command: the command on a fresh mount, and a tmpfs to work on."""

from __future__ import annotations

import subprocess
import sys
from typing import IO, TYPE_CHECKING, Final

import pytest

from tests.support import filesystems
from tests.support.daemon import ROOT, Mount, in_time
from tests.support.shell import Outcome, run
from tests.support.slow import start_slow, stop

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
        return in_time(lambda: run(*self.words(*arguments), stdin=stdin, user=user, cwd=ROOT))

    def started(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts the command, whose output goes into pipes."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self.words(*arguments), cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def until_said(stream: IO[str] | None, *words: str) -> str:
    """Read lines until one has all of the words; returns it. A task at work has a line every few seconds."""
    assert stream is not None
    for line in stream:
        if all(word in line for word in words):
            return line
    raise AssertionError(f"no line has {words}")


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


@pytest.fixture
def slow(command: Command, memory: Path) -> Iterator[str]:
    """The name of a running task that does not end by itself."""
    start_slow(command.mount, memory, "slow")
    yield "slow"
    if command.mount.cat("tasks/slow/state").out in ("running\n", "paused\n"):
        stop(command.mount, "slow")
