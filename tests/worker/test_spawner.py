"""The real spawner, without a daemon: its answers, and the descriptors that it keeps from workers."""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from ktaskfs.errors import NO_MORE_PROCESSES
from ktaskfs.progress import Phase, Requests
from ktaskfs.worker import protocol
from ktaskfs.worker.spawner import YOUNG_MS
from tests.support.poll import DEADLINE, until
from tests.support.processes import has_ended
from tests.support.shell import run
from tests.worker.spawned import MIB, PAUSED, Spawner, me

if TYPE_CHECKING:
    from tests.support.users import User


def test_a_start_that_was_given_up_before_the_fork_touches_nothing(spawner: Spawner, memory: Path) -> None:
    _works(spawner, memory)
    spawner.process.send_signal(signal.SIGSTOP)
    request = spawner.request("fallocate", {"path": str(memory / "new"), "length": "4096"})
    caller = me()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        page = os.open(spawner.area / "page1", os.O_RDWR)
        protocol.send(spawner.sock, request, [page, theirs.fileno(), *caller.descriptors])
        os.close(page)
    caller.close()
    ours.close()
    os.utime(memory, (0, 0))
    spawner.process.send_signal(signal.SIGCONT)
    forked, fds = spawner.hear()
    assert isinstance(forked, protocol.Forked)
    assert spawner.hear()[0] == protocol.Exited(request.ticket, 0)
    assert os.stat(memory).st_mtime == 0  # neither made nor removed
    for fd in fds:
        os.close(fd)


def test_the_status_names_the_signal_that_killed_a_worker(spawner: Spawner, memory: Path) -> None:
    worker = spawner.spawn("fallocate", memory / "file", length=MIB, requests=PAUSED)
    worker.go()
    os.kill(worker.forked.pid, signal.SIGKILL)
    status = spawner.exited(worker)
    assert (os.WIFSIGNALED(status), os.WTERMSIG(status)) == (True, signal.SIGKILL)
    assert worker.snapshot().done == 0


def test_the_end_of_the_daemon_is_the_end_of_the_spawner_but_not_of_a_worker(spawner: Spawner, memory: Path) -> None:
    worker = spawner.spawn("fallocate", memory / "file", length=4 * MIB, requests=PAUSED)
    worker.go()
    until(lambda: worker.snapshot().phase is Phase.RUNNING, "the worker begins")
    spawner.sock.close()
    assert spawner.process.wait(DEADLINE) == 0
    assert not worker.has_ended()
    worker.ask(Requests())
    assert worker.has_ended(DEADLINE)
    assert (worker.snapshot().phase, worker.snapshot().done) == (Phase.DONE, 4 * MIB)


def test_an_operation_that_nobody_knows_costs_one_worker(spawner: Spawner, memory: Path) -> None:
    worker = spawner.spawn("sweep", memory / "file")
    assert worker.answer() is None
    assert os.WEXITSTATUS(spawner.exited(worker)) == 70
    assert "KeyError: 'sweep'" in spawner.log.read_text()
    os.truncate(spawner.log, 0)
    _works(spawner, memory)


@pytest.mark.parametrize(
    "data",
    [b"x", b"\xff", b"[]", b"null", b'["StartRequest", {}]', b'["Ready", {"total": 1}]', b'["Nothing", {}]']
    + [protocol.encode(protocol.Forked(1, 1, 0)), b"[" * 5000],
)
def test_garbage_costs_nothing(spawner: Spawner, memory: Path, data: bytes) -> None:
    before = descriptors(spawner)
    caller = me()
    spawner.sock.sendmsg([data])
    spawner.sock.sendmsg(
        [data],
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, protocol.packed_fds([caller.root, caller.cwd]))],
    )
    caller.close()
    _works(spawner, memory)
    until(lambda: descriptors(spawner) == before, "as many descriptors as before")


def _works(spawner: Spawner, memory: Path) -> None:
    worker = spawner.spawn("fallocate", memory / "after", length=4096)
    worker.go()
    assert spawner.exited(worker) == 0
    assert worker.snapshot().phase is Phase.DONE


def descriptors(spawner: Spawner) -> int:
    """The spawner's number of open descriptors, when it has a worker in advance and sleeps until the next request."""
    wchan = Path(f"/proc/{spawner.process.pid}/wchan")
    until(lambda: len(_children(spawner)) == 1 and "poll" in wchan.read_text(), "one worker, forked in advance")
    return len(os.listdir(f"/proc/{spawner.process.pid}/fd"))


def test_a_hundred_workers_leave_no_descriptor(spawner: Spawner, memory: Path) -> None:
    _works(spawner, memory)
    before = descriptors(spawner)
    for _ in range(100):
        _works(spawner, memory)
    until(lambda: descriptors(spawner) == before, "as many descriptors as before")


def test_no_descriptor_left_is_an_answer(spawner: Spawner, memory: Path) -> None:
    _works(spawner, memory)
    before = descriptors(spawner)
    assert refused_for_want_of_descriptors(spawner, memory, before + 8)
    _works(spawner, memory)
    until(lambda: descriptors(spawner) == before, "as many descriptors as before")


def refused_for_want_of_descriptors(spawner: Spawner, memory: Path, most: int) -> int:
    """Ask under every limit up to ``most``; returns how many requests were refused."""
    refused = 0
    for limit in range(3, most):  # below, poll(2) itself gives up
        with spawner.limited(resource.RLIMIT_NOFILE, limit):
            worker = spawner.spawn("fallocate", memory / "file", length=4096)
        if worker.forked.errno:
            assert (worker.forked.errno, worker.pidfd) == (errno.EMFILE, -1)
            assert worker.answer() is None
            refused += 1
        else:
            assert isinstance(worker.answer(), protocol.Ready | protocol.WorkerRefused)
            worker.channel.close()
            assert spawner.exited(worker) == 0
    return refused


def test_a_worker_holds_nothing_of_another(spawner: Spawner, memory: Path, root: None) -> None:
    """Only root may look: a sealed worker hides its descriptors from its own user."""
    first = spawner.spawn("fallocate", memory / "first", length=MIB, requests=PAUSED)
    first.go()
    waiting = spawner.spawn("fallocate", memory / "waiting", length=MIB)
    assert isinstance(waiting.answer(), protocol.Ready)
    second = spawner.spawn("fallocate", memory / "second", length=MIB, requests=PAUSED)
    second.go()
    until(lambda: second.snapshot().phase is Phase.RUNNING, "the worker begins")
    held = [os.readlink(each) for each in second.proc("fd").iterdir()]
    assert not any("pidfd" in each or each.startswith("socket:") for each in held)
    assert {each for each in held if "/page" in each} == {str(spawner.area / "page3")}
    assert {each for each in held if each.startswith(f"{memory}/")} == {str(memory / "second")}


def test_the_limit_of_processes_is_an_answer(tmp_path: Path, public_root: Path, two_users: tuple[User, User]) -> None:
    tmp_path.chmod(0o755)
    spawner = Spawner(tmp_path, user=two_users[0], root=public_root)
    try:
        until(lambda: "spawner" in _cmdline(spawner.process.pid), "the spawner runs as the user")
        _limit_processes(spawner, two_users[0], 0)
        spare = psutil.Process(spawner.process.pid).children()  # it may have been forked before
        for each in spare:
            each.kill()
        until(lambda: all(map(has_ended, spare)), "there is no spare")
        worker = spawner.spawn("fallocate", None)
        assert (worker.forked.errno, worker.forked.pid, worker.pidfd) == (errno.EAGAIN, 0, -1)
        assert worker.answer() is None
        _limit_processes(spawner, two_users[0], 1000)
        again = spawner.spawn("fallocate", None)
        assert again.forked.errno == 0
        assert isinstance(again.answer(), protocol.WorkerRefused)  # of another user
    finally:
        spawner.close()


def _limit_processes(spawner: Spawner, user: User, soft: int) -> None:
    outcome = run("prlimit", f"--pid={spawner.process.pid}", f"--nproc={soft}:", user=user)
    assert outcome.status == 0, outcome.err


def _cmdline(pid: int) -> str:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().decode()


def test_the_limit_of_threads_is_a_refusal(spawner: Spawner, memory: Path, two_users: tuple[User, User]) -> None:
    user = two_users[0]
    memory.chmod(0o777)
    identity = me()
    identity.close()
    fields = identity.identity._replace(uid=user.uid, gid=user.gid, groups=(), effective=0, permitted=0).to_fields()
    parameters = {"path": str(memory / "file"), "length": "4096"}
    _works(spawner, memory)
    with spawner.limited(resource.RLIMIT_NPROC, 0):
        _works(spawner, memory)  # by the worker that was forked in advance, and has the old limit
        worker = spawner.send(spawner.request("fallocate", parameters, identity=fields), Requests())
        refusal = worker.answer()
    assert isinstance(refusal, protocol.WorkerRefused)
    assert (refusal.errno, refusal.message) == (errno.EAGAIN, f"cannot start a thread: {NO_MORE_PROCESSES}")
    assert spawner.exited(worker) == 0
    assert [each.name for each in memory.iterdir()] == ["after"]


def test_a_spare_worker_that_was_killed_is_replaced_without_a_word(spawner: Spawner, memory: Path) -> None:
    _works(spawner, memory)
    before = descriptors(spawner)
    (spare,) = _children(spawner)
    pidfd = os.pidfd_open(spare.pid)
    spare.kill()
    assert select.select([pidfd], [], [], DEADLINE)[0], "all of its threads are dead"
    os.close(pidfd)
    _works(spawner, memory)
    until(lambda: [each.pid for each in _children(spawner)] != [spare.pid], "there is another one")
    until(lambda: descriptors(spawner) == before, "all descriptors are closed")


def test_no_worker_is_forked_in_advance_while_a_task_is_young(spawner: Spawner, memory: Path) -> None:
    _works(spawner, memory)
    until(lambda: len(_children(spawner)) == 1, "a worker is forked in advance")
    start = time.monotonic()
    worker = spawner.spawn("fallocate", memory / "file", length=MIB, requests=PAUSED)
    worker.go()
    until(lambda: len(_children(spawner)) == 2, "the next one is forked while the task goes on")
    assert time.monotonic() - start >= YOUNG_MS / 1000
    worker.ask(Requests())
    assert spawner.exited(worker) == 0


def _children(spawner: Spawner) -> list[psutil.Process]:
    return psutil.Process(spawner.process.pid).children()
