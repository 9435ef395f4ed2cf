"""``ktaskfs mount``: the places it accepts and refuses; what it makes for a mount and removes at the end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ktaskfs.config import STATE_ROOT, state_name
from ktaskfs.fuse.mountpoint import filesystems_at
from tests.support.daemon import ROOT, Mount
from tests.support.leftovers import none_left
from tests.support.poll import until
from tests.support.shell import Outcome, run, shell

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = [sys.executable, "-m", "ktaskfs.cli.main", "mount"]


def mount(*arguments: str | Path, cwd: Path = ROOT) -> Outcome:
    return run(*COMMAND, *map(str, arguments), cwd=cwd, env={"PYTHONPATH": str(ROOT)})


def refused(outcome: Outcome, words: str) -> None:
    """Checks that the command refuses to mount, with one line."""
    assert (outcome.status, outcome.err.count("\n")) == (1, 1), outcome
    assert outcome.err.startswith("ktaskfs: ")
    assert words in outcome.err


@pytest.fixture
def point(area: Path) -> Iterator[Path]:
    """A directory to mount on. At the end nothing is mounted there and no daemon is left."""
    path = area / "mount"
    path.mkdir()
    with none_left():
        try:
            yield path
        finally:
            while filesystems_at(str(path)):
                assert run("umount", "-l", str(path)).status == 0


def unmount(point: Path) -> None:
    """Runs umount(8) and waits for the end of the daemon."""
    assert run("umount", str(point)).status == 0
    until(lambda: not any(is_daemon(each, point) for each in Path("/proc").glob("[0-9]*")), "the daemon has ended")


def is_daemon(process: Path, point: Path) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:  # it has just ended
        return False
    return b"ktaskfs.cli.main" in words and os.fsencode(point) in words


@pytest.mark.usefixtures("root")
def test_an_empty_name_is_not_the_working_directory(area: Path) -> None:
    refused(mount("-o", f"statedir={area / 'state'}", "", cwd=area), "the mount point is empty: No such file or dir")
    assert run(str(ROOT / "mount/mount.ktaskfs"), "ktaskfs", "", cwd=area).status != 0
    assert filesystems_at(str(area)) == []
    assert list(area.iterdir()) == []


@pytest.mark.usefixtures("root")
def test_a_directory_that_is_not_empty(area: Path, point: Path) -> None:
    (point / "work").write_text("precious")
    options = f"statedir={area / 'state'}"
    refused(mount("-o", options, point), "Directory not empty: the option nonempty mounts over what is there")
    assert not (area / "state").exists()
    assert mount("-o", f"{options},nonempty", point) == Outcome(0, "", "")
    assert (point / "version").exists()
    unmount(point)
    assert (point / "work").read_text() == "precious"


@pytest.mark.usefixtures("root")
def test_a_second_mount_on_the_same_directory(area: Path, point: Path) -> None:
    """The first mount survives, whichever state directory the second one has."""
    first = Mount(point, statedir=area / "state", log=area / "log")
    for options in (f"statedir={area / 'other'}", f"statedir={area / 'other'},nonempty", f"statedir={area / 'state'}"):
        refused(mount("-o", options, point), f"{point}: fuse.ktaskfs is mounted there already, and answers")
    assert not (area / "other").exists()
    assert len(filesystems_at(str(point))) == 1
    assert first.read("version")
    first.close()


@pytest.mark.usefixtures("root")
def test_a_daemon_that_is_stopped_is_not_dead(area: Path, point: Path) -> None:
    first = Mount(point, statedir=area / "state", log=area / "log")
    first.process.send_signal(signal.SIGSTOP)
    try:
        refused(mount("-o", f"statedir={area / 'other'}", point), "is mounted there already, and does not answer")
    finally:
        first.process.send_signal(signal.SIGCONT)
    assert first.read("version")
    first.close()


@pytest.mark.usefixtures("root")
def test_a_dead_one_is_replaced_whatever_the_state_directory(area: Path, point: Path) -> None:
    dead = Mount(point, statedir=area / "state", log=area / "log")
    dead.process.kill()
    dead.process.wait()
    assert shell('ls "$1"', str(point)).errname == "ENOTCONN"
    assert mount("-o", f"statedir={area / 'other'}", point) == Outcome(0, "", "")
    assert len(filesystems_at(str(point))) == 1
    unmount(point)
    dead.kill()


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("name", ["\u6771" * 30, "a" * 250, "pods/volumes/" + "kubernetes.io~csi-" * 6], ids=len)
def test_a_long_name(area: Path, name: str) -> None:
    """A digest is the name of its state directory, which exists exactly as long as a task does."""
    point = area / name
    point.mkdir(parents=True)
    statedir = Path(STATE_ROOT, state_name(str(point)))
    with none_left():
        assert mount(point) == Outcome(0, "", "")
        assert statedir.is_dir()
        (area / "file").write_bytes(b"x")
        spec = f"checksum path={area}/file name=sum"
        assert shell('echo "$2" > "$1/tasks/control"', str(point), spec).status == 0
        assert run("cat", f"{point}/tasks/sum/wait").out.endswith("done\n")
        unmount(point)
        assert statedir.is_dir()

        assert mount(point) == Outcome(0, "", "")
        assert run("cat", f"{point}/tasks/sum/state").out == "done\n"
        assert run("rmdir", f"{point}/tasks/sum").status == 0
        unmount(point)
        assert not statedir.exists()


@pytest.mark.usefixtures("root")
def test_a_state_directory_that_was_named_stays(area: Path, point: Path) -> None:
    state = area / "state"
    assert mount("-o", f"statedir={state}", point) == Outcome(0, "", "")
    unmount(point)
    assert state.is_dir()


@pytest.mark.usefixtures("root")
def test_no_state_for_a_mount_point_that_is_not_there(area: Path) -> None:
    refused(mount(area / "missing"), f"{area / 'missing'}: No such file or directory")
    assert not Path(STATE_ROOT, state_name(str(area / "missing"))).exists()
