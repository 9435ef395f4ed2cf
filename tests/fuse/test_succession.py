"""A mount whose server is killed, and which another server takes over: a kept descriptor keeps the mount."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from ktaskfs.fuse.device import mount_device
from ktaskfs.fuse.mountpoint import abort, filesystems_at
from tests.fuse.conftest import EXAMPLE, Example
from tests.support.daemon import ROOT
from tests.support.leftovers import none_left
from tests.support.poll import DEADLINE, until
from tests.support.shell import environment, run, shell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def device(root: None, area: Path) -> Iterator[str]:
    """A mount whose descriptor the test keeps, and which is bound to a second place too."""
    for name in ("mount", "bound"):
        (area / name).mkdir()
    fd = mount_device(str(area / "mount"), "example", allow_other=True)
    os.set_inheritable(fd, True)
    subprocess.run(["mount", "--bind", str(area / "mount"), str(area / "bound")], check=True)
    try:
        with none_left():
            yield f"/dev/fd/{fd}"
    finally:
        for name in ("bound", "mount"):
            subprocess.run(["umount", "-l", str(area / name)], check=False)
        os.close(fd)


@contextlib.contextmanager
def severed_on_failure(area: Path) -> Iterator[None]:
    """No process waits for ever for a server that a test has failed to start."""
    try:
        yield
    except BaseException:
        abort(filesystems_at(str(area / "mount"))[-1])
        raise


def kill(example: Example) -> None:
    example.process.kill()
    example.process.wait()


def test_a_bind_mount_lives_on(device: str, area: Path) -> None:
    """Three servers after each other, with requests that wait for the next one."""
    bound = area / "bound"
    example = Example(area, device=device)
    for _ in range(3):
        kill(example)
        with (
            subprocess.Popen(["cat", str(bound / "hello")], stdout=subprocess.PIPE, text=True) as waiting,
            severed_on_failure(area),
        ):
            example = Example(area, device=device)
            assert waiting.communicate()[0] == "hello, world\n"
        assert run("cat", str(bound / "hello")).out == "hello, world\n"
        assert shell('ls "$1" && echo 5 > "$1/number" && cat "$1/number"', str(bound)).out.endswith("5\n")
    assert example.log.read_text() == ""
    kill(example)


_USER: Final = """
import errno, os, select
file, listing, fd = (os.open(name, os.O_RDONLY) for name in ("hello", "dir", "number"))
os.read(fd, 4096)
poll = select.poll()
poll.register(fd, select.POLLPRI)
print("waits", poll.poll(0), flush=True)
print("woken", poll.poll() == [(fd, select.POLLERR)])
for use in (lambda: os.read(file, 10), lambda: os.listdir(listing), lambda: os.close(file)):
    try:
        use()
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
"""In a separate process: the process that starts the next server must have no such files open."""


def test_what_was_open_is_stale_and_whoever_waits_hears_of_it(device: str, area: Path) -> None:
    """A read that the dead server had taken, a poll, a directory; and close(2), which may mean a part of a command."""
    first = Example(area, device=device)
    with (
        subprocess.Popen(["cat", "silence"], cwd=first.path, stderr=subprocess.PIPE, text=True) as reader,
        subprocess.Popen([sys.executable, "-c", _USER], cwd=first.path, stdout=subprocess.PIPE, text=True) as user,
        severed_on_failure(area),
    ):
        assert user.stdout is not None
        assert user.stdout.readline() == "waits []\n"
        until(lambda: first.counts()["streams"] == 1, "the stream is read")
        kill(first)
        second = Example(area, device=device)
        assert "Stale file handle" in reader.communicate()[1]
        assert user.communicate()[0].split() == ["woken", "True", "ESTALE", "ESTALE", "ESTALE"]
        assert second.cat("hello") == "hello, world\n"
    until(lambda: second.counts()["handles"] == 0, "every handle is given back")
    assert second.log.read_text() == ""
    kill(second)


def test_a_path_that_one_server_has_looked_up_and_the_next_one_opens(device: str, area: Path) -> None:
    """The kernel asks the next one for a number that it does not have, and must then repeat the lookup."""
    first = Example(area, device=device)
    path = str(first.path / "renumbered/last")
    before = os.stat(path).st_ino
    assert shell('echo die > "$1"', path).status == 0
    with (
        subprocess.Popen(["cat", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader,
        severed_on_failure(area),
    ):
        first.process.wait(DEADLINE)
        second = Example(area, device=device)
        assert reader.communicate() == ("new\n", "")
        assert os.stat(path).st_ino != before
    kill(second)


def test_one_that_knows_too_little_does_not_begin(device: str, area: Path) -> None:
    """And leaves the mount to one that knows more, with the request that it has taken."""
    kill(Example(area, device=device))
    memory = area / "report.memory"
    request, answer, tree, opened = memory.read_text().split()
    with (
        subprocess.Popen(["cat", str(area / "mount/hello")], stdout=subprocess.PIPE, text=True) as waiting,
        severed_on_failure(area),
    ):
        for text in ("", f"{request} {answer} {tree[1:]} {opened}", f"{request} {answer[:-2]}ff {tree} {opened}", "x"):
            memory.write_text(text)
            words = [sys.executable, str(ROOT / EXAMPLE), f"{area / 'mount'}={device}", str(area / "report")]
            done = subprocess.run(
                words,
                capture_output=True,
                text=True,
                check=False,
                close_fds=False,
                env=environment(None) | {"PYTHONPATH": str(ROOT)},
                timeout=DEADLINE,
            )
            assert done.returncode == 1
            assert "CannotTakeOver: cannot take over the mount: " in done.stderr
        memory.write_text(f"{request} {answer} {tree} {opened}")
        last = Example(area, device=device)
        assert waiting.communicate()[0] == "hello, world\n"
    kill(last)
