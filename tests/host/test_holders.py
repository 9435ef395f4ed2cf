"""Who else has a file open or mapped."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host.holders import Holder, holders_of, is_held
from ktaskfs.host.kernel import Kernel
from tests.support.forked import run_forked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.users import User

USES = {
    "reads": "os.open(path, os.O_RDONLY)",
    "writes": "os.open(path, os.O_RDWR)",
    "maps": "fd = os.open(path, os.O_RDWR); kept = mmap.mmap(fd, 4096); os.close(fd)",
    "maps to read": "fd = os.open(path, os.O_RDONLY); kept = mmap.mmap(fd, 4096, prot=mmap.PROT_READ); os.close(fd)",
}
PROGRAM = "import mmap, os, sys; path = sys.argv[1]; {}; print(flush=True); sys.stdin.read()"


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel.open()
    yield kernel
    kernel.close()


@pytest.fixture
def file(tmpfs: Path) -> Path:
    (tmpfs / "file").write_bytes(bytes(4096))
    return tmpfs / "file"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@contextlib.contextmanager
def used(path: Path, use: str) -> Iterator[int]:
    """Another process uses the file; its pid."""
    command = [sys.executable, "-c", PROGRAM.format(USES[use]), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process.pid
        process.communicate()


def test_nobody(kernel: Kernel, file: Path) -> None:
    with opened(file) as fd:
        assert is_held(fd) is False
        assert holders_of(kernel, fd) == []


@pytest.mark.parametrize("use", USES)
def test_somebody(kernel: Kernel, file: Path, use: str) -> None:
    with opened(file) as fd, used(file, use) as pid:
        assert is_held(fd) is True
        (holder,) = holders_of(kernel, fd)
        assert (holder.pid, holder.parent) == (pid, os.getpid())
        assert str(holder) == f"{holder.name} ({pid})"
    with opened(file) as fd:
        assert is_held(fd) is False


def test_a_name_with_parentheses_and_blanks(kernel: Kernel, file: Path, area: Path) -> None:
    (area / "a) (b").symlink_to("/bin/sleep")
    with opened(file) as fd, file.open() as stdin, subprocess.Popen([area / "a) (b", "60"], stdin=stdin) as process:
        assert holders_of(kernel, fd) == [Holder(process.pid, os.getpid(), "a) (b")]
        process.kill()


def test_a_stranger_learns_that_it_is_held_by_others(
    kernel: Kernel, file: Path, two_users: tuple[User, User]
) -> None:
    """An owner is told that the file is held, also where the holder cannot be seen; a stranger is told nothing."""
    owner, other = two_users
    os.chown(file, owner.uid, owner.gid)
    file.chmod(0o666)

    def ask(user: User) -> list[object]:
        os.setresuid(user.uid, user.uid, user.uid)
        with opened(file) as fd:
            return [is_held(fd), len(holders_of(kernel, fd))]

    with used(file, "maps"):
        assert run_forked(lambda: ask(owner)) == [True, 0]
        assert run_forked(lambda: ask(other)) == [None, 0]
