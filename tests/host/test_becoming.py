"""A process that becomes its caller."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ktaskfs.errors import KtaskfsError, NotPermitted
from ktaskfs.host import syscalls
from ktaskfs.host.becoming import become
from ktaskfs.host.credentials import Identity, read_caller
from tests.support.as_caller import NOBODY
from tests.support.forked import Died, run_forked
from tests.support.processes import status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CAP_CHOWN = 1
CAP_SYS_NICE = 1 << 23

needs_root = pytest.mark.usefixtures("root")


@contextlib.contextmanager
def process(*command: str, cwd: str | Path = "/", **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has printed a line and now reads its standard input."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=cwd, **options) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            yield child
        finally:
            child.kill()


def shell(script: str, **options: Any) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    return process("sh", "-c", f"{script}; echo ready; read line", **options)


def as_caller(pid: int, uid: int, gid: int, function: Callable[[], Any]) -> Any:
    """The result of ``function`` in a child that became the process ``pid``."""
    caller = read_caller(pid, uid, gid)

    def body() -> Any:
        become(caller.identity, *caller.descriptors)
        return function()

    try:
        return run_forked(body)
    finally:
        caller.close()


@needs_root
def test_becoming_an_ordinary_user(area: Path) -> None:
    (area / "secret").write_text("x")
    (area / "secret").chmod(0o600)

    def look() -> dict[str, Any]:
        refused = []
        for attempt in (lambda: (area / "secret").read_text(), lambda: os.setuid(0), lambda: os.chroot("/")):
            try:
                attempt()
            except PermissionError:
                refused.append(True)
        created = os.open("made", os.O_CREAT | os.O_WRONLY, 0o666)
        made = os.fstat(created)
        return {
            "ids": [*os.getresuid(), *os.getresgid()],
            "groups": sorted(os.getgroups()),
            "caps": list(syscalls.capget()),
            "cwd": os.getcwd(),
            "refused": len(refused),
            "made": [made.st_mode & 0o777, made.st_uid],
            "status": status_of("thread-self"),
        }

    area.chmod(0o777)
    options = {"user": NOBODY, "group": NOBODY, "extra_groups": [1, 5], "umask": 0o027}
    with shell("true", cwd=area, **options) as child:
        seen = as_caller(child.pid, NOBODY, NOBODY, look)
    assert seen["ids"] == [NOBODY] * 6
    assert set(seen["groups"]) - {NOBODY} == {1, 5}
    assert seen["caps"] == [0, 0, 0]
    assert seen["cwd"] == str(area)
    assert seen["refused"] == 3
    assert seen["made"] == [0o640, NOBODY]
    assert seen["status"]["NoNewPrivs"] == ["1"]
    assert seen["status"]["CapAmb"] == ["0" * 16]


@needs_root
def test_the_caller_and_its_worker_fare_alike() -> None:
    def look() -> list[Any]:
        return [os.getpriority(os.PRIO_PROCESS, 0), int(Path("/proc/self/oom_score_adj").read_text())]

    def in_a_service() -> list[Any]:
        """As in a unit with OOMScoreAdjust= and Nice=, whose worker shall not have these."""
        os.setpriority(os.PRIO_PROCESS, 0, 3)
        Path("/proc/self/oom_score_adj").write_text("200")
        become(caller.identity, caller.root, caller.cwd)
        return look()

    with shell("echo 300 > /proc/$$/oom_score_adj; renice -n 7 $$ >/dev/null", user=NOBODY, group=NOBODY) as child:
        caller = read_caller(child.pid, NOBODY, NOBODY)
        assert run_forked(in_a_service) == [7, 300]
        caller.close()
    caller = read_caller(os.getpid(), os.geteuid(), os.getegid())
    assert run_forked(in_a_service) == look()
    caller.close()


@needs_root
def test_a_user_with_a_capability_keeps_just_that() -> None:
    setpriv = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --inh-caps +chown --ambient-caps +chown"
    with process("sh", "-c", f"exec {setpriv} sh -c 'echo ready; read line'") as child:
        effective, permitted, inheritable = as_caller(child.pid, NOBODY, NOBODY, lambda: list(syscalls.capget()))
    assert (effective, permitted, inheritable) == (CAP_CHOWN, CAP_CHOWN, 0)


@needs_root
def test_root_with_fewer_capabilities_gets_no_more() -> None:
    with process("setpriv", "--bounding-set", "-chown,-sys_nice", "sh", "-c", "echo ready; read line") as child:
        seen = as_caller(child.pid, 0, 0, lambda: [*syscalls.capget()[:2], *status_of("thread-self")["CapBnd"]])
        expected = int(status_of(child.pid)["CapEff"][0], 16)
    assert seen[0] == seen[1] == expected == int(seen[2], 16)
    assert not expected & (CAP_CHOWN | CAP_SYS_NICE)


@needs_root
def test_capabilities_in_another_user_namespace_hold_only_there(area: Path) -> None:
    (area / "secret").touch(0o600)
    os.chown(area / "secret", NOBODY, NOBODY)

    def look() -> list[Any]:
        with pytest.raises(PermissionError):  # CAP_DAC_OVERRIDE does not apply to unmapped ids
            (area / "secret").open()
        return [*syscalls.capget(), os.readlink("/proc/self/ns/user"), syscalls.prctl(syscalls.PR_GET_DUMPABLE)]

    narrow = "setpriv --bounding-set -chown,-sys_nice sh -c"
    with process("unshare", "--user", "--map-root-user", *narrow.split(), "echo ready; read line") as child:
        caller = read_caller(child.pid, 0, 0)
        assert (caller.identity.effective, caller.identity.permitted, caller.identity.bounding) == (0, 0, 0)
        assert Identity.from_fields(caller.identity.to_fields()) == caller.identity
        caller.close()
        inside = int(status_of(child.pid)["CapEff"][0], 16)
        namespace = os.readlink(f"/proc/{child.pid}/ns/user")
        assert as_caller(child.pid, 0, 0, look) == [inside, inside, 0, namespace, 0]
    assert inside
    assert not inside & (CAP_CHOWN | CAP_SYS_NICE)


@needs_root
def test_a_user_namespace_that_cannot_be_joined_is_refused() -> None:
    with process("unshare", "--user", "--map-root-user", "sh", "-c", "echo ready; read line") as child:
        caller = read_caller(child.pid, 0, 0)

        def body() -> list[str]:
            with pytest.raises(NotPermitted, match="may not join") as error:
                become(caller.identity, caller.root, caller.cwd)
            return [error.value.errname]

        assert run_forked(body) == ["EACCES"]
        caller.close()


@needs_root
def test_descriptors_of_a_caller_are_copied() -> None:
    with process("unshare", "--user", "--map-root-user", "sh", "-c", "echo ready; read line") as child:
        caller = read_caller(child.pid, 0, 0)
        copy = caller.copy()
        same = [os.path.sameopenfile(*pair) for pair in zip(caller.descriptors, copy.descriptors, strict=True)]
        assert same == [True] * 3
        caller.close()
        copy.close()


@needs_root
def test_the_callers_root_directory(area: Path) -> None:
    root = area / "root"
    (root / "bin").mkdir(parents=True)
    (root / "home").mkdir()
    (root / "home" / "mine").touch()
    shutil.copy(shutil.which("sleep") or "", root / "bin" / "sleep")
    for line in subprocess.run(
        ["ldd", root / "bin" / "sleep"], capture_output=True, text=True, check=False
    ).stdout.splitlines():
        for library in (word for word in line.split() if word.startswith("/")):
            (root / library[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, root / library[1:])

    def enter() -> None:
        os.chroot(root)
        os.chdir("/home")

    script = "import os, sys; os.chroot(sys.argv[1]); os.chdir('/home'); os.setgid(65534); os.setuid(65534); "
    script += "print(flush=True); sys.stdin.read()"
    with process(sys.executable, "-c", script, str(root)) as child:
        seen = as_caller(
            child.pid, NOBODY, NOBODY, lambda: [sorted(os.listdir("/")), os.listdir("."), os.listdir("/../..")]
        )
    assert "bin" in seen[0]
    assert "proc" not in seen[0]
    assert seen[1] == ["mine"]
    assert seen[2] == seen[0] or sorted(seen[2]) == seen[0]


@needs_root
def test_the_callers_mount_namespace(area: Path) -> None:
    script = f"mount -t tmpfs none {area} && touch {area}/inside && cd {area}"
    with process("unshare", "--mount", "sh", "-c", f"{script}; echo ready; read line") as child:
        seen = as_caller(child.pid, 0, 0, lambda: [os.listdir(area), os.listdir(".")])
    assert seen == [["inside"], ["inside"]]
    assert os.listdir(area) == []


@needs_root
def test_a_working_directory_that_was_removed(area: Path) -> None:
    (area / "gone").mkdir()
    with shell("true", cwd=area / "gone") as child:
        (area / "gone").rmdir()
        assert as_caller(child.pid, 0, 0, lambda: os.listdir("/") == os.listdir("/")) is True


@needs_root
def test_the_file_size_limit_comes_along(area: Path) -> None:
    def grow() -> int | None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        fd = os.open("file", os.O_CREAT | os.O_RDWR)
        try:
            os.ftruncate(fd, 4096 + 1)
        except OSError as error:
            return error.errno
        return None

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 8192))

    with process("sh", "-c", "echo ready; read line", cwd=area, preexec_fn=limit) as child:
        assert as_caller(child.pid, 0, 0, grow) == 27


def test_an_ordinary_users_daemon_serves_that_user_alone(area: Path) -> None:
    caller = read_caller(os.getpid(), os.geteuid(), os.getegid())
    here = os.open(area, os.O_PATH)

    def unprivileged(identity: Identity, root: int) -> Any:
        def body() -> Any:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            try:
                become(identity, root, here)
            except KtaskfsError as error:
                return error.message
            return [os.getcwd(), os.getuid(), syscalls.prctl(syscalls.PR_GET_NO_NEW_PRIVS)]

        return run_forked(body)

    me = NOBODY if os.geteuid() == 0 else os.geteuid()
    mine = caller.identity._replace(uid=me, gid=me)
    assert unprivileged(mine, caller.root) == [str(area), me, 1]
    assert "cannot run as user 4242" in unprivileged(mine._replace(uid=4242), caller.root)
    assert "root directory" in unprivileged(mine, here)
    os.close(here)
    if os.geteuid() == 0:  # another user's directory can be made
        closed = area / "closed"
        closed.mkdir(0o700)
        here = os.open(closed, os.O_PATH)
        where, *rest = unprivileged(mine, caller.root)
        assert rest == [me, 1]
        assert re.fullmatch("/proc/[0-9]+/fdinfo", where)  # no relative path leads to a target from there
        closed.rmdir()
        assert unprivileged(mine, caller.root) == f"become user {me}: Permission denied", "paths are relative to it"
        os.close(here)
    caller.close()


def test_a_process_with_threads_does_not_change() -> None:
    caller = read_caller(os.getpid(), os.geteuid(), os.getegid())
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    with pytest.raises(NotPermitted, match="several threads"):
        become(caller.identity, caller.root, caller.cwd)
    stop.set()
    thread.join()
    caller.close()


@needs_root
def test_a_change_that_does_not_hold_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    caller = read_caller(os.getpid(), os.geteuid(), os.getegid())
    monkeypatch.setattr(os, "setresuid", lambda *ids: None)

    def body() -> str:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        become(caller.identity._replace(uid=NOBODY), caller.root, caller.cwd)
        return "still alive"

    with pytest.raises(Died) as caught:
        run_forked(body)
    assert os.waitstatus_to_exitcode(caught.value.status) == 70
    caller.close()
