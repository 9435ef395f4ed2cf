"""``ktaskfs mount``, started by a person or a program: its exit status, its output, and the files it leaves open."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ktaskfs.cli.mount import LOG_MAX
from ktaskfs.fuse.mountpoint import filesystems_at
from tests.support.daemon import ROOT, Mount
from tests.support.leftovers import none_left
from tests.support.poll import DEADLINE, until
from tests.support.shell import Outcome, run, shell

if TYPE_CHECKING:
    from tests.conftest import MountMaker

pytestmark = pytest.mark.usefixtures("root")

COMMAND = [sys.executable, "-m", "ktaskfs.cli.main", "mount"]


def mount(*arguments: str | Path) -> Outcome:
    return run(*COMMAND, *map(str, arguments), cwd=ROOT)


def shown(descriptor: Path) -> str:
    """Returns the file behind a descriptor, by /proc; empty if the process has ended."""
    try:
        return os.readlink(descriptor)
    except OSError:
        return ""


@pytest.fixture
def point(area: Path) -> Path:
    path = area / "mount"
    path.mkdir()
    return path


def test_it_returns_when_the_mount_answers_and_keeps_nothing_of_the_caller(area: Path, point: Path) -> None:
    with none_left():
        outcome = mount("-o", f"statedir={area / 'state'}", point)  # its pipes are closed, or this would never end
        assert outcome == Outcome(0, "", "")
        assert (point / "version").exists()
        words = f"^[^ ]+ -m ktaskfs.cli.main mount .*{point}$"  # of its children, too, until they have their names
        daemon = run("pgrep", "--oldest", "-f", words).out.strip()
        assert os.readlink(f"/proc/{daemon}/cwd") == "/"
        assert os.getsid(int(daemon)) == int(daemon)
        assert "mounted on" in (area / "state/log").read_text()
        assert run("umount", str(point)).status == 0


def test_a_lock_of_the_caller_is_not_kept(area: Path, point: Path) -> None:
    """As of a script that mounts under flock(1): the lock would last as long as the mount."""
    with none_left():
        words = [*COMMAND, "-o", f"statedir={area / 'state'}", str(point)]
        assert run("flock", "--no-fork", str(area / "lock"), *words, cwd=ROOT) == Outcome(0, "", "")
        assert run("flock", "--nonblock", str(area / "lock"), "true").status == 0
        assert run("umount", str(point)).status == 0


def test_in_the_foreground_too(area: Path, point: Path) -> None:
    with none_left():
        # Not mounted yet, or the daemon itself still looks at its mount.
        command = 'exec "$@" 2>&- & until umount "$0"; do kill -0 $! || exit; done 2>/dev/null; wait $!'
        words = [*COMMAND, "--foreground", "-o", f"statedir={area / 'state'}", str(point)]
        assert run("bash", "-c", command, str(point), *words, cwd=ROOT).status == 0


def test_a_signal_as_soon_as_it_is_mounted_unmounts_it(area: Path, point: Path) -> None:
    with none_left():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            words = [*COMMAND, "--foreground", "-o", f"statedir={area / 'state'}", str(point)]
            with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as daemon:
                until(lambda: filesystems_at(str(point)) != [], "it is mounted")
                daemon.send_signal(number)
                _, said = daemon.communicate(timeout=DEADLINE)
            assert (daemon.returncode, filesystems_at(str(point))) == (0, []), said
            assert "Traceback" not in said


@pytest.mark.parametrize("words", [[], ["--foreground"]])
def test_control_c_before_it_is_mounted_ends_it_without_a_word(area: Path, point: Path, words: list[str]) -> None:
    os.mkfifo(area / "config")  # the daemon waits for its end

    def has_reader() -> bool:
        try:
            held.append(os.open(area / "config", os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    held: list[int] = []
    command = [*COMMAND, *words, "-o", f"config={area / 'config'},statedir={area / 'state'}", str(point)]
    with none_left(), subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, process_group=0) as process:
        until(has_reader, "it reads its configuration")
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does
        _, said = process.communicate(timeout=DEADLINE)
        os.close(*held)
        assert (process.returncode, said.decode()) == (-signal.SIGINT, "")
    assert filesystems_at(str(point)) == []
    if not words:
        assert (area / "state/log").read_text() == ""


def test_no_program_is_looked_for_in_the_path(area: Path, point: Path) -> None:
    with none_left():
        outcome = run("env", "PATH=/nonexistent", *COMMAND, "-o", f"statedir={area / 'state'}", str(point), cwd=ROOT)
        assert outcome == Outcome(0, "", "")
        assert run("umount", str(point)).status == 0


def test_a_daemon_that_has_mounted_meanwhile_is_left_alone(area: Path, point: Path) -> None:
    """Its state directory is another one. The second daemon finds nothing at its first look, as it came before."""
    with none_left():
        assert mount("-o", f"statedir={area / 'first'}", point).status == 0
        late = "import ktaskfs.cli.mount as m; m._open_statedir = lambda config: config.open_statedir(); " + (
            f"from ktaskfs.fuse import mountpoint; mountpoint.PATIENCE = {2 * DEADLINE}; "
            "from ktaskfs.cli.main import main; raise SystemExit(main())"
        )
        second = run(sys.executable, "-c", late, "mount", "-o", f"statedir={area / 'second'}", str(point), cwd=ROOT)
        assert second == Outcome(1, "", f"ktaskfs: {point}: fuse.ktaskfs is mounted there already, and answers\n")
        assert len(filesystems_at(str(point))) == 1
        assert run("cat", f"{point}/version").status == 0
        assert run("umount", str(point)).status == 0


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- >&- 2>&-"])
def test_it_mounts_without_standard_descriptors(area: Path, point: Path, closed: str) -> None:
    with none_left():
        outcome = shell(f'"$@" {closed}', *COMMAND, "-o", f"statedir={area / 'state'}", str(point), cwd=ROOT)
        assert outcome == Outcome(0, "", "")
        log = (area / "state/log").read_text()
        assert "mounted on" in log
        assert "ready" not in log
        assert run("umount", str(point)).status == 0


def test_the_log_in_the_state_directory_does_not_grow_for_ever(area: Path, point: Path) -> None:
    log, old = area / "state/log", area / "state/log.old"
    with none_left():
        assert mount("-o", f"statedir={area / 'state'}", point).status == 0
        log.write_bytes(b"x" * LOG_MAX)
        (area / "file").write_bytes(b"x")

        def work(name: str) -> None:
            spec = f"checksum path={area}/file name={name}"
            assert shell('echo "$2" > "$1/tasks/control"', str(point), spec).status == 0
            run("cat", f"{point}/tasks/{name}/wait")

        work("t0")
        work("t1")
        assert old.read_bytes().startswith(b"x" * LOG_MAX)
        assert f"t1: checksum {area}/file 1 done in" in log.read_text()
        assert log.stat().st_size < LOG_MAX

        log.write_bytes(b"x" * LOG_MAX)
        work("t2")
        assert " by user " not in log.read_text()
        names = [shown(error) for error in Path("/proc").glob("[0-9]*/fd/2")]
        assert names.count(str(log)) >= 2  # the daemon's and the spawner's
        assert not {str(old), f"{log} (deleted)"} & set(names)

        log.unlink()  # by somebody who wanted room
        work("t3")
        work("t4")
        assert "t4: checksum" in log.read_text()
        assert run("umount", str(point)).status == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ("true", "No such file or directory"),
        (': > "$1"', "Not a directory"),
        ('mkdir "$1"; mount --bind /dev/null /dev/fuse', "Invalid argument"),
        ('mkdir "$1"; mount -t tmpfs -o ro none "$0"', "Read-only file system"),
        (
            'mkdir "$1"; chown 65534 "$1" "$0"; install -m 600 /dev/null "$0/d"; mount --bind "$0/d" /dev/fuse; shift; '
            'set -- - setpriv --reuid=65534 --clear-groups "$@"',
            "denied; ktaskfs doctor says why\n",
        ),
    ],
    ids=["nothing there", "a file", "no fuse", "no room for state", "not for this user"],
)
def test_what_cannot_be_mounted_is_said_in_one_line(area: Path, make: str, words: str) -> None:
    (state := area / "state").mkdir()
    script = make.replace("$0", str(state)) + '; shift; "$@"'
    command = ["unshare", "--mount", "bash", "-c", script, "bash", area / "m"]
    outcome = run(*map(str, [*command, *COMMAND, "-o", f"statedir={state}/s", area / "m"]), cwd=ROOT)
    assert outcome.status == 1
    assert [line.startswith("ktaskfs: ") for line in outcome.err.splitlines()] == [True]
    assert words in outcome.err


def test_fake_checks_and_mounts_nothing(area: Path, point: Path) -> None:
    config = area / "conf"
    config.write_text("max_threads = 2\n")
    options = f"statedir={area / 'state'},config={config}"
    assert mount("--fake", "-o", options, point) == Outcome(0, "", "")
    assert not os.path.ismount(point)
    config.write_text("max_threads = 0\n\nnosuch = 1\n")
    outcome = mount("--fake", "-o", options, point)
    assert outcome.status == 1
    assert [line.split(": ")[:2] for line in outcome.err.splitlines()] == [
        ["ktaskfs", f"{config}:1"],
        ["ktaskfs", f"{config}:3"],
    ]
    assert not (area / "state").exists()


@pytest.mark.parametrize(
    ("option", "words"), [("--fd=99", "--fd 99: Bad file descriptor"), ("--store", "no service manager")]
)
def test_a_mount_that_cannot_be_handed_over(area: Path, point: Path, option: str, words: str) -> None:
    outcome = mount(option, "--foreground", "-o", f"statedir={area / 'state'}", point)
    assert outcome.status == 1
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith(f"ktaskfs: {words}")
    assert not os.path.ismount(point)


def test_the_configuration_is_read_at_the_start_and_again(area: Path, mount_maker: MountMaker) -> None:
    config = area / "conf"
    config.write_text("max_threads = 2\nnice = 7\n")
    mounted = mount_maker(f"config={config},nice=3")
    assert (mounted.read("debug/ktask_max_threads"), mounted.read("debug/ktask_nice")) == ("2\n", "3\n")
    assert mounted.write("debug/ktask_max_tasks", "5") == (0, None)

    config.write_text("max_threads = 9\nnice = 8\n")
    mounted.process.send_signal(signal.SIGHUP)
    until(lambda: mounted.read("debug/ktask_max_threads") == "9\n", "the new value")
    assert mounted.read("debug/ktask_nice") == "3\n"
    assert mounted.read("debug/ktask_max_tasks") == "5\n"

    config.write_text("max_threads = 6\nnice = lots\n")
    mounted.process.send_signal(signal.SIGHUP)
    until(lambda: f"{config}:2: " in mounted.log.read_text(), "the error in the log")
    assert mounted.read("debug/ktask_max_threads") == "9\n"


def test_what_the_service_manager_hears(area: Path, point: Path) -> None:
    script = """
import os, socket, subprocess, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.bind(sys.argv[1] + "/notify")
environment = dict(os.environ, NOTIFY_SOCKET=sys.argv[1] + "/notify", WATCHDOG_USEC="300000")
daemon = subprocess.Popen(sys.argv[2:], env=environment)
heard = []
def hear(what):
    while what not in (heard[-1] if heard else ""):
        heard.append(sock.recv(1 << 12).decode())
hear("READY=1\\nSTATUS=0 tasks, 0 unfinished")
hear("WATCHDOG=1")
os.mkdir(sys.argv[-1] + "/tasks/one")
hear("STATUS=1 tasks, 0 unfinished")
daemon.send_signal(1)
hear("RELOADING=1\\nMONOTONIC_USEC=")
hear("READY=1")
daemon.terminate()
hear("STOPPING=1")
sys.exit(daemon.wait())
"""
    command = [*COMMAND, "--foreground", "-o", f"statedir={area / 'state'}", str(point)]
    with none_left():
        done = run(sys.executable, "-c", script, str(area), *command, cwd=ROOT)
    assert done.status == 0, done.err


WATCHED = """
import os, socket, subprocess, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.bind(sys.argv[1] + "/notify")
environment = dict(os.environ, NOTIFY_SOCKET=sys.argv[1] + "/notify", WATCHDOG_USEC="300000")
daemon = subprocess.Popen(sys.argv[2:], env=environment, stderr=subprocess.PIPE, text=True)
while sock.recv(1 << 12) != b"WATCHDOG=1":
    pass
"""
"""Starts a daemon and waits until it says that it is alive. A test adds code that disturbs it."""


def test_no_sign_of_life_without_an_answer(area: Path, point: Path) -> None:
    """Another mount covers this one, so nobody can read from it."""
    script = (
        WATCHED
        + """
subprocess.run(["mount", "-t", "tmpfs", "none", sys.argv[-1]], check=True)
while "does not answer" not in daemon.stderr.readline():
    pass
sock.setblocking(False)
try:
    while True:
        sock.recv(1 << 12)
except BlockingIOError:
    pass
while "does not answer" not in daemon.stderr.readline():
    pass
try:
    sys.exit(f"a sign of life: {sock.recv(1 << 12)}")
except BlockingIOError:
    pass
subprocess.run(["umount", sys.argv[-1]], check=True)
daemon.terminate()
daemon.stderr.read()
sys.exit(daemon.wait())
"""
    )
    command = [*COMMAND, "--foreground", "-o", f"statedir={area / 'state'}", str(point)]
    with none_left():
        done = run("unshare", "--mount", sys.executable, "-c", script, str(area), *command, cwd=ROOT)
    assert done.status == 0, done.err


def test_without_a_descriptor_there_is_no_sign_of_life_and_no_end(area: Path, point: Path) -> None:
    words = [*COMMAND, "--foreground", "-o", f"statedir={area / 'state'}", str(point)]
    environment = os.environ | {"NOTIFY_SOCKET": str(area / "notify"), "WATCHDOG_USEC": "300000"}
    log = area / "log"
    with none_left(), log.open("w") as stream, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(area / "notify"))
        manager.settimeout(DEADLINE)
        with subprocess.Popen(words, cwd=ROOT, stderr=stream, env=environment) as daemon:
            while manager.recv(1 << 12) != b"WATCHDOG=1":
                pass
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (3, 3))
            warning = "does not answer: cannot start a child to check the mount: Too many open files"
            until(lambda: log.read_text().count(warning) > 1, "two warnings")
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(DEADLINE) == 0, log.read_text()
    assert filesystems_at(str(point)) == []
    assert "Traceback" not in log.read_text()


def test_a_killed_mount_is_cleared_for_the_next(area: Path, mounted: Mount) -> None:
    mounted.process.send_signal(signal.SIGKILL)
    mounted.process.wait()
    assert shell('ls "$1"', str(mounted.path)).errname == "ENOTCONN"
    again = Mount(mounted.path, statedir=mounted.statedir, log=area / "again")
    again.close()
    mounted.kill()
