"""The contract of every operation on a range of a file that other processes have open or mapped."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import time
from typing import TYPE_CHECKING, Final

import pytest

from ktaskfs.errors import KtaskfsError, TargetError
from ktaskfs.operations.base import guard
from tests.operations.contract import RANGES, declares, ending, every_range, fixed_texts, paths, refusal
from tests.support import filesystems
from tests.support.forked import run_forked
from tests.support.holding import USES, used
from tests.support.memory_files import HUGE, allocated, dirty, make_dirty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.hugepages import TestPool
    from tests.support.runner import Place, Runner
    from tests.support.users import User

GUARDED: Final = [name for name in RANGES if declares(name, "force")]
FORCE: Final = "force=1 works on it anyway"
every_guarded = pytest.mark.parametrize("name", GUARDED)
every_use = pytest.mark.parametrize("use", [use for use in USES if use != "has inherited"])
both_memfds = pytest.mark.parametrize("flags", [0, os.MFD_HUGETLB], ids=["small", "huge"])


def texts_on(name: str, directory: Path) -> dict[str, str]:
    """A spec that would change ``path`` if the operation changes anything: it is dirty, and a source is not."""
    texts = fixed_texts(name)
    for parameter in paths(name):
        (directory / parameter).touch()
        os.truncate(directory / parameter, 2 * HUGE)
        texts[parameter] = str(directory / parameter)
    dirty(directory / "path", 0, 2 * HUGE)
    return texts


def state(path: Path | str) -> tuple[int, bytes]:
    with open(path, "rb") as file:
        return allocated(path), file.read()


def message(error: KtaskfsError | None) -> str:
    """The message of an EBUSY."""
    assert type(error) is TargetError
    assert error.errno == errno.EBUSY
    return error.message


@every_range
@every_use
def test_what_others_hold_is_refused_or_left_as_it_is(runner: Runner, place: Place, name: str, use: str) -> None:
    """An operation that overwrites or frees declares ``force``; one that does neither works on such a file."""
    texts = texts_on(name, place.directory)
    before = state(texts["path"])
    with used(texts["path"], use) as process:
        if name in GUARDED:
            refused = message(runner.refused(name, **texts))
            assert refused == f"{texts['path']} is in use by {comm(process.pid)} ({process.pid}): {FORCE}"
        else:
            ending(runner, runner.prepare(name, **texts))
        assert state(texts["path"]) == before


def comm(pid: int) -> str:
    with open(f"/proc/{pid}/comm") as file:
        return file.read().strip()


@every_guarded
def test_force_works_on_it_all_the_same(runner: Runner, place: Place, name: str) -> None:
    texts = texts_on(name, place.directory)
    before = state(texts["path"])
    with used(texts["path"], "maps"):
        runner.run(name, **texts, force=1)
    assert state(texts["path"]) != before


@every_guarded
def test_once_nobody_holds_it_any_more_force_is_not_needed(
    runner: Runner, place: Place, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the holder ends while the worker looks."""
    texts = texts_on(name, place.directory)
    with used(texts["path"], "maps") as process:

        def killing(seconds: float) -> None:
            process.kill()
            process.wait()

        monkeypatch.setattr(time, "sleep", killing)
        assert refusal(runner, name, texts) is None
    monkeypatch.undo()
    assert refusal(runner, name, texts) is None


@every_guarded
def test_the_first_are_named_and_the_others_counted(runner: Runner, place: Place, name: str) -> None:
    texts = texts_on(name, place.directory)
    with contextlib.ExitStack() as stack:
        pids = sorted(stack.enter_context(used(texts["path"], use)).pid for use in ("reads", "writes", "maps"))
        who = comm(pids[0])
        refused = message(runner.refused(name, **texts))
        assert f"in use by {who} ({pids[0]}), {who} ({pids[1]}) and 1 other: {FORCE}" in refused
        stack.enter_context(used(texts["path"], "maps"))
        assert f", {who} ({pids[1]}) and 2 others: {FORCE}" in message(runner.refused(name, **texts))


@every_guarded
def test_a_holder_that_the_caller_may_not_see(
    runner: Runner, place: Place, two_users: tuple[User, User], name: str
) -> None:
    """The owner learns that there is a holder; users who are neither owner nor root cannot."""
    texts = texts_on(name, place.directory)
    for each in place.directory.iterdir():
        os.chown(each, two_users[0].uid, two_users[0].gid)
        each.chmod(0o666)

    def attempt(user: User) -> Callable[[], str]:
        def body() -> str:
            os.setgroups([])
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            error = refusal(runner, name, texts)
            return "" if error is None else f"{error.errname} {error.message}"

        return body

    with used(texts["path"], "maps"):
        unseen = f"EBUSY {texts['path']} is held by a process that you cannot see: {FORCE}"
        assert run_forked(attempt(two_users[0])) == unseen
        assert run_forked(attempt(two_users[1])) == ""
    assert run_forked(attempt(two_users[0])) == ""


@contextlib.contextmanager
def memfd(flags: int) -> Iterator[tuple[int, str]]:
    """A dirty memfd: its descriptor, and its path."""
    with os.fdopen(os.memfd_create("guest", flags), "r+b") as file:
        path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        os.ftruncate(file.fileno(), 2 * HUGE)
        dirty(path, 0, 2 * HUGE)
        yield file.fileno(), path


@every_guarded
@both_memfds
def test_a_memfd_of_the_process_in_its_path_and_of_others(
    runner: Runner, area: Path, pool_2m: TestPool, name: str, flags: int
) -> None:
    """The kernel's lease knows nothing of them: they have never been opened."""
    with filesystems.tmpfs(area / "memory", 64 << 20) as directory, memfd(flags) as (fd, path):
        texts = texts_on(name, directory)
        before = state(path)
        with used(path, "has inherited", inherited=[fd]) as process:
            refused = message(runner.refused(name, **texts | {"path": path}))
            assert refused == f"{path} is in use by {comm(process.pid)} ({process.pid}): {FORCE}"
            assert state(path) == before
        runner.run(name, **texts | {"path": path})
        assert state(path) != before


def test_another_worker_does_not_count(runner: Runner, place: Place) -> None:
    """In this process's child, which has the file open as workers do; a third process counts all the same."""
    path = place.directory / "file"
    make_dirty(path, 2 * HUGE)
    ready, end = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end[1])
        plan = runner.prepare("clear", path=path)
        os.write(ready[1], b"x")
        os.read(end[0], 1)
        plan.abort()
        os._exit(0)
    assert os.read(ready[0], 1) == b"x"
    runner.run("free", path=path, length=HUGE)
    with used(path, "maps") as process:
        refused = message(runner.refused("free", path=path))
        assert refused == f"{path} is in use by {comm(process.pid)} ({process.pid}): {FORCE}"
    for each in (*ready, *end):
        os.close(each)
    os.waitpid(pid, 0)


def test_a_file_that_is_new(runner: Runner, place: Place, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(*arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(guard, "is_held", looked)
    runner.prepare("copy", source=plain, path=place.directory / "new").abort()
    assert not (place.directory / "new").exists()


def test_a_lease_of_somebody_else_delays_the_start_only(runner: Runner, place: Place) -> None:
    """Another worker's look at the same file, at this very moment: it takes a lease, and gives it back at once."""
    path = place.directory / "file"
    make_dirty(path, 2 * HUGE)
    program = (
        "import fcntl, os, signal, sys; fd = os.open(sys.argv[1], os.O_RDWR); "
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO}); fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK); "
        "print(flush=True); signal.sigwait({signal.SIGIO}); os.close(fd)"
    )
    with subprocess.Popen(["python3", "-c", program, path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        runner.run("clear", path=path)
    assert process.returncode == 0


def test_the_scan_is_spared_where_the_kernel_says_that_nobody_has_it(
    runner: Runner, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scanned(*arguments: object) -> None:
        raise AssertionError

    path = place.directory / "file"
    make_dirty(path, 2 * HUGE)
    monkeypatch.setattr(guard, "holders_of", scanned)
    runner.run("clear", path=path)


@pytest.mark.parametrize("plan", [0, 1], ids=["start", "plan"])
def test_a_file_that_others_make_while_the_source_is_waited_for(
    runner: Runner, place: Place, plain: Path, plan: int
) -> None:
    """The owner of the source's lease makes the file of ``path``, and has it open, before it gives up the lease."""
    path = place.directory / "file"
    program = (
        "import fcntl, os, signal, sys; fd = os.open(sys.argv[1], os.O_RDWR); "
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO}); fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK); "
        "print(flush=True); signal.sigwait({signal.SIGIO}); made = open(sys.argv[2], 'x'); os.close(fd); "
        "sys.stdin.read()"
    )
    command = ["python3", "-c", program, str(plain), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        with pytest.raises(TargetError) as caught:
            runner.prepare("copy", source=plain, path=path, plan=plan)
        assert message(caught.value) == f"{path} is in use by {comm(process.pid)} ({process.pid}): {FORCE}"
        assert path.stat().st_size == 0
