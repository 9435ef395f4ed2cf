"""``ktaskfs mount``: the places it accepts and refuses; what it makes for a mount and removes at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ktaskfs.config import STATE_ROOT, state_name
from ktaskfs.fuse.mountpoint import filesystems_at, vacant
from tests.support.daemon import ROOT, Mount, interpreter
from tests.support.leftovers import none_left
from tests.support.poll import DEADLINE, until
from tests.support.processes import halt
from tests.support.shell import Outcome, environment, run, shell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.users import User

COMMAND = [sys.executable, "-m", "ktaskfs.cli.main", "mount"]
SLOW = """
import os, sys
import ktaskfs.daemon as daemon
from ktaskfs.cli.main import main
probing = daemon.FirstProbe
def slow():
    print("about to mount", flush=True)
    sys.stdin.read()
    return probing()
daemon.FirstProbe = slow
sys.exit(main())
"""
"""A daemon that waits for the end of its input after it has found the place empty, and before it mounts."""
PATIENT = f"""
import functools, sys
from ktaskfs import daemon
from ktaskfs.cli.main import main
from ktaskfs.fuse import mountpoint
mountpoint.PATIENCE = {2 * DEADLINE}
daemon.vacant = functools.partial(daemon.vacant, turn={2 * DEADLINE})
sys.exit(main())
"""
"""A daemon that waits longer for another one than a process may stall."""


def mount(*arguments: str | Path, cwd: Path = ROOT) -> Outcome:
    return run(*COMMAND, *map(str, arguments), cwd=cwd, env={"PYTHONPATH": str(ROOT)})


def mount_patiently(*arguments: str | Path) -> Outcome:
    return run(sys.executable, "-c", PATIENT, "mount", *map(str, arguments), cwd=ROOT)


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
        refused(mount_patiently("-o", options, point), f"{point}: fuse.ktaskfs is mounted there already, and answers")
    assert not (area / "other").exists()
    assert len(filesystems_at(str(point))) == 1
    assert first.read("version")
    first.close()


GONE = """
import ctypes, os, sys
from ktaskfs.cli.main import main
from ktaskfs.fuse import negotiation, session
when, *words = sys.argv[1:]
module = {"negotiate": session, "_answer": negotiation}[when]
real = getattr(module, when)
async def late(*arguments):
    ctypes.CDLL(None).umount2(os.fsencode(words[-1]), 1)  # MNT_FORCE: the daemon's own probe may be waiting
    return await real(*arguments)
setattr(module, when, late)
sys.exit(main(words))
"""
"""A daemon whose mount is unmounted before it has read the kernel's first request, or before it answers that."""


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("when", ["negotiate", "_answer"])
def test_a_mount_that_is_gone_before_it_answers_is_an_end_like_any_other(area: Path, point: Path, when: str) -> None:
    words = ["mount", "--foreground", "-o", f"statedir={area / 'state'}", str(point)]
    outcome = run(sys.executable, "-c", GONE, when, *words, cwd=ROOT)
    assert (outcome.status, "Traceback" in outcome.err) == (0, False), outcome
    assert filesystems_at(str(point)) == []


def waits_for_lock(directory: Path) -> bool:
    """Whether a process waits for the lock of a directory, by /proc/locks (proc_locks(5))."""
    number = f":{directory.stat().st_ino} "
    return any(" -> FLOCK" in line and number in line for line in Path("/proc/locks").read_text().splitlines())


@pytest.mark.usefixtures("fuse_for_all")
@pytest.mark.parametrize(
    ("ordinary", "dead", "state"),
    [(False, False, "second"), (False, True, "second"), (False, False, "first"), (True, True, "second")],
    ids=["root", "a dead mount", "the same state", "user"],
)
def test_two_at_the_same_moment(
    area: Path, point: Path, two_users: tuple[User, User], public_root: Path, *, ordinary: bool, dead: bool, state: str
) -> None:
    """The second one finds nothing alive at its first look. It comes through another path."""
    user = two_users[0] if ordinary else None
    (area / "link").symlink_to(area)
    for name in ("dead", "first", "second"):
        (area / name).mkdir(mode=0o700)
        os.chown(area / name, *((0, 0) if user is None else (user.uid, user.gid)))
    os.chown(point, *((0, 0) if user is None else (user.uid, user.gid)))
    python = interpreter(public_root)
    account: dict[str, Any] = {"cwd": public_root, "env": environment(user)}
    if user is not None:
        account |= {"user": user.uid, "group": user.gid, "extra_groups": []}
    if dead:
        old = Mount(point, statedir=area / "dead", log=area / "log", user=user, root=public_root)
        old.process.kill()
        old.process.wait()
    words = ["mount", "--foreground", "-o"]
    with contextlib.ExitStack() as stack:
        first = subprocess.Popen(
            [python, "-c", SLOW, *words, f"statedir={area / 'first'}", point],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            **account,
        )
        stack.enter_context(first)
        stack.callback(first.kill)
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == b"about to mount\n"
        there = len(filesystems_at(str(point)))
        second = subprocess.Popen(
            [python, "-c", PATIENT, *words, f"statedir={area / state}", area / "link/mount"],
            stderr=subprocess.PIPE,
            text=True,
            **account,
        )
        stack.enter_context(second)
        stack.callback(second.kill)

        def has_come() -> bool:
            return waits_for_lock(area) or len(filesystems_at(str(point))) > there or second.poll() is not None

        until(has_come, "it waits, has mounted, or has failed")
        first.stdin.close()
        _, said = second.communicate(timeout=DEADLINE)
        assert (second.returncode, len(filesystems_at(str(point)))) == (1, 1)
        assert said == f"ktaskfs: {point}: fuse.ktaskfs is mounted there already, and answers\n"
        assert run("cat", f"{point}/version", user=user).status == 0
        first.terminate()
        assert first.wait(DEADLINE) == 0
    if dead:
        old.kill()


@pytest.mark.usefixtures("root")
def test_nobody_can_keep_a_mount_away_by_a_lock(
    area: Path, point: Path, two_users: tuple[User, User], caplog: pytest.LogCaptureFixture
) -> None:
    """Who may read a directory may lock it."""
    words = ["flock", str(area), "bash", "-c", "echo locked; read -r"]
    user = two_users[0]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=user.uid, group=user.gid, extra_groups=[], text=True
    ) as locked:
        assert locked.stdout is not None
        assert locked.stdout.readline() == "locked\n"
        with vacant(str(point), "fuse.ktaskfs", nonempty=False, turn=0.1):
            assert f"cannot lock {area}: Connection timed out" in caplog.text
        locked.communicate()


@pytest.mark.usefixtures("root")
def test_a_daemon_that_is_stopped_is_not_dead(area: Path, point: Path) -> None:
    first = Mount(point, statedir=area / "state", log=area / "log")
    halt(first.pid)
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
