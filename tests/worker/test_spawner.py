"""The real spawner and its workers, without a daemon."""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil
import pytest

from ktaskfs.ktask import NO_NODE
from ktaskfs.progress import Phase, Requests
from ktaskfs.worker import protocol
from tests.support.poll import until
from tests.support.shell import run
from tests.worker.spawned import Spawner, me

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.users import User

MIB = 1 << 20
PAUSED = Requests(paused=True)
SLOW = Requests(rate=1)
"""A unit a second: after a first chunk nothing more happens for a very long time."""


def test_a_worker_does_its_task(spawner: Spawner, memory: Path) -> None:
    worker = spawner.spawn("fallocate", memory / "file", length=4 * MIB)
    assert worker.forked.errno == 0
    answer = worker.answer()
    assert isinstance(answer, protocol.Ready)
    assert answer.total == 4 * MIB
    worker.channel.send(protocol.GO)
    assert spawner.exited(worker) == 0
    snapshot = worker.snapshot()
    assert (snapshot.phase, snapshot.done, snapshot.total, snapshot.errno) == (Phase.DONE, 4 * MIB, 4 * MIB, 0)
    assert os.stat(memory / "file").st_blocks * 512 == 4 * MIB


@pytest.mark.parametrize(("done", "number"), [(0, 0), (MIB, errno.ENOENT)])
def test_the_rest_of_a_task_rests_on_what_was_done(spawner: Spawner, memory: Path, done: int, number: int) -> None:
    """Of a file that is gone, if nothing was done yet, all can be done; otherwise the rest would be done alone."""
    path = memory / "file"
    request = spawner.request(
        "fallocate",
        {"path": str(path), "length": str(4 * MIB)},
        remaining=[[done, 4 * MIB - done, NO_NODE]],
        baseline={"files": {"path": [1, 2, 3]}, "end": 4 * MIB, "size": 4 * MIB, "total": 4 * MIB},
    )
    answer = spawner.send(request, Requests()).answer()
    assert (answer.errno if isinstance(answer, protocol.Refused) else 0) == number
    assert path.exists() == (number == 0)


@pytest.mark.parametrize(
    ("operation", "parameters", "number"),
    [
        ("clear", {"path": "/dev/shm/there is no such file"}, errno.ENOENT),
        ("clear", {"path": "/dev/shm"}, errno.EISDIR),
        ("clear", {"path": "/dev/null"}, errno.EINVAL),
        ("clear", {"path": "/dev/shm/" + "\x01" * 60_000}, errno.ENAMETOOLONG),
        ("fallocate", {"path": "/dev/shm/x", "length": "7"}, errno.EINVAL),
        ("fallocate", {"path": "/dev/shm/x", "length": "1E"}, errno.ENOSPC),
        ("fallocate", {"path": "/dev/shm/x"}, errno.EINVAL),
        ("fallocate", {}, errno.EINVAL),
        ("fallocate", {"path": "/dev/shm/x", "length": "4K", "colour": "red"}, errno.EINVAL),
    ],
)
def test_what_a_worker_refuses(spawner: Spawner, operation: str, parameters: dict[str, str], number: int) -> None:
    worker = spawner.send(spawner.request(operation, parameters), Requests())
    refusal = worker.answer()
    assert isinstance(refusal, protocol.Refused)
    assert (refusal.errno, errno.errorcode[refusal.errno]) == (number, errno.errorcode[number])
    assert refusal.message
    assert spawner.exited(worker) == 0
    assert worker.snapshot().phase is Phase.STARTING
    assert not os.path.exists("/dev/shm/x")


def test_without_go_nothing_is_done_and_a_created_file_is_removed(spawner: Spawner, memory: Path) -> None:
    worker = spawner.spawn("fallocate", memory / "file", length=MIB)
    assert isinstance(worker.answer(), protocol.Ready)
    assert (memory / "file").exists()
    worker.channel.close()
    assert spawner.exited(worker) == 0
    assert list(memory.iterdir()) == []
    assert worker.snapshot().phase is Phase.STARTING


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


def test_a_file_that_was_there_keeps_its_size_without_go(spawner: Spawner, memory: Path) -> None:
    (memory / "file").write_bytes(b"x" * 4096)
    worker = spawner.spawn("fallocate", memory / "file", length=MIB)
    assert isinstance(worker.answer(), protocol.Ready)
    worker.channel.send(b"anything but go")
    assert spawner.exited(worker) == 0
    assert (memory / "file").read_bytes() == b"x" * 4096


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
    assert spawner.process.wait(30) == 0
    assert not worker.has_ended()
    worker.ask(Requests())
    assert worker.has_ended(30)
    assert (worker.snapshot().phase, worker.snapshot().done) == (Phase.DONE, 4 * MIB)


def test_a_worker_that_waits_for_go_ends_with_the_daemon(spawner: Spawner, memory: Path) -> None:
    worker = spawner.spawn("fallocate", memory / "file", length=MIB)
    assert isinstance(worker.answer(), protocol.Ready)
    spawner.sock.close()
    worker.channel.close()
    assert worker.has_ended(30)
    assert list(memory.iterdir()) == []


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU has no helper threads")
def test_ps_and_top_show_the_name_of_the_task(spawner: Spawner, memory: Path) -> None:
    name = "a_name_longer_than_the_kernel_keeps"
    requests = replace(SLOW, threads=2)
    worker = spawner.spawn("fallocate", memory / "file", length=4 * MIB, chunk=4096, name=name, requests=requests)
    worker.go()

    def names() -> set[str]:
        return {(task / "comm").read_text().rstrip("\n") for task in worker.proc("task").iterdir()}

    until(lambda: any(each.endswith(":1") for each in names()), "a helper thread has its name")
    assert worker.proc("cmdline").read_bytes().rstrip(b"\0") == f"ktask/{name}".encode()
    assert worker.proc("comm").read_text() == f"ktask/{name}"[:15] + "\n"
    assert f"ktask/{name}"[:13] + ":1" in names()


def test_a_short_name_is_shown_whole(spawner: Spawner, memory: Path) -> None:
    worker = spawner.spawn("fallocate", memory / "file", length=MIB, name="vm0", requests=PAUSED)
    worker.go()
    assert worker.proc("comm").read_text() == "ktask/vm0\n"


def test_a_term_signal_interrupts(spawner: Spawner, memory: Path) -> None:
    worker = spawner.spawn("fallocate", memory / "file", length=4 * MIB, requests=PAUSED)
    worker.go()
    until(lambda: worker.snapshot().phase is Phase.RUNNING, "the worker begins")
    os.kill(worker.forked.pid, signal.SIGTERM)
    assert os.WTERMSIG(spawner.exited(worker)) == signal.SIGTERM
    assert (worker.snapshot().phase, worker.snapshot().done) == (Phase.RUNNING, 0)


@pytest.mark.parametrize("wish", [Requests(nice=10**6), Requests(nice=-(10**6)), Requests(threads=2**63, nice=0)])
def test_wishes_that_cannot_be_are_made_possible(spawner: Spawner, memory: Path, wish: Requests) -> None:
    worker = spawner.spawn("fallocate", memory / "file", length=4 * MIB, requests=replace(wish, paused=True))
    worker.go()
    worker.ask(replace(wish, paused=True, threads=1))
    worker.ask(wish)
    assert spawner.exited(worker) == 0
    assert worker.snapshot().phase is Phase.DONE


def test_a_cancel_before_the_work_began_is_heard(spawner: Spawner, memory: Path) -> None:
    worker = spawner.spawn("fallocate", memory / "file", length=MIB)
    assert isinstance(worker.answer(), protocol.Ready)
    worker.ask(Requests(cancel=True))
    worker.channel.send(protocol.GO)
    assert spawner.exited(worker) == 0
    assert worker.snapshot().phase is Phase.CANCELLED


def test_more_ranges_than_the_page_has_room_for(spawner: Spawner, memory: Path) -> None:
    (memory / "file").write_bytes(b"x" * MIB)
    parameters = {"path": str(memory / "file")}
    ranges = [(start, 4096, -1) for start in range(0, 9 * 8192, 8192)]
    worker = spawner.send(spawner.request("clear", parameters, remaining=ranges), Requests())
    refusal = worker.answer()
    assert isinstance(refusal, protocol.Refused)
    assert refusal.errno == errno.EOPNOTSUPP
    assert spawner.exited(worker) == 0


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
    """Those that the spawner has open, once it has a worker in advance, and sleeps until the next request."""
    process = psutil.Process(spawner.process.pid)
    until(
        lambda: len(process.children()) == 1 and process.status() == psutil.STATUS_SLEEPING,
        "one worker, forked in advance",
    )
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
            assert isinstance(worker.answer(), protocol.Ready | protocol.Refused)
            worker.channel.close()
            assert spawner.exited(worker) == 0
    return refused


def test_a_worker_holds_nothing_of_another(spawner: Spawner, memory: Path) -> None:
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
    spawner = Spawner(tmp_path, uid=two_users[0].uid, root=public_root)
    try:
        until(lambda: "spawner" in _cmdline(spawner.process.pid), "the spawner runs as the user")
        _limit_processes(spawner, two_users[0], 0)
        worker = spawner.spawn("fallocate", None)
        assert (worker.forked.errno, worker.forked.pid, worker.pidfd) == (errno.EAGAIN, 0, -1)
        assert worker.answer() is None
        _limit_processes(spawner, two_users[0], 1000)
        again = spawner.spawn("fallocate", None)
        assert again.forked.errno == 0
        assert isinstance(again.answer(), protocol.Refused)  # of another user
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
    fields = replace(identity.identity, uid=user.uid, gid=user.gid, groups=(), effective=0, permitted=0).to_fields()
    parameters = {"path": str(memory / "file"), "length": "4096"}
    _works(spawner, memory)
    with spawner.limited(resource.RLIMIT_NPROC, 0):
        _works(spawner, memory)  # by the worker that was forked in advance, and has the old limit
        worker = spawner.send(spawner.request("fallocate", parameters, identity=fields), Requests())
        refusal = worker.answer()
    assert isinstance(refusal, protocol.Refused)
    assert (refusal.errno, refusal.message) == (errno.EAGAIN, "no thread can be started: can't start new thread")
    assert spawner.exited(worker) == 0
    assert [each.name for each in memory.iterdir()] == ["after"]


def test_a_spare_worker_that_was_killed_is_replaced_without_a_word(spawner: Spawner, memory: Path) -> None:
    _works(spawner, memory)
    until(lambda: len(_children(spawner)) == 1, "a worker is forked in advance")
    before = len(os.listdir(f"/proc/{spawner.process.pid}/fd"))
    (spare,) = _children(spawner)
    pidfd = os.pidfd_open(spare.pid)
    spare.kill()
    assert select.select([pidfd], [], [], 30)[0], "all of its threads are dead"
    os.close(pidfd)
    _works(spawner, memory)
    until(lambda: [each.pid for each in _children(spawner)] != [spare.pid], "there is another one")
    until(lambda: len(os.listdir(f"/proc/{spawner.process.pid}/fd")) == before, "all descriptors are closed")


def _children(spawner: Spawner) -> list[psutil.Process]:
    return psutil.Process(spawner.process.pid).children()
