"""The other processes that have a file open or mapped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host.holders import Holder, holders_of, is_held, mark, workers_at
from ktaskfs.host.kernel import Kernel
from tests.support.forked import run_forked
from tests.support.holding import USES, used
from tests.support.processes import halt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemon import Mount
    from tests.support.users import User


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


def test_nobody(kernel: Kernel, file: Path) -> None:
    with opened(file) as fd:
        assert is_held(fd) is False
        assert holders_of(kernel, fd) == []


@pytest.mark.parametrize("use", [use for use in USES if use != "has inherited"])
def test_somebody(kernel: Kernel, file: Path, use: str) -> None:
    with opened(file) as fd, used(file, use) as process:
        assert is_held(fd) is True
        (holder,) = holders_of(kernel, fd)
        assert holder.pid == process.pid
        assert str(holder) == f"{holder.name} ({process.pid})"
    with opened(file) as fd:
        assert is_held(fd) is False


def test_a_filesystem_that_does_not_answer_is_not_asked(kernel: Kernel, tmpfs: Path, mounted: Mount) -> None:
    """A process has another file open that has the same inode number."""
    number = (mounted.path / "version").stat().st_ino
    same = next(path for path in map(tmpfs.joinpath, map(str, range(number + 1))) if new_file(path) == number)
    with (
        opened(same) as fd,
        (mounted.path / "version").open() as stdin,
        subprocess.Popen(["sleep", "60"], stdin=stdin) as process,
    ):
        halt(mounted.pid)
        try:
            assert holders_of(kernel, fd) == []
        finally:
            mounted.process.send_signal(signal.SIGCONT)
            process.kill()


def new_file(path: Path) -> int:
    """The inode number of a new file."""
    path.touch()
    return path.stat().st_ino


def test_a_name_with_parentheses_and_blanks(kernel: Kernel, file: Path, area: Path) -> None:
    (area / "a) (b").symlink_to("/bin/sleep")
    with opened(file) as fd, file.open() as stdin, subprocess.Popen([area / "a) (b", "60"], stdin=stdin) as process:
        assert holders_of(kernel, fd) == [Holder(process.pid, "a) (b")]
        process.kill()


def test_a_stranger_learns_that_it_is_held_by_others(kernel: Kernel, file: Path, two_users: tuple[User, User]) -> None:
    """An owner learns that the file is held, even by a hidden process; a stranger learns nothing."""
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


def test_a_name_that_cannot_be_printed() -> None:
    assert str(Holder(12, "a\x1b[2Jé")) == "a\\033[2Jé (12)"


def test_a_worker_is_known_by_its_mark_even_if_it_cannot_be_seen(
    kernel: Kernel, file: Path, two_users: tuple[User, User]
) -> None:
    """Until it closes the file; a lock on anything else is no mark."""
    owner = two_users[0]
    file.chmod(0o666)
    pipe, ready = os.pipe(), os.pipe()
    with opened(file) as fd:
        fcntl.lockf(fd, fcntl.LOCK_SH, 1)
        pid = os.fork()
        if pid == 0:
            os.close(fd)
            mine = os.open(file, os.O_RDWR)
            os.setresuid(owner.uid, owner.uid, owner.uid)
            mark(mine)
            os.write(ready[1], b"x")
            os.read(pipe[0], 1)
            os._exit(0)
        os.read(ready[0], 1)

        def ask() -> list[object]:
            os.setresuid(owner.uid, owner.uid, owner.uid)
            with opened(file) as other:
                return [holders_of(kernel, other), sorted(workers_at(kernel, other))]

        assert run_forked(ask) == [[], [pid]]
        os.write(pipe[1], b"x")
        os.waitpid(pid, 0)
        assert workers_at(kernel, fd) == set()
    for end in (*pipe, *ready):
        os.close(end)
