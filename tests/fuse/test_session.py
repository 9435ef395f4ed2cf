"""Mounting, serving and ending: by root and by an ordinary user, in order and by force."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.fuse.conftest import NOTHING_LEFT, Example
from tests.support import filesystems
from tests.support.leftovers import none_left
from tests.support.poll import until
from tests.support.shell import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.users import User

READERS = 1500
BLOCKED_READERS = """
import os, sys, threading
threading.stack_size(65536)
def read():
    os.read(os.open("silence", os.O_RDONLY), 4096)
for _ in range(int(sys.argv[1])):
    threading.Thread(target=read, daemon=True).start()
sys.stdin.read()
os._exit(0)
"""


@contextlib.contextmanager
def blocked_readers(example: Example, number: int) -> Iterator[None]:
    """Threads that read what never comes, all of them blocked."""
    command = [sys.executable, "-c", BLOCKED_READERS, str(number)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=example.path) as readers:
        assert readers.stdin is not None
        try:
            until(lambda: example.counts()["streams"] == number, "every reader has opened the stream")
            yield
        finally:
            readers.stdin.close()


def close_severed(file: int) -> None:
    """close(2) asks the server (FUSE_FLUSH), which does not answer any more; the descriptor is closed anyway."""
    with pytest.raises(OSError, match="not connected|connection abort"):
        os.close(file)


def test_umount_ends_the_server_with_success(example: Example) -> None:
    example.shell("cat hello lines; echo 1 > number; ls -lR dir")
    example.unmount()
    left = example.end()
    assert {name: left[name] for name in NOTHING_LEFT} == NOTHING_LEFT
    assert not example.mounted()


def test_a_busy_mount_is_not_unmounted_and_serves_on(example: Example) -> None:
    with (example.path / "hello").open():
        assert run("umount", str(example.path)).status != 0
        assert example.cat("hello") == "hello, world\n"


def test_sigterm_ends_the_server_and_the_mount_while_readers_wait(example: Example) -> None:
    with blocked_readers(example, 10):
        example.process.send_signal(signal.SIGTERM)
        assert {key: example.end()[key] for key in NOTHING_LEFT} == NOTHING_LEFT
        assert not example.mounted()
    example.log.write_text("")  # pyfuse3 reports that nobody took the last replies


def test_a_lazy_unmount_ends_the_server_and_open_files_with_it(example: Example) -> None:
    hello = os.open(example.path / "hello", os.O_RDONLY)
    example.unmount("-l")
    assert example.end() == NOTHING_LEFT
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        os.read(hello, 10)
    close_severed(hello)


def test_a_mount_that_is_moved_or_covered_is_served(example: Example, area: Path) -> None:
    elsewhere = area / "elsewhere"
    elsewhere.mkdir()
    with filesystems.tmpfs(area / "private", 1 << 20) as private:
        run("mount", "--make-private", str(private))
        moved = private / "moved"
        moved.mkdir()
        assert run("mount", "--bind", str(example.path), str(moved)).status == 0
        assert run("umount", str(example.path)).status == 0
        assert run("cat", str(moved / "hello")).out == "hello, world\n"
        assert run("mount", "--bind", "/usr", str(moved)).status == 0
        assert example.process.poll() is None
        assert run("umount", str(moved)).status == 0
        assert run("cat", str(moved / "hello")).out == "hello, world\n"
        assert run("umount", str(moved)).status == 0
        assert example.end() == NOTHING_LEFT


def test_a_severed_connection_closes_all_that_was_open(example: Example, area: Path) -> None:
    connection = os.minor(example.path.stat().st_dev)
    connections = area / "connections"
    connections.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(example.abandon)
        stack.enter_context(blocked_readers(example, 10))
        stack.callback(close_severed, os.open(example.path / "number", os.O_RDONLY))
        assert run("mount", "-t", "fusectl", "none", str(connections)).status == 0
        stack.callback(run, "umount", str(connections))
        (connections / str(connection) / "abort").write_text("1")
        assert {key: example.end()[key] for key in NOTHING_LEFT} == NOTHING_LEFT
        assert not example.mounted()
    example.log.write_text("")  # pyfuse3 reports that nobody took the last replies


def test_many_blocked_readers_of_a_stream_do_not_keep_others_waiting(example: Example) -> None:
    with blocked_readers(example, READERS):
        assert example.run("cat", *["hello"] * 200).out == "hello, world\n" * 200
    until(lambda: example.counts()["streams"] == 0, "the streams of readers who ended are closed")


def test_nothing_is_left_after_much_use(example: Example) -> None:
    script = """
    for i in {1..50}; do
        cat hello whoami lines > /dev/null; echo $i > number; head -1 lines > /dev/null; ls -l > /dev/null
        mkdir items/$i; cat items/$i/value > /dev/null; rmdir items/$i
        echo bad > number; cat dir
    done 2> /dev/null
    timeout 0.01 cat silence; true
    """
    example.shell(script)
    example.shell(script)
    until(lambda: {key: example.counts()[key] for key in NOTHING_LEFT} == NOTHING_LEFT, "everything is released")


@pytest.mark.usefixtures("fuse_for_all")
def test_an_ordinary_user_mounts_for_himself(area: Path, two_users: tuple[User, User], public_root: Path) -> None:
    user, _ = two_users
    with none_left():
        example = Example(area, user=user, project=public_root)
        try:
            assert example.cat("whoami").split()[:2] == [str(user.uid), str(user.gid)]
            assert example.shell("echo 8 > commands; cat commands").out == "8"
            example.close()
        finally:
            example.abandon()


def test_a_mount_that_another_process_made_is_served(area: Path, root: None) -> None:
    mountpoint = area / "mount"
    mountpoint.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR)
    try:
        os.set_inheritable(device, True)
        data = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mount(b"example", str(mountpoint).encode(), b"fuse.example", 0, data.encode()) == 0
        with none_left():
            example = Example(area, device=f"/dev/fd/{device}")
            try:
                os.close(device)
                device = -1
                assert example.cat("hello") == "hello, world\n"
                example.close()
            finally:
                example.abandon()
    finally:
        if device >= 0:
            os.close(device)


FAILING = """
import sys
from ktaskfs.fuse.session import MountFailed, mounted
from ktaskfs.vfs import ROOT_INO, Attributes, StaticDirectory
try:
    root, device = StaticDirectory(ROOT_INO, Attributes(0o755), {}), sys.argv[2] or None
    with mounted(root, sys.argv[1], name="x", options=sys.argv[3:], device=device):
        pass
except MountFailed as error:
    print(error.errname, error.message)
"""


@pytest.mark.parametrize("options", [[], ["no_such_option"]], ids=["no directory", "bad option"])
def test_a_mount_that_fails_says_so(area: Path, options: list[str]) -> None:
    mountpoint = area / "mount"
    if options:
        mountpoint.mkdir()
    outcome = run(sys.executable, "-c", FAILING, str(mountpoint), "", *options)
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith(f"EPERM cannot mount at {mountpoint}")
    assert outcome.out.count("\n") == 1
    assert outcome.err == ""


@pytest.mark.parametrize(
    ("opened", "why"),
    [
        ("9</dev/null", "it is not /dev/fuse"),
        ("9<>/dev/fuse", "it is not mounted"),
        ("9<&-", "Bad file descriptor"),
    ],
)
def test_a_descriptor_that_cannot_be_served_says_so(opened: str, why: str, root: None) -> None:
    outcome = run("bash", "-c", f'exec "$0" -c "$1" /nowhere /dev/fd/9 {opened}', sys.executable, FAILING)
    assert (outcome.status, outcome.out) == (0, f"EPERM cannot serve /dev/fd/9: {why}\n"), outcome.err
